"""How well counts are met and clips hold together (arXiv 2604.08546 §4), and how sure a comparison of strategies is.

Per clip, from detected counts per frame and noun: a clip that was never made, or can't be read, is passed as ``None``
and scores 0 in every share: skipping it would pay for failing. Errors (MAE, bias) count it as if nothing was detected.
Over clips, the prompt is the unit: pass one value per prompt, a mean over its samples.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

RESAMPLED = 2000
"""Prompts from which on intervals and p come from their limits, not from resamples: of so many the two differ by less
than 2,000 resamples differ from another 2,000, and a million prompts would take hours."""
RESAMPLED_AT_ONCE = 2_000_000  # values: a bootstrap of many prompts would take prompts × prompts of memory

Detected = Integer[np.ndarray, "frames nouns"] | None
Values = Sequence[float] | Float[np.ndarray, " prompts"]


def count_accuracy(detected: Detected, asked: Sequence[int]) -> float:
    """CountAcc of one clip: per frame the share of nouns with exactly the asked count, mean over frames; in [0, 1]."""
    if _missing(detected):
        return 0.0
    return float((_errors(detected, asked) == 0).mean())


def within_one_accuracy(detected: Detected, asked: Sequence[int]) -> float:
    """Like :func:`count_accuracy`, but a count off by one is right too; in [0, 1]."""
    if _missing(detected):
        return 0.0
    return float((np.abs(_errors(detected, asked)) <= 1).mean())


def all_frames_exact(detected: Detected, asked: Sequence[int]) -> float:
    """1 where every noun has its asked count in every frame, else 0."""
    if _missing(detected):
        return 0.0
    return float((_errors(detected, asked) == 0).all())


def mean_absolute_error(detected: Detected, asked: Sequence[int]) -> float:
    """Mean of |detected − asked| over frames and nouns, in instances."""
    return float(np.abs(_errors(detected, asked)).mean())


def signed_bias(detected: Detected, asked: Sequence[int]) -> float:
    """Mean of detected − asked over frames and nouns, in instances: above 0 is too many."""
    return float(_errors(detected, asked).mean())


def count_stability(detected: Detected) -> float:
    """Share of neighbouring frame pairs, over nouns, whose count doesn't change; 1 for a single frame, 0 if missing."""
    if detected is None or _missing(detected):
        return 0.0
    return float((np.diff(detected, axis=0) == 0).mean()) if len(detected) > 1 else 1.0


def temporal_consistency(frames: Float[np.ndarray, "frames D"]) -> float:
    """Mean cosine of neighbouring frames' embeddings, in [−1, 1]; 1 for a single frame (method.md §7)."""
    if len(frames) == 0:
        raise ValueError("frames is empty, but consistency is over a clip's frames: give at least one embedding")
    unit = _unit(frames)
    return float((unit[1:] * unit[:-1]).sum(axis=1).mean()) if len(frames) > 1 else 1.0


def clip_score(frames: Float[np.ndarray, "frames D"], text: Float[np.ndarray, " D"]) -> float:
    """Mean cosine of frames' embeddings with the text's × 100, in [−100, 100] (method.md §7)."""
    if len(frames) == 0:
        raise ValueError("frames is empty, but a score is over a clip's frames: give at least one embedding")
    return float(100 * (_unit(frames) @ _unit(text[None])[0]).mean())


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and where it lies with the asked confidence."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What one strategy has more than another on the same prompts."""

    mean: float  # of first − second
    low: float
    high: float
    p_value: float  # how often random signs of the differences do as much, two-sided


def bootstrap_interval(values: Values, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of prompts' values with its bootstrap interval at `level`, bias-corrected and accelerated (BCa).

    Where that can't be had, all values being equal or one alone, the interval is the mean itself. Of more than
    RESAMPLED values it is what BCa tends to (Hall 1988, "Theoretical comparison of bootstrap confidence intervals"):
    mean + s/√n · (z + γ (2z² + 1) / (6√n)), with the skewness γ and the normal quantiles z.
    """
    sample = _sample(values, "values")
    _check_level(level, resamples)
    mean = float(sample.mean())
    if np.ptp(sample) == 0:
        return Interval(mean=mean, low=mean, high=mean)
    low, high = _resampled(sample, level, resamples, seed) if len(sample) <= RESAMPLED else _limits(sample, level)
    return Interval(mean=mean, low=low, high=high)


def paired_difference(
    first: Values, second: Values, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Difference:
    """What `first` has more than `second`, prompt by prompt: mean, bootstrap interval, and p by flipping signs.

    Under the hypothesis that both are alike a prompt's difference has either sign: p is the share of sign patterns,
    all of them where they are at most `resamples`, whose mean is as far from 0; of more than RESAMPLED prompts the sum
    of the signed differences is taken as normal.
    """
    one, other = _sample(first, "first"), _sample(second, "second")
    if len(one) != len(other):
        raise ValueError(
            f"first has {len(one)} values and second {len(other)}, but they are paired: give the same prompts' values"
        )
    differences = one - other
    found = bootstrap_interval(differences, level, resamples, seed)
    return Difference(mean=found.mean, low=found.low, high=found.high, p_value=_sign_test(differences, resamples, seed))


def agreement(
    first: Integer[np.ndarray, "frames_of_first nouns"],
    second: Integer[np.ndarray, "frames_of_second nouns"],
    first_every: int = 1,
    second_every: int = 1,
) -> float:
    """Share of (frame, noun) where two judges count alike, on the frames that both judged; in [0, 1].

    Judges that look at every k-th frame have the first in common, and every one of the least common multiple.
    """
    if first_every < 1 or second_every < 1:
        raise ValueError(f"every is {first_every} and {second_every}, but both must be at least 1")
    step = int(np.lcm(first_every, second_every))
    one, other = first[:: step // first_every], second[:: step // second_every]
    if one.shape != other.shape or one.size == 0:
        raise ValueError(
            f"the judges' frames in common are {one.shape} and {other.shape} (frames, nouns): give counts of one clip"
            " and the same nouns, with the `every` of each judge"
        )
    return float((one == other).mean())


def _resampled(sample: Float[np.ndarray, " prompts"], level: float, resamples: int, seed: int) -> tuple[float, float]:
    from scipy import stats  # half a second, for those who compare alone

    def bounds(method: str) -> tuple[float, float]:
        found: Any = stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=level,
            n_resamples=resamples,
            method=method,
            rng=seed,
            batch=max(1, RESAMPLED_AT_ONCE // len(sample)),
        ).confidence_interval
        return float(found.low), float(found.high)

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so where BCa is undefined; the plain percentiles are taken there
        low, high = bounds("BCa")
        return (low, high) if np.isfinite([low, high]).all() else bounds("percentile")


def _limits(sample: Float[np.ndarray, " prompts"], level: float) -> tuple[float, float]:
    from scipy import stats

    mean, n = float(sample.mean()), len(sample)
    z = float(stats.norm.ppf((1 + level) / 2))
    skewed = float(stats.skew(sample)) * (2 * z * z + 1) / (6 * np.sqrt(n))
    error = float(sample.std()) / np.sqrt(n)
    low, high = (mean + error * (side + skewed) for side in (-z, z))
    return max(float(sample.min()), low), min(float(sample.max()), high)


def _sign_test(differences: Float[np.ndarray, " prompts"], resamples: int, seed: int) -> float:
    if len(differences) == 1 or not differences.any():  # either sign is as far from 0
        return 1.0
    from scipy import stats

    if len(differences) > RESAMPLED:
        far = abs(differences.sum()) / np.sqrt((differences**2).sum())
        return float(2 * stats.norm.sf(far))
    found = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=resamples, rng=seed, vectorized=True
    )
    return float(found.pvalue)


def _sample(values: Values, name: str) -> Float[np.ndarray, " prompts"]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"{name} must be one finite number for each prompt, at least one; got {sample!r:.80}")
    return sample


def _check_level(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, but a confidence lies between 0 and 1: give one such as 0.95")
    if resamples < 100:
        raise ValueError(f"resamples is {resamples}, too few for an interval: give at least 100")


def _unit(embeddings: Float[np.ndarray, "count D"]) -> Float[np.ndarray, "count D"]:
    """Of length 1 each; a vector of zeros stays one."""
    wide = embeddings.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _missing(detected: Detected) -> bool:
    return detected is None or len(detected) == 0


def _errors(detected: Detected, asked: Sequence[int]) -> Integer[np.ndarray, "judged nouns"]:
    """detected − asked per frame and noun; a missing clip is judged as one frame where nothing was detected."""
    if len(asked) == 0:
        raise ValueError("asked is empty, but a clip's counts are judged per noun: give one count for each")
    if detected is None or len(detected) == 0:
        return -np.asarray(asked, dtype=np.int64)[None]
    if detected.shape[1] != len(asked):
        raise ValueError(f"detected has {detected.shape[1]} nouns, asked {len(asked)}: give one column for each noun")
    return detected.astype(np.int64) - np.asarray(asked, dtype=np.int64)
