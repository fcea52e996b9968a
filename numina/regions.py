"""What a layout is refined to: a region per row and noun, and the refinement itself (method.md §4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Int8, Int16
from scipy import ndimage

from numina.layout import Layout

Mask = Bool[np.ndarray, "H W"]
ClipMask = Bool[np.ndarray, "frames H W"]
Template = Bool[np.ndarray, "h w"]
Labels = Int16[np.ndarray, "frames H W"]


class Region(IntEnum):
    """What guidance does to a row for one noun."""

    NONE = 0  # no instance of this noun here
    KEEP = 1  # an instance that stays
    REMOVE = 2  # an instance that must go
    ADD_DISC = 3  # a new instance without anything to copy from in this frame
    ADD_COPY = 4  # a new instance, modelled on the frame's REFERENCE
    REFERENCE = 5  # stays, and is what this frame's copies are modelled on


@dataclass(frozen=True)
class Refinement:
    """A layout with the asked counts, as far as there was room, and how it differs from the identified one."""

    layout: Layout
    regions: Int8[np.ndarray, "nouns frames H W"]  # of Region
    shortfall: tuple[int, ...]  # per noun: instances missing from the frame that has the fewest; 0 where all are there


def remove_smallest(labels: Int16[np.ndarray, "*clip"], regions: Int8[np.ndarray, "*clip"], count: int) -> None:
    """Mark all but the ``count`` largest instances for removal, in place."""
    present = by_area(labels)
    for label in present[: max(0, len(present) - count)]:
        regions[labels == label] = Region.REMOVE
        labels[labels == label] = 0


def by_area(labels: Int16[np.ndarray, ...]) -> list[int]:
    """Labels of the instances in these frames, smallest first; of equal ones the lower label."""
    areas = np.bincount(labels.ravel())
    return sorted((label for label in range(1, len(areas)) if areas[label]), key=lambda label: (areas[label], label))


def bounded(mask: Mask) -> Template:
    """A mask that isn't empty, cut to its bounding box."""
    return np.asarray(mask[ndimage.find_objects(mask.astype(np.int8))[0]])


def edited(regions: Int8[np.ndarray, "nouns frames H W"], margin: int) -> ClipMask:
    """Tokens no farther than ``margin`` (in rows and in columns) from what is removed or added, of any noun."""
    changed = np.isin(regions, (Region.REMOVE, Region.ADD_DISC, Region.ADD_COPY)).any(axis=0)
    return grown(np.asarray(changed), margin)


def grown(mask: ClipMask, margin: int) -> ClipMask:
    """Tokens no farther than ``margin`` (in rows and in columns) from the mask's, in each frame."""
    reach = min(margin, max(mask.shape[1:]))
    near = np.ones((1, 2 * reach + 1, 2 * reach + 1), dtype=bool)
    return np.asarray(ndimage.binary_dilation(mask, structure=near))


def disc(radius: float) -> Template:
    """Tokens within ``radius``, rounded to whole tokens, of the middle one."""
    reach = int(radius + 0.5)
    row, column = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(row**2 + column**2 <= reach**2)
