"""Bring a layout to the asked counts with as few changes as possible (arXiv 2604.08546 §3.3).

Too many: the smallest instances go. Too few: copies of the smallest instance are added, or discs where there is none.
Nothing else moves. With tracks, what goes or comes is a track, one decision for the clip; else each frame is decided
alone.

Legend: F frames, H W the token grid of a frame. A *place* is the (row, column) of the middle token of a template's
bounding box; a *template* is a small mask, the bounding box of what is to be added.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int8, Int16
from scipy import signal

from numina.config import RefineConfig
from numina.layout import Layout
from numina.regions import (
    ClipMask,
    Labels,
    Mask,
    Refinement,
    Region,
    Template,
    bounded,
    by_area,
    disc,
    grown,
    remove_smallest,
)
from numina.tracks import centroid

Costs = Float[np.ndarray, "H W"]
Place = tuple[int, int]
Templates = list[np.ndarray]  # one by frame, of a size of its own
Shape = tuple[Templates, list[bool]]  # and whether it is a copy of an instance in that very frame
Wish = tuple[bool, int]  # to stay clear of what is removed, too; tokens to keep free around


def refine(layout: Layout, counts: Sequence[int], config: RefineConfig) -> Refinement:
    """Remove the smallest instances or add copies until every noun has its count; deterministic.

    An added instance never overlaps another one, of any noun: where there is no room for a copy a disc is added, and
    where there is none for a disc, nothing is, and ``shortfall`` reports it. With ``placement`` "released" it may
    overlap, see ``refine_released``. Raises ``ValueError`` if there isn't one count per noun, and for a layout without
    frames.
    """
    if len(counts) != len(layout.labels) or any(count < 0 for count in counts):
        raise ValueError(
            f"counts = {list(counts)} for {len(layout.labels)} nouns: give one count of at least 0 for each"
        )
    frames = layout.labels.shape[1]
    if not layout.labels.size:
        raise ValueError(f"a layout of shape {layout.labels.shape}: give at least one noun, one frame and one token")
    if config.placement == "released":
        from numina.released import refine_released  # it is made of this module's parts

        return refine_released(layout, counts, config)
    # With tracks the clip is one decision; without, every frame is, and added instances only stay near their last.
    blocks = [slice(0, frames)] if layout.tracked else [slice(frame, frame + 1) for frame in range(frames)]
    labels = layout.labels.copy()
    regions = np.where(labels > 0, Region.KEEP, Region.NONE).astype(np.int8)
    previous: dict[tuple[int, int], Place] = {}
    for block in blocks:
        _refine_block(labels[:, block], regions[:, block], counts, previous, config)
    refined = replace(layout, labels=labels)
    lacking = np.asarray(counts)[:, None] - refined.counts()
    return Refinement(refined, regions, tuple(lacking.max(axis=1).tolist()))


def _refine_block(
    labels: Int16[np.ndarray, "nouns frames H W"],
    regions: Int8[np.ndarray, "nouns frames H W"],
    counts: Sequence[int],
    previous: dict[tuple[int, int], Place],
    config: RefineConfig,
) -> None:
    """Refine some frames, in place, as one decision: a label is one instance in all of them.

    ``previous`` has the last place of each noun's 1st, 2nd, … added instance, from the blocks before.
    """
    for noun, count in enumerate(counts):  # all removals first: additions must know what stays, of any noun
        remove_smallest(labels[noun], regions[noun], count)
    for noun, count in enumerate(counts):
        missing = count - len(by_area(labels[noun]))
        if missing <= 0:
            continue
        shapes = _shapes(labels[noun], config)
        _mark_reference(labels[noun], regions[noun])
        wishes = _wishes(config.margin)
        added = 0
        while added < missing and shapes:
            templates, copied = shapes[0]
            path = _find_room(labels, regions, noun, templates, previous.get((noun, added)), wishes, config)
            if path is None:  # what fits nowhere now fits nowhere later: a lack shows in the counts
                shapes, wishes = shapes[1:], _wishes(config.margin)
                continue
            _draw(labels[noun], regions[noun], templates, copied, path)
            previous[noun, added] = path[-1]
            added += 1


def _mark_reference(labels: Labels, regions: Int8[np.ndarray, "frames H W"]) -> None:
    for label in by_area(labels)[:1]:
        regions[labels == label] = Region.REFERENCE


def _shapes(labels: Labels, config: RefineConfig) -> list[Shape]:
    """What an added instance may look like: a copy of the smallest instance, and where none fits or there is no
    instance a disc, if it is smaller."""
    small = disc(config.disc_radius)
    discs = [small] * len(labels), [False] * len(labels)
    smallest = by_area(labels)[:1]
    if not smallest:
        return [discs]
    copies = _copies(labels, smallest)
    return [copies, discs] if small.sum() < max(template.sum() for template in copies[0]) else [copies]


def _copies(labels: Labels, smallest: Sequence[int]) -> Shape:
    """The smallest instance's mask; in frames without it, its mask in the nearest frame."""
    masks = labels == smallest[0]
    seen = np.flatnonzero(masks.any(axis=(1, 2)))
    nearest = [int(seen[np.abs(seen - frame).argmin()]) for frame in range(len(labels))]
    templates = [bounded(masks[frame]) for frame in nearest]
    return templates, [frame == shown for frame, shown in enumerate(nearest)]


def _find_room(
    labels: Int16[np.ndarray, "nouns frames H W"],
    regions: Int8[np.ndarray, "nouns frames H W"],
    noun: int,
    templates: Templates,
    last: Place | None,
    wishes: list[Wish],
    config: RefineConfig,
) -> list[Place] | None:
    """The cheapest place in every frame by the first of the wishes that can be had; None if there is no room.

    Wishes that can't be had are taken off the list: the instances after this one find no more room.
    """
    instances = np.any(labels > 0, axis=0)
    removed = np.any(regions == Region.REMOVE, axis=0)
    while wishes:
        blocked = _blocked(instances, removed, wishes[0])
        costs = np.stack(
            [place_costs(*frame, config.center_weight) for frame in zip(templates, blocked, labels[noun], strict=True)]
        )
        if last is not None:
            costs[0] += config.temporal_weight * _squared_distance(costs.shape[1:], last)
        path = best_path(costs, config.temporal_weight, config.max_move)
        if path is not None:
            return path
        wishes.pop(0)
    return None


def _wishes(margin: int) -> list[Wish]:
    """From the strictest wish to the least that keeps an added instance countable.

    Where an instance of another noun is being erased is a poor place to grow something, but better than none.
    """
    return [(clear, gap) for clear in (True, False) for gap in range(margin, min(margin, 1) - 1, -1)]


def _blocked(instances: ClipMask, removed: ClipMask, wish: Wish) -> ClipMask:
    """What an added instance must stay clear of."""
    clear, gap = wish
    return grown(instances | (removed & clear), gap)


def place_costs(template: Template, blocked: Mask, labels: Int16[np.ndarray, "H W"], center_weight: float) -> Costs:
    """Cost of each place in one frame, for all at once: ∞ where the template overlaps ``blocked`` or sticks out, else
    λc·‖p − centre‖², the centre being that of the noun's instances in the frame (the frame's own if there are none).
    """
    height, width = template.shape
    costs = np.full(blocked.shape, np.inf)
    if height > blocked.shape[0] or width > blocked.shape[1]:
        return costs
    overlap = signal.correlate(blocked.astype(np.float64), template.astype(np.float64), mode="valid")
    free = costs[height // 2 :, width // 2 :][: overlap.shape[0], : overlap.shape[1]]
    free[overlap < 0.5] = 0.0  # FFT leaves ~1e-13 where the count is 0
    centre = centroid(labels > 0) if labels.any() else (np.array(labels.shape) - 1) / 2
    return costs + center_weight * _squared_distance(costs.shape, centre)


def _squared_distance(grid: tuple[int, ...], place: Place | Float[np.ndarray, "2"]) -> Costs:
    row, column = np.ogrid[: grid[0], : grid[1]]
    return np.asarray((row - float(place[0])) ** 2 + (column - float(place[1])) ** 2)


def best_path(
    costs: Float[np.ndarray, "frames H W"], temporal_weight: float, max_move: float = np.inf
) -> list[Place] | None:
    """Places p of the frames that minimise Σ costs[f, p_f] + λt·Σ ‖p_f − p_{f−1}‖²; None if all paths cost ∞.

    No step is longer than ``max_move`` tokens in rows or in columns. Exact, by dynamic programming over the frames: the
    published rule goes frame by frame, and can walk into a corner from which the next free place is far away. For a
    single frame the two are the same. First of equals.
    """
    total, origins = costs[0], []
    steps = np.abs(np.subtract.outer(np.arange(max(total.shape)), np.arange(max(total.shape))))
    step_costs = np.where(steps <= max_move, temporal_weight * steps**2, np.inf)
    for frame in costs[1:]:
        total, origin = _cheapest_step(total, step_costs)
        total = total + frame
        origins.append(origin)
    if not np.isfinite(total).any():
        return None
    row, column = divmod(int(total.argmin()), total.shape[1])
    path = [(row, column)]
    for origin in reversed(origins):
        row, column = (int(x) for x in origin[row, column])
        path.append((row, column))
    return path[::-1]


def _cheapest_step(
    total: Costs, step_costs: Float[np.ndarray, "side side"]
) -> tuple[Costs, Int16[np.ndarray, "H W 2"]]:
    """For each place q the least total[p] + λt·‖q − p‖², and that p. Squares separate: rows first, then columns."""
    height, width = total.shape
    by_row = total[None] + step_costs[:height, :height, None]  # [to row, from row, column]
    from_row = by_row.argmin(axis=1)
    by_column = by_row.min(axis=1)[:, None] + step_costs[None, :width, :width]  # [row, to column, from column]
    from_column = by_column.argmin(axis=2)
    origin = np.stack([np.take_along_axis(from_row, from_column, axis=1), from_column], axis=-1)
    return by_column.min(axis=2), origin.astype(np.int16)


def _draw(
    labels: Labels,
    regions: Int8[np.ndarray, "frames H W"],
    templates: Templates,
    copied: list[bool],
    path: list[Place],
) -> None:
    """Write an added instance into every frame."""
    number = labels.max() + 1
    for frame, (template, copy, (row, column)) in enumerate(zip(templates, copied, path, strict=True)):
        top, left = row - template.shape[0] // 2, column - template.shape[1] // 2
        box = (frame, slice(top, top + template.shape[0]), slice(left, left + template.shape[1]))
        labels[box][template] = number
        regions[box][template] = Region.ADD_COPY if copy else Region.ADD_DISC
