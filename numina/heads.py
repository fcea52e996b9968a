"""Which attention heads see the instances, and what is kept of them (arXiv 2604.08546 §3.2).

Legend: F frames, N heads, H W the token grid of a frame, n = H·W, D head size. q and k are taken after norm and rotary
embedding. Everything here works on the conditional pass and only reads: it never changes what a block computes.

All heads of all frames are worked on together, in chunks whose temporaries fit a given memory; nothing here waits for
the GPU. Products are float32, so they are as exact as the process lets float32 be (TF32 is off unless it turned it on).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor

from numina.config import IdentifyConfig

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # luma of the three components seen as a colour image
NO_HEAD = -1  # the head "chosen" where all heads are averaged

# Of the block Krylov space in which principal components are sought; chosen with tests/benchmarks/capture_cost.py.
BLOCK = 16  # columns of the start block
DEGREE = 7  # times that the map and its transpose are applied to it
SMOOTH = 12  # columns of the start block that are low spatial frequencies; the others are random


def frame_attention(
    q: Float[Tensor, "maps tokens dim"], k: Float[Tensor, "maps tokens dim"]
) -> Float[Tensor, "maps tokens tokens"]:
    """Softmax maps of frames' tokens among themselves, softmax(q kᵀ/√D), in float32; a map is one head of one frame."""
    return torch.softmax((q.float() / q.shape[-1] ** 0.5) @ k.float().mT, dim=-1)


def score_heads(
    q: Float[Tensor, "frames heads tokens dim"],
    k: Float[Tensor, "frames heads tokens dim"],
    grid: tuple[int, int],
    config: IdentifyConfig,
    *,
    memory: int = 1 << 30,
) -> tuple[Float[Tensor, "frames heads"], Float[Tensor, "frames heads H W 3"]]:
    """How well each head of each frame separates instances, S = α·S1 + β·S2 + γ·S3, and its image.

    Attention is over a frame's own tokens; the frames may be those of several clips. The image has the first three
    principal components of the map's rows, each scaled to [0, 1] with its largest coordinate > 0; the frame's head is
    the argmax of the scores. A component isn't determined, and may come out otherwise on another device, where its
    variance nearly equals the next one's (singular values closer than about 1 %), or its sign where its largest and
    smallest coordinates are equal in size. A map that isn't finite gives NaN as score and image, without an error and
    for its own frame and head alone: an argmax takes it, so it shows.

    ``memory`` bounds the bytes of temporaries beside the results; one map at least is worked on at a time.
    """
    heads, tokens, dim = q.shape[1:]
    maps = torch.arange(q.shape[0] * heads, device=q.device)
    start = _start_block(grid).to(q.device, non_blocking=True)
    components = torch.cat(
        [
            _principal_components(
                frame_attention(q[some // heads, some % heads], k[some // heads, some % heads]), start
            )
            for some in maps.split(max(1, memory // _map_bytes(tokens, dim)))
        ]
    ).unflatten(1, grid)
    red, green, blue = components.unbind(-1)
    grey = GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue
    contrast = grey.flatten(1).std(dim=1, correction=0)
    scores = (
        config.contrast_weight * contrast
        + config.structure_weight * _block_variance(grey, config.structure_blocks)
        + config.edge_weight * _edge_strength(grey)
    )
    return scores.unflatten(0, q.shape[:2]), components.unflatten(0, q.shape[:2])


def _map_bytes(tokens: int, dim: int) -> int:
    """Bytes of temporaries that one map takes: scores and map, q and k, the Krylov space, its Gram matrices."""
    width = min(tokens, BLOCK * (DEGREE + 1))
    exact = 8 * tokens * width if tokens == width else 0  # a small map is copied to float64 whole
    return 8 * tokens**2 + exact + 12 * tokens * dim + tokens * (16 * width + 48 * BLOCK) + 48 * width**2


def _principal_components(
    attention: Float[Tensor, "maps n n"], start: Float[Tensor, "n block"]
) -> Float[Tensor, "maps n 3"]:
    """Coordinates of the maps' rows on their first three principal axes, each scaled to [0, 1]. Uses up `attention`.

    The axes are sought in a block Krylov space Q of the centred map B, by the eigenvectors of (B Q)ᵀ(B Q): the best
    that so many products with B can give (Rayleigh–Ritz; Musco and Musco, arXiv 1504.05477). Small maps are solved in
    full. The sign, free in a PCA, is fixed: a component's largest coordinate is > 0.
    """
    # A component of float32 rounding noise alone would be blown up to a full-range image: it is shown flat instead.
    noise = 1e-5 * attention.amax(dim=(1, 2))[:, None, None]
    # Centred in place, not in each product: rounding is then relative to what is left, which may be little.
    centred = attention.sub_(attention.mean(dim=1, keepdim=True))
    small = centred.shape[1] <= BLOCK * (DEGREE + 1)
    images = (centred if small else _krylov_images(centred, start)).double()
    components = images @ _leading_axes(images.mT @ images)
    extreme = components.abs().argmax(dim=1, keepdim=True)
    components = components * components.gather(1, extreme).sign()
    low, high = components.amin(dim=1, keepdim=True), components.amax(dim=1, keepdim=True)
    return torch.where(high - low <= noise, 0.0, (components - low) / (high - low)).float()


def _start_block(grid: tuple[int, int]) -> Float[Tensor, "n block"]:
    """The same columns on every device and rank: the grid's lowest frequencies, and noise to miss nothing.

    What heads see is smooth over the frame, so the low frequencies save about one degree in five.
    """
    height, width = grid
    lowest = sorted((((a / height) ** 2 + (b / width) ** 2), a, b) for a in range(height) for b in range(width))
    down, across = (torch.arange(side, dtype=torch.float64) + 0.5 for side in grid)
    waves = [
        (math.pi * a / height * down).cos()[:, None] * (math.pi * b / width * across).cos()
        for _, a, b in lowest[1 : SMOOTH + 1]  # a map's rows sum to 1: centred, it takes the constant to 0
    ]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(BLOCK - len(waves), height, width, dtype=torch.float64, generator=generator)
    return torch.stack([*waves, *noise]).flatten(1).T.float()


def _krylov_images(
    centred: Float[Tensor, "maps n n"], start: Float[Tensor, "n block"]
) -> Float[Tensor, "maps n space"]:
    """B Q, where Q is an orthonormal basis of start, BᵀB·start, …, (BᵀB)^DEGREE·start, in DEGREE·2 + 1 products."""
    maps, n, _ = centred.shape
    basis = centred.new_empty(maps, n, BLOCK * (DEGREE + 1))
    images = torch.empty_like(basis)
    block = start.expand(maps, -1, -1)
    for first in range(0, basis.shape[2], BLOCK):
        here = slice(first, first + BLOCK)
        if first:
            block = centred.mT @ images[..., first - BLOCK : first]
        basis[..., here] = _orthonormal(block, basis[..., :first])
        images[..., here] = centred @ basis[..., here]
    return images


def _orthonormal(
    block: Float[Tensor, "maps n block"], earlier: Float[Tensor, "maps n space"]
) -> Float[Tensor, "maps n block"]:
    """Columns made orthonormal and orthogonal to earlier ones, by Cholesky's factor of their Gram matrix.

    Done twice, which is enough. Columns that are zero stay zero: the space of a map of low rank is exhausted.
    """
    eye = torch.eye(block.shape[2], dtype=torch.float64, device=block.device)
    for _ in range(2):
        block = nnf.normalize(block - earlier @ (earlier.mT @ block), dim=1, eps=1e-30)
        wide = block.double()
        factor = torch.linalg.cholesky_ex(wide.mT @ wide + 1e-12 * eye).L
        block = (wide @ torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT).float()
    return block


def _leading_axes(gram: Float[Tensor, "maps space space"]) -> Float[Tensor, "maps space 3"]:
    """The first three eigenvectors of Gram matrices in float64; zero or any, orthogonal, where there is nothing left.

    By repeated squaring, one vector after the other: a GPU's own solvers take such matrices one by one and make the
    host wait. After 16 squarings a vector holds (λ'/λ)^65,536 of the next one, whose eigenvalue is λ'.
    """
    axes = gram.new_zeros(*gram.shape[:2], 0)
    for _ in range(3):
        power = gram
        for step in range(17):
            power = power @ power if step else power
            trace = power.diagonal(dim1=1, dim2=2).sum(dim=1)
            power = power / trace.clamp_min(1e-100)[:, None, None]
        column = power.diagonal(dim1=1, dim2=2).argmax(dim=1)[:, None, None]
        axis = power.gather(2, column.expand(-1, power.shape[1], 1))
        # What is left of a far larger eigenvalue is no smaller than rounding, and must not come out once more.
        axis = nnf.normalize(axis - axes @ (axes.mT @ axis), dim=1, eps=1e-100)
        axis = axis - axes @ (axes.mT @ axis)
        gram = gram - axis @ (axis.mT @ gram)
        gram = gram - (gram @ axis) @ axis.mT
        axes = torch.cat([axes, axis], dim=2)
    return axes


def _block_variance(grey: Float[Tensor, "maps H W"], blocks: int) -> Float[Tensor, " maps"]:
    """S2: variance of the sums of blocks of ⌊H/g⌋ × ⌊W/g⌋ tokens; the remainder is cropped."""
    height, width = max(1, grey.shape[1] // blocks), max(1, grey.shape[2] // blocks)
    sums = nnf.avg_pool2d(grey[:, None], (height, width)) * (height * width)
    return sums.flatten(1).var(dim=1, correction=0)


def _edge_strength(grey: Float[Tensor, "maps H W"]) -> Float[Tensor, " maps"]:
    """S3: mean Sobel magnitude; the border is repeated outwards, so that it isn't an edge itself.

    By shifted sums: a convolution may run in TF32 on a GPU.
    """
    padded = nnf.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return torch.hypot(down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]).mean(dim=(1, 2))


def cross_response(
    q: Float[Tensor, "rows heads dim"],
    k: Float[Tensor, "text heads dim"],
    token_sets: Sequence[Sequence[int]],
    *,
    memory: int = 1 << 30,
) -> Float[Tensor, "nouns heads rows"]:
    """How strongly each row looks at each noun: mean over the noun's tokens of softmax(q kᵀ/√D), in float32.

    The softmax runs over all text tokens, so the result of a row depends on that row alone: any shard of rows will do.
    Only the nouns' columns of it are formed. ``memory`` bounds the bytes of temporaries beside the result.
    """
    columns = _index([token for tokens in token_sets for token in tokens], q.device)
    weights = torch.block_diag(*(torch.full((len(tokens), 1), 1 / len(tokens)) for tokens in token_sets))
    weights = weights.reshape(len(columns), len(token_sets)).to(q.device, non_blocking=True)
    response = q.new_empty(len(token_sets), q.shape[1], q.shape[0], dtype=torch.float32)
    for rows, scores in _score_chunks(q, k, memory):
        shares = (scores.index_select(2, columns) - scores.logsumexp(dim=2, keepdim=True)).exp()
        response[:, :, rows] = (shares @ weights).movedim(2, 0)
    return response


def score_deviation(
    q: Float[Tensor, "rows heads dim"],
    k: Float[Tensor, "text heads dim"],
    tokens: Sequence[int],
    *,
    memory: int = 1 << 30,
) -> Float[Tensor, "heads 3"]:
    """Count, sum and sum of squares of the scores q·k/√D per head, over the rows and the given tokens, in float64.

    Partial sums of ranks that hold different rows are added; ``deviation`` takes the total.
    """
    columns = _index(tokens, k.device)
    sums = q.new_zeros(q.shape[1], 3, dtype=torch.float64)
    for _, scores in _score_chunks(q, k.index_select(0, columns), memory):
        sums[:, 0] += scores[0].numel()
        sums[:, 1] += scores.sum((1, 2), dtype=torch.float64)
        sums[:, 2] += scores.square().sum((1, 2), dtype=torch.float64)
    return sums


def deviation(sums: Float[Tensor, "heads 3"]) -> Float[Tensor, ""]:
    """Standard deviation of the scores within heads: variance around each head's own mean, averaged over heads.

    The unit in which strengths fit models of any score range. NaN where nothing was counted.
    """
    count, total, squares = sums.unbind(dim=1)
    variance = squares / count - (total / count).square()
    return variance.clamp_min(0.0).mean().sqrt()


def _index(tokens: Sequence[int], device: torch.device) -> Int[Tensor, " tokens"]:
    """Token numbers as an index on the device, without waiting for it."""
    return torch.tensor(tokens, dtype=torch.int64).to(device, non_blocking=True)


def _score_chunks(
    q: Float[Tensor, "rows heads dim"], k: Float[Tensor, "text heads dim"], memory: int
) -> Iterator[tuple[slice, Float[Tensor, "heads chunk text"]]]:
    """Scores q·k/√D in float32, as many rows of all heads at a time as fit `memory` with one more copy beside them."""
    rows, heads, dim = q.shape
    keys = (k.float() / dim**0.5).permute(1, 2, 0)
    size = max(1, memory // (heads * (8 * len(k) + 8 * dim)))
    for first in range(0, rows, size):
        chunk = slice(first, first + size)
        yield chunk, q[chunk].transpose(0, 1).float() @ keys


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
