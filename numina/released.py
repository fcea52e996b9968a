"""Refinement as the authors' released code does it, as the yardstick (method.md, "The `released` preset, exactly").

Every frame and noun is decided alone, and greedily: what is added may lie on other instances of its noun, doesn't see
the other nouns at all, and stays near its place in the frame before by a cost only.

Legend: F frames, H W the token grid of a frame. A *centre* is the (row, column) of token (⌊h/2⌋, ⌊w/2⌋) of a template
of h × w tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int8, Int16
from scipy import signal

from numina.config import RefineConfig
from numina.layout import Layout
from numina.regions import Refinement, Region, bounded, by_area, disc, remove_smallest

FIRST_ADDED = 100  # label of the first added instance of a frame and noun
STRIDE = 2  # tokens between candidate centres

Frame = Int16[np.ndarray, "H W"]
Template = Bool[np.ndarray, "h w"]
Place = tuple[int, int]


def refine_released(layout: Layout, counts: Sequence[int], config: RefineConfig) -> Refinement:
    """Remove the smallest instances or add copies, ``counts`` being one for each noun; deterministic.

    Added instances are numbered 100, 101, … (after the existing ones, should those reach that far). Where one lies on
    an existing instance its tokens are the added one's, the later write; an instance that is covered whole is gone,
    which the released code doesn't notice and ``shortfall`` reports. So it does a template that is larger than the
    frame, which the released code can't place. ``ADD_COPY`` and ``REFERENCE`` go by what is left of the existing
    instances once all is added.
    """
    labels = layout.labels.copy()
    regions = np.where(labels > 0, Region.KEEP, Region.NONE).astype(np.int8)
    for noun, count in enumerate(counts):
        places: list[Place] = []
        for frame in range(labels.shape[1]):
            places = _refine_frame(labels[noun, frame], regions[noun, frame], count, places, config)
    refined = replace(layout, labels=labels, tracked=False)
    lacking = np.asarray(counts)[:, None] - refined.counts()
    return Refinement(refined, regions, tuple(lacking.max(axis=1).tolist()))


def _refine_frame(
    labels: Frame, regions: Int8[np.ndarray, "H W"], count: int, previous: list[Place], config: RefineConfig
) -> list[Place]:
    """Bring one frame of one noun to its count, in place; returns the centres of what was added, ``previous`` being
    those of the frame before.
    """
    missing = count - len(by_area(labels))
    first = max(FIRST_ADDED, int(labels.max()) + 1)
    remove_smallest(labels, regions, count)
    places: list[Place] = []
    for added in range(missing):
        template = _template(labels, config)
        place = _cheapest_place(template, labels, previous[added] if added < len(previous) else None, config)
        if place is None:
            break
        top, left = place[0] - template.shape[0] // 2, place[1] - template.shape[1] // 2
        box = np.s_[top : top + template.shape[0], left : left + template.shape[1]]
        labels[box][template] = first + added
        places.append(place)
    existing = by_area(np.where(labels < first, labels, 0))
    regions[labels >= first] = Region.ADD_COPY if existing else Region.ADD_DISC
    if places and existing:
        regions[labels == existing[0]] = Region.REFERENCE
    return places


def _template(labels: Frame, config: RefineConfig) -> Template:
    """The smallest instance there is now, added ones among them, in its bounding box; without any, a disc."""
    smallest = by_area(labels)[:1]
    return bounded(labels == smallest[0]) if smallest else disc(config.disc_radius)


def _cheapest_place(template: Template, labels: Frame, last: Place | None, config: RefineConfig) -> Place | None:
    """The first of the cheapest candidates in reading order; None if the template is larger than the frame.

    Cost: tokens of the template on instances + λc·‖p − centroid of all instances‖² + λt·‖p − last‖². Without
    instances their centroid is (H/2, W/2), half a token past the frame's own.
    """
    height, width = template.shape
    if height > labels.shape[0] or width > labels.shape[1]:
        return None
    present = labels > 0
    # In whole numbers: an overlap that is off by a rounding would break ties.
    overlap = signal.correlate(present.astype(np.int64), template.astype(np.int64), mode="valid")[::STRIDE, ::STRIDE]
    row, column = (STRIDE * np.arange(n) + side // 2 for n, side in zip(overlap.shape, template.shape, strict=True))
    centroid = np.argwhere(present).mean(axis=0) if present.any() else np.array(labels.shape) / 2
    costs = overlap + config.center_weight * ((row[:, None] - centroid[0]) ** 2 + (column - centroid[1]) ** 2)
    if last is not None:
        costs = costs + config.temporal_weight * ((row[:, None] - last[0]) ** 2 + (column - last[1]) ** 2)
    best = np.unravel_index(costs.argmin(), costs.shape)
    return int(row[best[0]]), int(column[best[1]])
