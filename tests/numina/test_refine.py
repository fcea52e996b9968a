import dataclasses
import itertools
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from numina.config import RefineConfig
from numina.layout import Layout
from numina.refine import best_path, place_costs, refine
from numina.regions import Region, disc
from tests.numina.scenes import Scene, Square, preset, scenes, uneven_scenes

CONFIG = RefineConfig()
OURS = {name: preset(name) for name in ("paper", "closed")}  # whose placement never overlaps
PRESETS = {**OURS, "released": preset("released")}
ADDED = (Region.ADD_DISC, Region.ADD_COPY)
counts_of_three = st.lists(st.integers(0, 6), min_size=3, max_size=3)


def shapes(labels: np.ndarray) -> dict[int, tuple[bytes, tuple[int, int]]]:
    """Per label of a frame its mask, cut to its bounding box."""
    found = {}
    for label in np.unique(labels[labels > 0]).tolist():
        mask = labels == label
        cut = mask[np.ix_(mask.any(axis=1), mask.any(axis=0))]
        found[label] = cut.tobytes(), cut.shape
    return found


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=40, deadline=None)
@given(scene=scenes(), asked=counts_of_three, tracked=st.booleans())
def test_counts_are_reached_or_the_lack_is_reported(name, scene: Scene, asked, tracked):
    """Every frame ends with the asked count of every noun, less what ``shortfall`` owns up to."""
    asked = asked[: scene.nouns]
    result = refine(scene.layout(tracked=tracked), asked, OURS[name].refine)
    lacking = np.array(asked)[:, None] - result.layout.counts()
    assert (lacking >= 0).all()
    assert lacking.max(axis=1).tolist() == list(result.shortfall)


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=40, deadline=None)
@given(scene=scenes(), asked=counts_of_three, tracked=st.booleans())
def test_only_what_must_change_does(name, scene: Scene, asked, tracked):
    """Kept instances keep their tokens and numbers; nothing is both removed and added; regions say what was done."""
    asked = asked[: scene.nouns]
    before = scene.layout(tracked=tracked).labels
    result = refine(Layout(before, tracked), asked, OURS[name].refine)
    after, regions = result.layout.labels, result.regions
    kept = np.isin(regions, (Region.KEEP, Region.REFERENCE))
    np.testing.assert_array_equal(after[kept], before[kept])
    np.testing.assert_array_equal(before > 0, kept | (regions == Region.REMOVE))
    np.testing.assert_array_equal(after > 0, kept | np.isin(regions, ADDED))
    for noun in range(scene.nouns):
        removed, added = (regions[noun] == Region.REMOVE).any(), np.isin(regions[noun], ADDED).any()
        assert not (removed and added)


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=25, deadline=None)
@given(scene=scenes(), asked=counts_of_three)
def test_no_more_is_removed_than_too_many(name, scene: Scene, asked):
    """Of every noun and frame exactly the surplus goes, whole instances, and none larger than one that stays."""
    layout = scene.layout(tracked=PRESETS[name].identify.tracks)
    result = refine(layout, asked[: scene.nouns], PRESETS[name].refine)
    for noun, frame in np.ndindex(layout.labels.shape[:2]):
        before, removed = layout.labels[noun, frame], result.regions[noun, frame] == Region.REMOVE
        gone = set(np.unique(before[removed]).tolist())
        assert len(gone) == max(0, len(np.unique(before)) - 1 - asked[noun])
        np.testing.assert_array_equal(removed, np.isin(before, list(gone)))
        areas = {label: int((before == label).sum()) for label in np.unique(before[before > 0]).tolist()}
        stay = [area for label, area in areas.items() if label not in gone]
        assert max((areas[label] for label in gone), default=0) <= min(stay, default=10**6)


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=30, deadline=None)
@given(scene=scenes(), asked=counts_of_three)
def test_right_counts_are_left_alone(name, scene: Scene, asked):
    """Where the counts are right nothing changes; so a refinement of a refinement is itself."""
    config = PRESETS[name].refine
    layout = scene.layout(tracked=PRESETS[name].identify.tracks)
    same = refine(layout, scene.counts(), config)
    np.testing.assert_array_equal(same.layout.labels, layout.labels)
    np.testing.assert_array_equal(same.regions, np.where(layout.labels > 0, Region.KEEP, Region.NONE))
    once = refine(layout, asked[: scene.nouns], config)
    assume(not any(once.shortfall))
    twice = refine(once.layout, asked[: scene.nouns], config)
    np.testing.assert_array_equal(twice.layout.labels, once.layout.labels)
    assert set(np.unique(twice.regions)) <= {Region.NONE, Region.KEEP}


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=30, deadline=None)
@given(scene=scenes(), asked=counts_of_three)
def test_added_instances_lie_whole_in_the_frame(name, scene: Scene, asked):
    """What is added has the shape of the smallest instance, or of a disc, none of it cut off by the frame's edge."""
    layout = scene.layout(tracked=OURS[name].identify.tracks)
    result = refine(layout, asked[: scene.nouns], OURS[name].refine)
    round_shape = disc(OURS[name].refine.disc_radius)
    for noun, frame in np.ndindex(layout.labels.shape[:2]):
        added = np.isin(result.regions[noun, frame], ADDED)
        existing = shapes(layout.labels[noun, frame]).values() or [(round_shape.tobytes(), round_shape.shape)]
        assert set(shapes(result.layout.labels[noun, frame] * added).values()) <= set(existing)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("name", OURS)
@settings(max_examples=25, deadline=None)
@given(scene=uneven_scenes(), missing=st.integers(0, 1))
def test_a_flipped_layout_is_refined_alike(name, axis, scene: Scene, missing):
    """In a mirrored clip the mirrored place is taken, where one place is cheapest, and one as cheap where several are.

    True of templates with a middle token: one of an even height has its place half a token below its middle.
    """
    config = OURS[name].refine
    layout = scene.layout(tracked=OURS[name].identify.tracks)
    asked = scene.counts()
    asked[missing % scene.nouns] += 1
    result = refine(layout, asked, config)
    mirrored = refine(dataclasses.replace(layout, labels=np.flip(layout.labels, axis).copy()), asked, config)
    assert mirrored.shortfall == result.shortfall
    assert price(np.flip(mirrored.regions, axis), layout) == pytest.approx(price(result.regions, layout))
    if not any(result.shortfall) and cheapest_places(layout.labels[:, 0], missing % scene.nouns, config) == 1:
        np.testing.assert_array_equal(np.flip(mirrored.regions, axis), result.regions)
        np.testing.assert_array_equal(np.flip(mirrored.layout.labels, axis), result.layout.labels)


def middle(labels: np.ndarray) -> np.ndarray:
    """Centroid of a noun's instances in a frame, the frame's own without any."""
    return np.argwhere(labels > 0).mean(axis=0) if labels.any() else (np.array(labels.shape) - 1) / 2


def price(regions: np.ndarray, layout: Layout) -> float:
    """Sum of squared distances from the added instance of each frame to the middle of its noun's others."""
    total = 0.0
    for noun, frame in np.ndindex(regions.shape[:2]):
        added = np.argwhere(np.isin(regions[noun, frame], ADDED))
        if len(added):
            total += float(((added.mean(axis=0) - middle(layout.labels[noun, frame])) ** 2).sum())
    return total


def cheapest_places(labels: np.ndarray, noun: int, config: RefineConfig) -> int:
    """How many places are cheapest for one more instance in a frame, by trying all."""
    exists = labels[noun].any()
    template = np.ones((3, 3), dtype=bool) if exists else disc(config.disc_radius)
    reach = template.shape[0] // 2
    occupied = np.argwhere(labels.any(axis=0))
    for margin in range(config.margin, 0, -1):
        costs = []
        for place in itertools.product(*(range(reach, side - reach) for side in labels.shape[1:])):
            tokens = np.argwhere(template) + place - reach
            if np.abs(tokens[:, None] - occupied).max(axis=2).min() > margin:
                costs.append(((np.array(place) - middle(labels[noun])) ** 2).sum())
        if costs:
            return int((np.array(costs) < min(costs) + 1e-6).sum())
    return 0


@pytest.mark.parametrize("name", PRESETS)
def test_none_asked_removes_all(name):
    """A target of 0 leaves no instance of that noun, and the others alone."""
    scene = Scene((20, 20), 3, 2, (Square(0, 1, 1, 4, 0), Square(0, 10, 1, 2, 2), Square(1, 10, 12, 3, 0)))
    layout = scene.layout(tracked=PRESETS[name].identify.tracks)
    result = refine(layout, [0, 1], PRESETS[name].refine)
    assert result.shortfall == (0, 0)
    assert result.layout.counts().tolist() == [[0] * 3, [1] * 3]
    np.testing.assert_array_equal(result.regions[0] == Region.REMOVE, layout.labels[0] > 0)


@pytest.mark.parametrize(("name", "side"), [("closed", 0), ("closed", 1), ("paper", 1), ("released", 4)])
def test_a_hundred_asked_takes_seconds(name, side):
    """As many as there is room for are added to a 480p clip, the rest is reported, in bounded time."""
    labels = np.zeros((2, 21, 30, 52), dtype=np.int16)
    for noun, frame in np.ndindex(labels.shape[:2]):
        labels[noun, frame, 10 * noun + 5 :, frame + 5 :][:side, :side] = 1
    began = time.process_time()
    method = PRESETS[name].scaled_to(30 * 52)
    result = refine(Layout(labels, tracked=method.identify.tracks), [100, 100], method.refine)
    assert time.process_time() - began < 10  # about 2 s alone on a core
    lacking = 100 - result.layout.counts()
    assert lacking.max(axis=1).tolist() == list(result.shortfall)
    assert result.layout.counts().sum() > labels.any(axis=(2, 3)).sum()
    if name in OURS:
        assert ((result.layout.labels > 0).sum(axis=0) <= 1).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_frame_of_one_token(name):
    """The least frame there is: full or without room for a disc, never an error."""
    config = PRESETS[name].refine
    tracked = PRESETS[name].identify.tracks
    full, empty = (Layout(np.full((1, 2, 1, 1), n, dtype=np.int16), tracked) for n in (1, 0))
    assert refine(full, [0], config).shortfall == (0,)
    assert refine(empty, [0], config).shortfall == (0,)
    assert refine(full, [1], config).shortfall == (0,)
    assert refine(full, [2], config).shortfall == (1,)
    assert refine(empty, [1], config).shortfall == (1,)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(1, 0, 4, 5), (0, 2, 4, 5), (1, 2, 0, 5)])
def test_a_layout_of_nothing_is_refused(name, shape):
    """No nouns, no frames or no tokens: an error that says so."""
    with pytest.raises(ValueError, match="at least one"):
        refine(Layout(np.zeros(shape, dtype=np.int16)), [1] * shape[0], PRESETS[name].refine)


@settings(max_examples=60, deadline=None)
@given(scenes(), counts_of_three, st.booleans(), st.integers(1, 2))
def test_added_instances_stay_apart(scene: Scene, asked, tracked, margin):
    """No two instances overlap or touch, of any nouns, so that what was added can be counted."""
    result = refine(scene.layout(tracked=tracked), asked[: scene.nouns], RefineConfig(margin=margin))
    for frame in range(scene.frames):
        labels = result.layout.labels[:, frame]
        assert ((labels > 0).sum(axis=0) <= 1).all()
        instances = [
            np.argwhere(labels[noun] == label)
            for noun in range(scene.nouns)
            for label in np.unique(labels[noun])
            if label > 0
        ]
        for a, b in itertools.combinations(instances, 2):
            assert np.abs(a[:, None] - b[None]).max(axis=-1).min() >= 2


@settings(max_examples=30, deadline=None)
@given(scenes(), counts_of_three)
def test_refinement_is_deterministic_and_leaves_its_input(scene: Scene, asked):
    """The same layout gives the same refinement, and is itself not changed."""
    layout = scene.layout()
    before = layout.labels.copy()
    first, second = (refine(layout, asked[: scene.nouns], CONFIG) for _ in range(2))
    np.testing.assert_array_equal(first.regions, second.regions)
    np.testing.assert_array_equal(first.layout.labels, second.layout.labels)
    np.testing.assert_array_equal(layout.labels, before)


@settings(max_examples=40, deadline=None)
@given(scenes(), counts_of_three)
def test_added_tracks_move_plausibly(scene: Scene, asked):
    """With tracks an added instance is in every frame and never jumps."""
    result = refine(scene.layout(), asked[: scene.nouns], CONFIG)
    for noun in range(scene.nouns):
        added = result.layout.labels[noun] * np.isin(result.regions[noun], ADDED)
        for label in set(np.unique(added)) - {0}:
            corners = np.array([np.argwhere(frame == label).min(axis=0) for frame in added])
            assert np.abs(np.diff(corners, axis=0)).max(initial=0) <= CONFIG.max_move


def test_the_smallest_goes_as_a_whole_track():
    """Too many: the instance with the least area over the clip is removed in every frame."""
    scene = Scene((20, 20), 3, 1, (Square(0, 1, 1, 4, 0), Square(0, 10, 1, 2, 2), Square(0, 10, 12, 3, 0)))
    result = refine(scene.layout(), [2], CONFIG)
    np.testing.assert_array_equal(result.regions[0] == Region.REMOVE, scene.layout().labels[0] == 2)
    assert not (result.regions == Region.REFERENCE).any()


def test_too_few_copies_the_smallest():
    """Too few: copies have the smallest instance's shape in each frame, and that instance is their reference."""
    scene = Scene((20, 20), 2, 1, (Square(0, 1, 1, 4, 0), Square(0, 10, 3, 2, 1)))
    result = refine(scene.layout(), [4], CONFIG)
    assert result.shortfall == (0,)
    np.testing.assert_array_equal(result.regions[0] == Region.REFERENCE, scene.layout().labels[0] == 2)
    for frame in range(2):
        assert (result.regions[0, frame] == Region.ADD_COPY).sum() == 2 * 4


def test_additions_keep_away_from_what_is_erased():
    """Where another noun's instance is being removed nothing is grown, as long as there is other room."""
    labels = np.zeros((2, 1, 9, 15), dtype=np.int16)
    labels[0, 0, 3:6, 6:9] = 1  # in the middle, the cheapest place there is
    config = RefineConfig(disc_radius=1)
    regions = refine(Layout(labels), [0, 1], config).regions
    assert not (np.isin(regions[1], ADDED) & (regions[0] == Region.REMOVE)).any()
    full = np.ones((2, 1, 3, 3), dtype=np.int16) * np.array([1, 0], dtype=np.int16)[:, None, None, None]
    assert refine(Layout(full), [0, 1], config).shortfall == (0, 0)


def test_per_frame_additions_stay_near_their_last_place():
    """Without tracks, each frame is decided alone, but an added instance is drawn to its place in the frame before."""
    labels = np.zeros((1, 2, 5, 31), dtype=np.int16)
    labels[0, 0, 2, 28] = labels[0, 1, 2, 2] = 1  # the noun's own centre jumps from right to left
    result = refine(Layout(labels), [2], CONFIG)
    free = refine(Layout(labels), [2], RefineConfig(temporal_weight=0))
    column = [int(np.argwhere(frame == Region.ADD_COPY)[0, 1]) for frame in result.regions[0]]
    alone = [int(np.argwhere(frame == Region.ADD_COPY)[0, 1]) for frame in free.regions[0]]
    assert abs(column[1] - column[0]) < 6 < abs(alone[1] - alone[0])


def test_nothing_to_copy_gives_discs():
    """A noun without instances gets discs of radius r, one at the frame's centre."""
    config = RefineConfig(disc_radius=2)
    result = refine(Layout(np.zeros((1, 2, 15, 15), dtype=np.int16), tracked=True), [2], config)
    assert result.layout.counts().tolist() == [[2, 2]]
    np.testing.assert_array_equal(result.layout.labels[0, 0, 5:10, 5:10] == 1, disc(2))
    assert set(np.unique(result.regions)) == {Region.NONE, Region.ADD_DISC}


def test_a_copy_needs_its_reference_in_the_frame():
    """Where the reference is missing from a frame, its shape is borrowed and the copy is guided like a disc."""
    labels = np.zeros((1, 3, 12, 12), dtype=np.int16)
    labels[0, :2, 2:4, 2:4] = 1
    result = refine(Layout(labels, tracked=True), [2], CONFIG)
    assert result.shortfall == (1,)  # the reference itself is still missing from the last frame
    assert [set(np.unique(frame)) for frame in result.regions[0]] == [
        {Region.NONE, Region.REFERENCE, Region.ADD_COPY},
        {Region.NONE, Region.REFERENCE, Region.ADD_COPY},
        {Region.NONE, Region.ADD_DISC},
    ]


def test_no_room_is_reported():
    """A full frame takes nothing, and says how much it lacks; room in one frame is not enough for a track."""
    labels = np.zeros((2, 2, 6, 6), dtype=np.int16)
    labels[0, :, :, :] = 1
    result = refine(Layout(labels, tracked=True), [1, 2], CONFIG)
    assert result.shortfall == (0, 2)
    labels[0, 0] = 0  # frame 0 lacks the noun that has frame 1 to itself
    result = refine(Layout(labels, tracked=True), [1, 1], RefineConfig(disc_radius=0))
    assert result.shortfall == (1, 1)
    assert not np.isin(result.regions, ADDED).any()
    per_frame = refine(Layout(labels), [1, 1], RefineConfig(disc_radius=0, margin=0))
    assert per_frame.shortfall == (0, 1)
    assert per_frame.layout.counts()[1].tolist() == [1, 0]


def test_a_disc_is_added_where_no_copy_fits():
    """The smallest instance is larger than the room that is left, in one of the frames at least; a disc isn't."""
    labels = np.zeros((1, 2, 9, 14), dtype=np.int16)
    labels[0, :, 1:8, 1:6] = 1
    labels[0, 0, :, 7:9] = labels[0, 0, :2, :] = labels[0, 0, 7:, :] = 1
    result = refine(Layout(labels, tracked=True), [2], RefineConfig(disc_radius=1, margin=1))
    assert result.shortfall == (0,)
    assert [(frame == 2).sum() for frame in result.layout.labels[0]] == [disc(1).sum()] * 2
    assert (result.regions[0][result.layout.labels[0] == 2] == Region.ADD_DISC).all()
    none = refine(Layout(labels, tracked=True), [2], RefineConfig(disc_radius=3, margin=1))
    assert none.shortfall == (1,)


def test_margin_gives_way_before_the_count_does():
    """Where the wished margin leaves no room, a smaller one is taken, but never none."""
    labels = np.zeros((1, 1, 3, 7), dtype=np.int16)
    labels[0, 0, :, :3] = 1
    result = refine(Layout(labels), [2], RefineConfig(margin=3))
    assert result.shortfall == (0,)
    np.testing.assert_array_equal(result.layout.labels[0, 0, :, 4:], 2)
    narrow = np.delete(labels, 6, axis=3)
    assert refine(Layout(narrow), [2], RefineConfig(margin=3)).shortfall == (1,)


def test_one_count_for_each_noun():
    """Counts that don't fit the layout are refused."""
    with pytest.raises(ValueError, match="for 1 nouns"):
        refine(Layout(np.zeros((1, 1, 4, 4), dtype=np.int16)), [1, 2], CONFIG)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.floats(0, 2))
def test_place_costs_equal_a_double_loop(seed, height, width, weight):
    """Correlation finds exactly the places where a template fits, at the price of the plain definition."""
    random = np.random.default_rng(seed)
    template = random.random((height, width)) < 0.7
    blocked = random.random((7, 8)) < 0.15
    labels = (random.random((7, 8)) < 0.1).astype(np.int16)
    centre = np.argwhere(labels > 0).mean(axis=0) if labels.any() else np.array([3.0, 3.5])
    expected = np.full((7, 8), np.inf)
    for top in range(7 - height + 1):
        for left in range(8 - width + 1):
            if not (blocked[top : top + height, left : left + width] & template).any():
                place = np.array([top + height // 2, left + width // 2])
                expected[tuple(place)] = weight * ((place - centre) ** 2).sum()
    np.testing.assert_allclose(place_costs(template, blocked, labels, weight), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0, 4), st.sampled_from([1.0, 2.0, np.inf]))
def test_best_path_equals_trying_all(seed, frames, weight, max_move):
    """The path is the cheapest of all paths, or None where each of them is blocked."""
    random = np.random.default_rng(seed)
    costs = np.where(random.random((frames, 3, 3)) < 0.4, np.inf, 10 * random.random((frames, 3, 3)))
    places = list(itertools.product(range(3), range(3)))

    def price(path):
        total = sum(costs[frame][place] for frame, place in enumerate(path))
        for (a, b), (c, d) in itertools.pairwise(path):
            total += weight * ((a - c) ** 2 + (b - d) ** 2) if max(abs(a - c), abs(b - d)) <= max_move else np.inf
        return total

    cheapest = min(price(path) for path in itertools.product(places, repeat=frames))
    path = best_path(costs, weight, max_move)
    assert (path is None) == np.isinf(cheapest)
    if path is not None:
        assert price(path) == pytest.approx(cheapest)


@pytest.mark.parametrize(
    ("name", "grid", "reach"),
    [
        ("paper", (30, 52), 5),
        ("paper", (45, 80), 8),
        ("closed", (16, 16), 1),
        ("closed", (30, 52), 3),
        ("released", (45, 80), 5),
    ],
)
def test_discs_scale_with_the_frame(name, grid, reach):
    """A disc has the same share of any frame, in whole tokens: published 5 at 480p; the authors' code always has 5."""
    radius = PRESETS[name].scaled_to(grid[0] * grid[1]).refine.disc_radius
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    np.testing.assert_array_equal(disc(radius), row**2 + column**2 <= reach**2)
