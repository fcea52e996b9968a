"""The released form against plain loops written from its description (method.md, "The `released` preset, exactly")."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN, MeanShift, estimate_bandwidth

from numina.layout import Capture, Layout, identify_layout
from numina.refine import refine
from numina.regions import Region
from tests.numina.scenes import preset

METHOD = preset("released")


def plain_identification(responses: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Labels [nouns, frames, H, W], each noun and frame clustered anew by scikit-learn, token by token."""
    nouns, frames, height, width = responses.shape
    labels = np.zeros(responses.shape, dtype=int)
    for noun in range(nouns):
        for frame in range(frames):
            points = [
                [*components[frame, i, j], 0.5 * i / max(1, height - 1), 0.5 * j / max(1, width - 1)]
                for i in range(height)
                for j in range(width)
            ]
            points = np.array(points, dtype=np.float64)
            bandwidth = estimate_bandwidth(points, quantile=0.2, n_samples=min(1000, len(points)))
            shift = MeanShift(bandwidth=bandwidth if bandwidth > 0 else 0.5, bin_seeding=True).fit(points)
            proposals = shift.labels_.reshape(height, width)
            response = responses[noun, frame]
            bright = np.argwhere(response >= 0.05 * response.max())
            dense = bright[DBSCAN(eps=3, min_samples=5).fit(bright).labels_ >= 0]
            focus = {tuple(token) for token in dense.tolist()}
            for proposal in range(proposals.max() + 1):
                tokens = np.argwhere(proposals == proposal).tolist()
                if sum(tuple(token) in focus for token in tokens) / len(tokens) >= 0.2:
                    labels[noun, frame][proposals == proposal] = labels[noun, frame].max() + 1
    return labels


def plain_refinement(labels: np.ndarray, counts: list[int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Labels with −1 for removed and 100, 101, … for added, regions, and the lack of each noun; token by token."""
    labels = labels.astype(int)
    nouns, frames = labels.shape[:2]
    regions = np.zeros(labels.shape, dtype=int)
    lacks = []
    for noun in range(nouns):
        before: dict[int, tuple[int, int]] = {}
        lack = 0
        for frame in range(frames):
            image = labels[noun, frame]
            found = len(instances(image))
            for _ in range(found - counts[noun]):
                image[tuple(np.array(instances(image)[0][1]).T)] = -1
            centres: dict[int, tuple[int, int]] = {}
            for number in range(counts[noun] - found):
                place = add(image, 100 + number, before.get(number))
                if place is not None:
                    centres[number] = place
            before = centres
            regions[noun, frame] = plain_regions(image)
            lack = max(lack, counts[noun] - len(instances(image)))
        lacks.append(lack)
    return labels, regions, lacks


def instances(image: np.ndarray) -> list[tuple[int, list[tuple[int, int]]]]:
    """(label, tokens) of what is > 0, the smallest first, of equal ones the lower label."""
    tokens: dict[int, list[tuple[int, int]]] = {}
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            if image[i, j] > 0:
                tokens.setdefault(int(image[i, j]), []).append((i, j))
    return sorted(tokens.items(), key=lambda item: (len(item[1]), item[0]))


def add(image: np.ndarray, number: int, last: tuple[int, int] | None) -> tuple[int, int] | None:
    """Write one more instance into a frame; its centre, or None if it doesn't fit."""
    present = instances(image)
    template = present[0][1] if present else [(i, j) for i in range(11) for j in range(11) if in_disc(i, j)]
    top, left = min(i for i, _ in template), min(j for _, j in template)
    template = [(i - top, j - left) for i, j in template]
    h, w = max(i for i, _ in template) + 1, max(j for _, j in template) + 1
    everything = [token for _, tokens in present for token in tokens]
    middle = (image.shape[0] / 2, image.shape[1] / 2)
    if everything:
        middle = tuple(sum(token[axis] for token in everything) / len(everything) for axis in (0, 1))
    best = None
    for row in range(h // 2, image.shape[0], 2):
        for column in range(w // 2, image.shape[1], 2):
            tokens = [(row - h // 2 + i, column - w // 2 + j) for i, j in template]
            if row - h // 2 + h > image.shape[0] or column - w // 2 + w > image.shape[1]:
                continue
            cost = float(sum(image[token] > 0 for token in tokens))
            cost += 1.0 * ((row - middle[0]) ** 2 + (column - middle[1]) ** 2)
            if last is not None:
                cost += 8.0 * ((row - last[0]) ** 2 + (column - last[1]) ** 2)
            if best is None or cost < best[0]:
                best = (cost, (row, column), tokens)
    if best is None:
        return None
    for token in best[2]:
        image[token] = number
    return best[1]


def in_disc(i: int, j: int) -> bool:
    return (i - 5) ** 2 + (j - 5) ** 2 <= 25


def plain_regions(image: np.ndarray) -> np.ndarray:
    existing = [(label, tokens) for label, tokens in instances(image) if label < 100]
    regions = np.where(image > 0, Region.KEEP, Region.NONE)
    regions[image == -1] = Region.REMOVE
    regions[image >= 100] = Region.ADD_COPY if existing else Region.ADD_DISC
    if existing and (image >= 100).any():
        regions[image == existing[0][0]] = Region.REFERENCE
    return regions


def random_layout(random: np.random.Generator) -> Layout:
    """Rectangles anywhere, on each other too; numbers that needn't be dense."""
    nouns, frames = random.integers(1, 3, 2)
    grid = random.integers(9, 19, 2)
    labels = np.zeros((nouns, frames, *grid), dtype=np.int16)
    for noun, frame in np.ndindex(nouns, frames):
        for _ in range(random.integers(0, 6)):
            top, left = random.integers(0, grid)
            h, w = random.integers(1, 6, 2)
            labels[noun, frame, top : top + h, left : left + w] = random.integers(1, 9)
    return Layout(labels)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 7), min_size=2, max_size=2))
def test_refinement_is_the_described_one(seed, counts):
    """Labels, regions and shortfall equal the plain loops' on random layouts."""
    layout = random_layout(np.random.default_rng(seed))
    counts = counts[: len(layout.labels)]
    result = refine(layout, counts, METHOD.refine)
    labels, regions, lacks = plain_refinement(layout.labels, counts)
    np.testing.assert_array_equal(result.layout.labels, np.maximum(labels, 0))
    np.testing.assert_array_equal(result.regions, regions)
    assert list(result.shortfall) == lacks


@pytest.mark.filterwarnings("ignore:Binning data failed")
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 2))
def test_identification_is_the_described_one(seed, noisy, nouns):
    """Labels equal those of scikit-learn's clusterings, one by one, on random captures."""
    random = np.random.default_rng(seed)
    frames, (height, width) = int(random.integers(1, 3)), random.integers(4, 15, 2)
    kinds = random.integers(0, 4, (frames, height // 3 + 1, width // 3 + 1)).repeat(3, 1).repeat(3, 2)
    kinds = kinds[:, :height, :width]
    image = random.random((frames, height, width, 3))
    if not noisy:
        image = 0.05 * image + 0.95 * random.random((4, 3))[kinds]
    responses = random.random((nouns, frames, height, width)) ** random.integers(1, 9)
    responses *= np.where(random.random((nouns, 1, 1, 1, 4)) < 0.5, 1.0, 0.01)[..., kinds][:, 0, 0, 0]
    responses, image = responses.astype(np.float32), image.astype(np.float32)
    layout = identify_layout(Capture(responses, image), METHOD.identify)
    np.testing.assert_array_equal(layout.labels, plain_identification(responses, image))


def test_identification_of_a_whole_frame_is_the_described_one():
    """The same with more tokens than the bandwidth is estimated on."""
    random = np.random.default_rng(3)
    image = np.kron(random.random((1, 5, 7, 3)), np.ones((1, 6, 7, 1))) + 0.05 * random.random((1, 30, 49, 3))
    responses = np.kron(random.random((2, 1, 5, 7)) ** 4, np.ones((1, 1, 6, 7)))
    responses, image = (responses + 0.01 * random.random((2, 1, 30, 49))).astype(np.float32), image.astype(np.float32)
    layout = identify_layout(Capture(responses, image), METHOD.identify)
    assert layout.labels.any()
    np.testing.assert_array_equal(layout.labels, plain_identification(responses, image))


def test_a_disc_that_does_not_fit_is_a_shortfall():
    """Eleven tokens across in a frame of nine: reported, not an error, and not a disc cut off."""
    result = refine(Layout(np.zeros((1, 2, 9, 20), dtype=np.int16)), [3], METHOD.refine)
    assert result.shortfall == (3,)
    assert not result.layout.labels.any()


def test_a_covered_reference_gives_way_to_the_next():
    """A copy may lie on the instance it was copied from: then the smallest that is still there is the reference."""
    labels = np.zeros((1, 1, 9, 9), dtype=np.int16)
    labels[0, 0, 4, 4] = 1
    labels[0, 0, 4, 2:7:4] = 2
    labels[0, 0, 2:7:4, 4] = 2
    result = refine(Layout(labels), [3], METHOD.refine)  # the centroid's own token costs 1, the next candidates 4
    assert result.shortfall == (1,)
    assert result.layout.labels[0, 0, 4, 4] == 100
    np.testing.assert_array_equal(result.regions[0, 0] == Region.REFERENCE, labels[0, 0] == 2)
    alone = np.where(labels == 1, labels, 0)
    result = refine(Layout(alone), [2], METHOD.refine)
    assert result.regions[0, 0, 4, 4] == Region.ADD_DISC
    assert result.shortfall == (1,)


def test_nouns_do_not_see_each_other():
    """An added instance of one noun may lie on another's: each is refined as if it were alone."""
    layout = random_layout(np.random.default_rng(0))
    both = Layout(np.concatenate([layout.labels[:1], layout.labels[:1]]))
    result = refine(both, [6, 6], METHOD.refine)
    np.testing.assert_array_equal(result.regions[0], result.regions[1])


@pytest.mark.parametrize("tracked", [True, False])
def test_a_refined_layout_has_no_tracks(tracked):
    """Each frame is decided alone, so a number means nothing across frames."""
    layout = random_layout(np.random.default_rng(1))
    assert not refine(Layout(layout.labels, tracked), [2] * len(layout.labels), METHOD.refine).layout.tracked
