"""Cross-attention's maps on one scale, whatever the model adds to them: sinks, floors, bright frames, weak nouns.

It runs where the maps are, so that none of them leaves a GPU. Legend: B blocks, N nouns, F frames, H W the token grid
of a frame.
"""

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from numina.fused.ground import CLIPPED, MAD, ROUNDS

TOP = 0.0025  # share of a frame's tokens whose mean is its peak: 4 of 1,560
FAINTEST, BRIGHTEST = 3.0, 4.0  # how far a frame's peak is believed to be below or above the clip's typical one
MOST = 1e4  # peaks, of one token: what a clip of nothing else comes to; float16 holds it


def normalised(
    blocks: Float[Tensor, "blocks nouns frames H W"],
) -> tuple[Float[Tensor, "nouns frames H W"], Float[Tensor, " nouns"]]:
    """One map per noun, of which 0 is the ground and 1 what all blocks take for the frame's peak; and the nouns' peaks.

    In each block and frame by itself a token above all its neighbours is cut to the highest of them (sinks), the ground
    taken off, and the frame scaled to its own peak (a causal VAE's first frame stands alone); then blocks are averaged.
    So a peak that is elsewhere in every block, of a noun that isn't there, comes out low. A frame far fainter than the
    others has nothing of the noun, and isn't blown up. The nouns' own peaks are means over blocks, in the maps' unit.
    All in float32.
    """
    maps = blocks.float()
    maps = torch.minimum(maps, _highest_neighbour(maps))
    maps = maps - ground(maps)[0]
    tokens = maps.flatten(-2)
    number = min(max(2, round(TOP * tokens.shape[-1])), tokens.shape[-1])
    peaks = tokens.topk(number, dim=-1).values.mean(dim=-1)
    typical = _median(peaks, dim=2)
    scale = torch.clamp(peaks, typical / FAINTEST, typical * BRIGHTEST)[..., None, None]
    shares = torch.where(scale > 0, maps / scale, 0.0).mean(dim=0)
    shares = (shares - ground(shares)[0]).clamp(-MOST, MOST)
    return shares, typical[..., 0].mean(dim=0)


def _highest_neighbour(maps: Float[Tensor, "... H W"]) -> Float[Tensor, "... H W"]:
    """Of the eight around a token; beyond the rim, where a token is its own neighbour, is what is at it."""
    height, width = maps.shape[-2:]
    padded = nnf.pad(maps.flatten(0, -3), (1, 1, 1, 1), mode="replicate")
    around = [
        padded[:, down : down + height, right : right + width]
        for down in range(3)
        for right in range(3)
        if (down, right) != (1, 1)
    ]
    return torch.stack(around).amax(dim=0).reshape(maps.shape)


def ground(maps: Float[Tensor, "... H W"]) -> tuple[Float[Tensor, "... 1 1"], Float[Tensor, "... 1 1"]]:
    """Level and standard deviation of what isn't an object: median and MAD, with what is far above them left out."""
    tokens = left = maps.flatten(-2)
    for _ in range(ROUNDS):
        level = _median(left, dim=-1)
        spread = MAD * _median((left - level).abs(), dim=-1)
        left = torch.where(tokens <= level + CLIPPED * spread, tokens, torch.nan)
    return level[..., None], spread[..., None]


def _median(values: Tensor, dim: int) -> Tensor:
    """Of what isn't NaN, the mean of the middle two; the dimension stays, of size 1."""
    ordered = values.sort(dim=dim).values  # NaN comes last
    number = ordered.isfinite().sum(dim=dim, keepdim=True)
    low, high = ((number - 1) // 2).clamp_min(0), number // 2
    return (ordered.gather(dim, low) + ordered.gather(dim, high.clamp_max(values.shape[dim] - 1))) / 2
