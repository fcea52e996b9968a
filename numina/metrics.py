"""How well counts are met (arXiv 2604.08546 §4): per clip, from detected counts per frame and noun.

A clip that was never made, or can't be read, is passed as ``None`` and scores 0 in every share: skipping it would pay
for failing. Errors (MAE, bias) count it as if nothing was detected.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

Detected = Integer[np.ndarray, "frames nouns"] | None


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
