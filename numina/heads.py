"""Which attention heads see the instances, and what is kept of them (arXiv 2604.08546 §3.2).

Legend: F frames, N heads, H W the token grid of a frame, n = H·W, D head size. q and k are taken after norm and rotary
embedding. Everything here works on one clip's conditional pass and only reads: it never changes what a block computes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor

from numina.config import IdentifyConfig

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # luma of the three components seen as a colour image
NO_HEAD = -1  # the head "chosen" where all heads are averaged


def frame_attention(
    q: Float[Tensor, "tokens heads dim"], k: Float[Tensor, "tokens heads dim"]
) -> Float[Tensor, "heads tokens tokens"]:
    """Softmax maps of one frame's tokens among themselves, softmax(q kᵀ/√D), in float32."""
    scores = torch.einsum("ihd,jhd->hij", q.float(), k.float()) / q.shape[-1] ** 0.5
    return torch.softmax(scores, dim=-1)


def score_heads(
    attention: Float[Tensor, "heads tokens tokens"], grid: tuple[int, int], config: IdentifyConfig
) -> tuple[Float[Tensor, " heads"], Float[Tensor, "heads H W 3"]]:
    """How well each head of one frame separates instances, S = α·S1 + β·S2 + γ·S3, and its image.

    ``attention`` holds softmax maps over the frame's own tokens. The image has the first three principal components of
    the map's rows, each scaled to [0, 1]; the frame's head is the argmax of the scores.
    """
    components = _principal_components(attention).reshape(-1, *grid, 3)
    grey = components @ components.new_tensor(GREY_WEIGHTS)
    contrast = grey.flatten(1).std(dim=1, correction=0)
    scores = (
        config.contrast_weight * contrast
        + config.structure_weight * _block_variance(grey, config.structure_blocks)
        + config.edge_weight * _edge_strength(grey)
    )
    return scores, components


def _principal_components(attention: Float[Tensor, "heads n n"]) -> Float[Tensor, "heads n 3"]:
    """Coordinates of the map's rows on their first three principal axes, each scaled to [0, 1].

    By eigenvectors of the n × n Gram matrix of the centred rows, in float64: a Gram matrix squares the condition, which
    would cost float32 its third component. The sign, free in a PCA, is fixed: a component's largest coordinate is > 0.
    """
    rows = attention.double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    variances, vectors = torch.linalg.eigh(rows @ rows.mT)  # ascending
    components = vectors[..., -3:].flip(-1) * variances[..., -3:].flip(-1).clamp_min(0.0).sqrt()[:, None]
    extreme = components.abs().argmax(dim=1, keepdim=True)
    components = components * components.gather(1, extreme).sign()
    low, high = components.amin(dim=1, keepdim=True), components.amax(dim=1, keepdim=True)
    # A component of float32 rounding noise alone would be blown up to a full-range image: it is shown flat instead.
    noise = 1e-5 * attention.double().amax(dim=(1, 2), keepdim=True)
    return torch.where(high - low > noise, (components - low) / (high - low), 0.0).float()


def _block_variance(grey: Float[Tensor, "heads H W"], blocks: int) -> Float[Tensor, " heads"]:
    """S2: variance of the sums of blocks of ⌊H/g⌋ × ⌊W/g⌋ tokens; the remainder is cropped."""
    height, width = max(1, grey.shape[1] // blocks), max(1, grey.shape[2] // blocks)
    sums = nnf.avg_pool2d(grey[:, None], (height, width)) * (height * width)
    return sums.flatten(1).var(dim=1, correction=0)


def _edge_strength(grey: Float[Tensor, "heads H W"]) -> Float[Tensor, " heads"]:
    """S3: mean Sobel magnitude; the border is repeated outwards, so that it isn't an edge itself."""
    sobel = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = nnf.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")
    gradient = nnf.conv2d(padded, torch.stack([sobel, sobel.T])[:, None])
    return gradient.square().sum(dim=1).sqrt().mean(dim=(1, 2))


def cross_response(
    q: Float[Tensor, "rows heads dim"], k: Float[Tensor, "text heads dim"], token_sets: Sequence[Sequence[int]]
) -> Float[Tensor, "nouns heads rows"]:
    """How strongly each row looks at each noun: mean over the noun's tokens of softmax(q kᵀ/√D), in float32.

    The softmax runs over all text tokens, so the result of a row depends on that row alone: any shard of rows will do.
    """
    member = q.new_zeros(len(token_sets), k.shape[0], dtype=torch.float32)
    for noun, tokens in enumerate(token_sets):
        member[noun, list(tokens)] = 1.0 / len(tokens)
    keys = k.float() / q.shape[-1] ** 0.5
    # Head by head: all heads' maps at once take 2.7 GB for a 480p clip of Wan2.1-14B.
    by_head = [member @ (q[:, h].float() @ keys[:, h].T).softmax(dim=-1).T for h in range(q.shape[1])]
    return torch.stack(by_head, dim=1)


def select_response(
    responses: Float[Tensor, "nouns heads frames H W"], mode: Literal["peak_frame", "peak_clip", "mean"]
) -> tuple[Float[Tensor, "nouns frames H W"], Int[Tensor, "nouns frames"]]:
    """One map per noun and frame: of the head with the highest peak (per frame or over the clip), or all heads' mean.

    Returns the maps and the heads they came from (``NO_HEAD`` for the mean). Of equal peaks the lowest head wins, so
    that every rank and device chooses alike.
    """
    if mode == "mean":
        return responses.mean(dim=1), responses.new_full(
            (len(responses), responses.shape[2]), NO_HEAD, dtype=torch.int64
        )
    peaks = responses.flatten(3).amax(dim=3)  # nouns heads frames
    if mode == "peak_clip":
        peaks = peaks.amax(dim=2, keepdim=True).expand_as(peaks)
    index = torch.arange(peaks.shape[1], device=peaks.device)[None, :, None]
    highest = peaks == peaks.amax(dim=1, keepdim=True)
    heads = torch.where(highest, index, peaks.shape[1]).amin(dim=1)  # argmax promises no order among equals
    maps = torch.take_along_dim(responses, heads[:, None, :, None, None], dim=1).squeeze(1)
    return maps, heads
