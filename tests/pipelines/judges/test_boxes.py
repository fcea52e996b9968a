import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.judges.boxes import FrameBoxes, overlaps, without_duplicates

corners = arrays(np.float64, (6, 4), elements=st.integers(0, 20).map(float))


def found(boxes: list[list[float]], scores: list[float], nouns: list[int]) -> FrameBoxes:
    return FrameBoxes(boxes=np.array(boxes, float), scores=np.array(scores), nouns=np.array(nouns))


def test_overlap_by_hand() -> None:
    """Halves of each other share a third of their union; what only touches, or is empty, shares nothing."""
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [1, 1, 1, 1]], float)
    np.testing.assert_allclose(overlaps(boxes[:1], boxes), [[1, 1 / 3, 0, 0]])
    np.testing.assert_array_equal(overlaps(boxes[3:], boxes[3:]), [[0]])


def test_the_best_of_a_noun_s_overlapping_boxes_stays() -> None:
    """Greedy: the second falls to the first; the third, which the second alone covers, stays; so do other nouns."""
    boxes = [[0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10], [0, 0, 10, 10]]
    kept = without_duplicates(found(boxes, [0.9, 0.8, 0.7, 0.1], [0, 0, 0, 1]), 0.5)
    np.testing.assert_array_equal(kept.boxes, [boxes[0], boxes[2], boxes[3]])
    np.testing.assert_array_equal(kept.counts(3), [2, 1, 0])


@given(corners, st.lists(st.integers(0, 1), min_size=6, max_size=6), st.permutations(range(6)))
def test_no_two_that_stay_are_one(places: np.ndarray, nouns: list[int], ranks: list[int]) -> None:
    """What stays overlaps too little to be one object, and what went overlaps a better box that stays."""
    boxes = np.concatenate([np.minimum(places[:, :2], places[:, 2:]), np.maximum(places[:, :2], places[:, 2:])], axis=1)
    frame = FrameBoxes(boxes=boxes, scores=np.array(ranks) / 6, nouns=np.array(nouns))
    kept = without_duplicates(frame, 0.4)
    for noun in range(2):
        mine = kept.of(noun)
        assert (overlaps(mine, mine)[~np.eye(len(mine), dtype=bool)] <= 0.4).all()
    for box, score, noun in zip(frame.boxes, frame.scores, frame.nouns, strict=True):
        if score not in kept.scores:
            better = kept.kept((kept.nouns == noun) & (kept.scores > score))
            assert (overlaps(box[None], better.boxes) > 0.4).any()
