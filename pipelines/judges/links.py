"""Linking one noun's boxes over a clip's frames, to count its unique objects.

The rule: frame by frame, boxes are matched with the tracks so far, so that the sum of overlaps is highest; a pair must
overlap by MIN_OVERLAP of its union. A box without a partner starts a track. A track that found no box in more than
MAX_GAP judged frames in a row has ended. An object is a track seen in at least MIN_SHARE of the judged frames, and in
two where there are two. What moves by its own size between judged frames can't be linked: judge every frame then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipelines.judges.boxes import Boxes, FrameBoxes, overlaps

MIN_OVERLAP = 0.3  # IoU
MAX_GAP = 3  # judged frames
MIN_SHARE = 0.1  # of the judged frames


@dataclass
class _Track:
    box: np.ndarray  # where it was seen last
    last: int  # judged frame of that
    seen: int = 1  # judged frames


def unique_objects(frames: Sequence[FrameBoxes], nouns: int) -> tuple[int, ...]:
    """How many objects of each noun a clip shows over all its judged frames."""
    least = min(len(frames), max(2, ceil(MIN_SHARE * len(frames))))
    return tuple(
        sum(track.seen >= least for track in _tracks([frame.of(noun) for frame in frames])) for noun in range(nouns)
    )


def _tracks(frames: Sequence[Boxes]) -> list[_Track]:
    tracks: list[_Track] = []
    for index, boxes in enumerate(frames):
        alive = [track for track in tracks if index - track.last <= MAX_GAP + 1]
        partners = _partners([track.box for track in alive], boxes)
        for number, box in enumerate(boxes):
            if number in partners:
                track = alive[partners[number]]
                track.box, track.last, track.seen = box, index, track.seen + 1
            else:
                tracks.append(_Track(box, index))
    return tracks


def _partners(before: Sequence[np.ndarray], now: Boxes) -> dict[int, int]:
    """Box → track."""
    if not before or not len(now):
        return {}
    shared = overlaps(np.stack(before), now)
    shared[shared < MIN_OVERLAP] = 0  # what may not be linked must not sway what may
    return {
        int(box): int(track)
        for track, box in zip(*linear_sum_assignment(shared, maximize=True), strict=True)
        if shared[track, box] > 0
    }
