from collections.abc import Sequence

import numpy as np

from pipelines.judges.boxes import FrameBoxes
from pipelines.judges.links import MAX_GAP, unique_objects


def frame(*lefts: float, noun: int = 0) -> FrameBoxes:
    """Boxes of ten pixels beside each other."""
    boxes = np.array([[left, 0, left + 10, 10] for left in lefts], float).reshape(-1, 4)
    return FrameBoxes(boxes=boxes, scores=np.ones(len(boxes)), nouns=np.full(len(boxes), noun))


def objects(frames: Sequence[FrameBoxes]) -> int:
    return unique_objects(frames, 1)[0]


def test_what_moves_is_one_object() -> None:
    """Two that pass each other, four pixels a frame, are two; their order in the frames doesn't matter."""
    there = [frame(4 * step, 300 - 4 * step) for step in range(30)]
    turned = [frame(300 - 4 * step, 4 * step) if step % 2 else there[step] for step in range(30)]
    assert objects(there) == objects(turned) == 2


def test_a_gap_is_bridged_up_to_its_limit() -> None:
    """One that a detector misses for MAX_GAP frames is still itself, after one more it is another."""
    seen, missed = [frame(0)] * 4, [frame()]
    assert objects(seen + missed * MAX_GAP + seen) == 1
    assert objects(seen + missed * (MAX_GAP + 1) + seen) == 2


def test_flickers_are_no_objects() -> None:
    """A box in one frame of many is none, in a tenth of the frames it is; in a single frame every box is one."""
    steady = [frame(0)] * 40
    assert objects([*steady[:20], frame(0, 50), *steady[21:]]) == 1
    assert objects([*steady[:20], *[frame(0, 50)] * 3, *steady[23:]]) == 1
    assert objects([*steady[:20], *[frame(0, 50)] * 4, *steady[24:]]) == 2
    assert objects([frame(0, 50)]) == 2


def test_nouns_are_linked_apart() -> None:
    """A box of another noun in the same place is no partner; a noun that never shows has no objects."""
    frames = [frame(0)] * 5 + [frame(0, noun=2)] * 5
    assert unique_objects(frames, 3) == (1, 0, 1)
