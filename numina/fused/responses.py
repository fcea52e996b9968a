"""Cross-attention's maps on one scale, whatever the model adds to them: sinks, floors, bright frames, weak nouns.

Legend: B blocks, N nouns, F frames, H W the token grid of a frame.
"""

import warnings

import numpy as np
from jaxtyping import Float, Float32
from scipy import ndimage

TOP = 0.0025  # share of a frame's tokens whose mean is its peak: 4 of 1,560
FAINTEST, BRIGHTEST = 3.0, 4.0  # how far a frame's peak is believed to be below or above the clip's typical one
CLIPPED = 2.5  # standard deviations above the ground that belong to an object
ROUNDS = 5  # of clipping
HOLE = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)


def normalised(
    blocks: Float32[np.ndarray, "blocks nouns frames H W"],
) -> tuple[Float32[np.ndarray, "nouns frames H W"], Float[np.ndarray, " nouns"]]:
    """One map per noun, of which 0 is the ground and 1 what all blocks take for the frame's peak; and the nouns' peaks.

    In each block and frame by itself a token above all its neighbours is cut to the highest of them (sinks), the ground
    taken off, and the frame scaled to its own peak (a causal VAE's first frame stands alone); then blocks are averaged.
    So a peak that is elsewhere in every block, of a noun that isn't there, comes out low. A frame far fainter than the
    others has nothing of the noun, and isn't blown up. The nouns' own peaks are means over blocks, in the maps' unit.
    """
    maps = np.minimum(blocks, _highest_neighbour(blocks)).astype(np.float32)
    maps = maps - ground(maps)[0]
    number = max(2, round(TOP * maps.shape[-1] * maps.shape[-2]))
    flat = maps.reshape(*maps.shape[:-2], -1)
    number = min(number, flat.shape[-1])
    peaks = np.partition(flat, -number, axis=-1)[..., -number:].mean(axis=-1)
    typical = np.median(peaks, axis=2, keepdims=True)
    scale = np.clip(peaks, typical / FAINTEST, typical * BRIGHTEST)[..., None, None]
    shares = np.divide(maps, scale, out=np.zeros_like(maps), where=scale > 0).mean(axis=0)
    return np.asarray(shares - ground(shares)[0], dtype=np.float32), typical[..., 0].mean(axis=0, dtype=np.float64)


def _highest_neighbour(maps: Float32[np.ndarray, "... H W"]) -> Float32[np.ndarray, "... H W"]:
    around = HOLE.reshape((1,) * (maps.ndim - 2) + HOLE.shape)
    return np.asarray(ndimage.maximum_filter(maps, footprint=around, mode="nearest"))


def ground(
    maps: Float32[np.ndarray, "... H W"],
) -> tuple[Float32[np.ndarray, "... 1 1"], Float32[np.ndarray, "... 1 1"]]:
    """Level and standard deviation of what isn't an object: median and MAD, with what is far above them left out."""
    left = maps
    for _ in range(ROUNDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a flat map: nothing is below its level
            level = np.nanmedian(left, axis=(-2, -1), keepdims=True)
            spread = 1.4826 * np.nanmedian(np.abs(left - level), axis=(-2, -1), keepdims=True)
        left = np.where(maps <= level + CLIPPED * spread, maps, np.float32(np.nan))
    return level.astype(np.float32), spread.astype(np.float32)
