"""Where a mean of bounded values lies, however often one looks at it while the values come in.

The test martingales of Waudby-Smith and Ramdas ("Estimating means of bounded random variables by betting", JRSSB 2024):
somebody who bets against the mean being m can't become rich unless it isn't m. The interval holds all m against which
the capital stays below 1/α. It is valid for any number of looks, any rule of stopping and any distribution, which
neither a bootstrap nor scipy's intervals are; with few values it is wide, as it must be.
"""

from collections.abc import Sequence

import numpy as np

from numina.metrics import Interval

BETS = (
    0.1,
    0.3,
    0.9,
)  # shares of the capital that are bet, a third each; small ones suit noise, large ones clear cases
GRID = 500  # means that are tried


def mean_interval(values: Sequence[float], alpha: float, low: float = 0.0, high: float = 1.0) -> Interval:
    """The mean of values in [low, high], and the interval that misses their true mean with probability alpha at most,
    at all looks together. Without values it is all of [low, high]."""
    sample = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    if not len(sample):
        return Interval(mean=(low + high) / 2, low=low, high=high)
    means = (np.arange(GRID) + 0.5) / GRID
    with np.errstate(over="ignore"):
        capital = (_capital(sample, means) + _capital(1 - sample, 1 - means)) / 2
    kept = means[capital < 1 / alpha]
    mean = float(sample.mean())
    least = min(mean, float(kept[0]) - 0.5 / GRID) if len(kept) else mean
    most = max(mean, float(kept[-1]) + 0.5 / GRID) if len(kept) else mean
    return Interval(mean=low + mean * (high - low), low=low + least * (high - low), high=low + most * (high - low))


def _capital(sample: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What 1 has become for who bet that values lie above each of the means."""
    gains = sample[:, None] / means
    return np.mean([np.exp(np.log1p(bet * (gains - 1)).sum(axis=0)) for bet in BETS], axis=0)
