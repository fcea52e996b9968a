"""Boxes that a detector finds in one frame: which of them count, for which noun, and which are the same object twice.

Boxes are [x0, y0, x1, y1] in pixels of the video, x to the right and y down.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

Boxes = Float[np.ndarray, "boxes 4"]


@dataclass(frozen=True, kw_only=True)
class FrameBoxes:
    """What counts in one frame."""

    boxes: Boxes
    scores: Float[np.ndarray, " boxes"]  # what duplicates are settled by, in [0, 1]
    nouns: Int[np.ndarray, " boxes"]  # index into the case's targets

    def of(self, noun: int) -> Boxes:
        return self.boxes[self.nouns == noun]

    def counts(self, nouns: int) -> Int[np.ndarray, " nouns"]:
        return np.bincount(self.nouns, minlength=nouns)

    def kept(self, keep: Bool[np.ndarray, " boxes"]) -> "FrameBoxes":
        return FrameBoxes(boxes=self.boxes[keep], scores=self.scores[keep], nouns=self.nouns[keep])


def overlaps(first: Boxes, second: Boxes) -> Float[np.ndarray, "first second"]:
    """Intersection over union of every pair, in [0, 1]; 0 where both are empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    union = _areas(first)[:, None] + _areas(second)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def without_duplicates(found: FrameBoxes, threshold: float) -> FrameBoxes:
    """Of boxes of one noun that overlap by more than `threshold`, the one with the highest score.

    Greedy non-maximum suppression, within a noun: a cat on a sofa is no duplicate of the sofa.
    """
    order = np.argsort(-found.scores, kind="stable")
    same = (overlaps(found.boxes, found.boxes) > threshold) & (found.nouns[:, None] == found.nouns[None])
    keep = np.zeros(len(order), dtype=bool)
    for index in order:
        keep[index] = not (same[index] & keep).any()
    return found.kept(keep)


def _areas(boxes: Boxes) -> Float[np.ndarray, " boxes"]:
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
