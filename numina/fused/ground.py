"""How noisy the ground of a noun's maps is, without torch: a layout is read where importing it costs more than reading.

The same as `numina.fused.responses.ground`, which takes the ground off where the maps are.
"""

import numpy as np
from jaxtyping import Float

CLIPPED = 2.5  # standard deviations above the ground that belong to an object
ROUNDS = 5  # of clipping
MAD = 1.4826  # of a normal distribution's median absolute deviation: its standard deviation


def noise(maps: Float[np.ndarray, "... H W"]) -> Float[np.ndarray, "..."]:
    """Standard deviation of what isn't an object: by the MAD, with what is far above the median left out."""
    tokens = left = maps.reshape(*maps.shape[:-2], -1)
    spread = np.zeros((*tokens.shape[:-1], 1), tokens.dtype)
    for _ in range(ROUNDS):
        level = np.nanmedian(left, axis=-1, keepdims=True)
        spread = MAD * np.nanmedian(np.abs(left - level), axis=-1, keepdims=True)
        left = np.where(tokens <= level + CLIPPED * spread, tokens, np.nan)
    return np.asarray(spread[..., 0])
