import dataclasses
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.cluster import DBSCAN

from numina.config import IdentifyConfig
from numina.layout import Capture, Layout, combine_blocks, dense_tokens, identify_layout, steadiness
from numina.prompts.targets import Target
from tests.benchmarks.layout_cost import moving_blobs
from tests.numina.scenes import Scene, Square, partition, preset, scenes, soft_scenes, uneven_scenes

PEAKS = IdentifyConfig(source="peaks", head="mean", extent=0.5)
TRACKS = IdentifyConfig(source="peaks", head="mean", extent=0.5, min_area=2, tracks=True)


@settings(max_examples=40, deadline=None)
@given(scenes(), st.sampled_from([PEAKS, TRACKS]))
def test_peaks_recover_separated_instances(scene: Scene, config: IdentifyConfig):
    """Instances with a free token between them are found exactly, and with tracks keep their number over the clip."""
    assume(all(scene.counts()))  # an absent noun's response is noise, and relative to its own peak all there is
    layout = identify_layout(scene.capture(noise=0.2), config)
    truth = scene.layout()
    for noun in range(scene.nouns):
        if config.tracks:
            assert partition(layout.labels[noun]) == partition(truth.labels[noun])
        for frame in range(scene.frames):
            assert partition(layout.labels[noun, frame]) == partition(truth.labels[noun, frame])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6), st.booleans(), st.floats(0, 1))
def test_any_response_gives_a_sound_layout(nouns, frames, seed, tracks, threshold):
    """Whatever the maps hold: a token has one noun at most, numbers are dense where frames stand alone, runs repeat."""
    responses = np.random.default_rng(seed).random((nouns, frames, 6, 7), dtype=np.float32) ** 4
    config = IdentifyConfig(source="peaks", threshold=threshold, tracks=tracks)
    layout = identify_layout(Capture(responses, None), config)
    assert ((layout.labels > 0).sum(axis=0) <= 1).all()
    assert (layout.counts() <= np.array([len(layout.instances(noun)) for noun in range(nouns)])[:, None]).all()
    if not tracks:
        assert (layout.counts() == layout.labels.max(axis=(2, 3))).all()
    np.testing.assert_array_equal(layout.labels, identify_layout(Capture(responses, None), config).labels)


def test_a_blank_response_has_no_instances():
    """A noun that no token looks at, and one that every token looks at alike, don't raise."""
    blank = Capture(np.zeros((2, 2, 4, 4), dtype=np.float32), np.zeros((2, 4, 4, 3), dtype=np.float32))
    assert identify_layout(blank, PEAKS).counts().tolist() == [[0, 0], [0, 0]]
    assert identify_layout(blank, IdentifyConfig()).counts().tolist() == [[0, 0], [0, 0]]


def test_specks_are_dropped():
    """Pieces below ``min_area`` are no instances."""
    scene = Scene((9, 9), 1, 1, (Square(0, 1, 1, 3, 0), Square(0, 6, 6, 1, 0)))
    assert identify_layout(scene.capture(), PEAKS).counts().tolist() == [[2]]
    assert identify_layout(scene.capture(), TRACKS).counts().tolist() == [[1]]


def test_a_token_goes_to_the_noun_that_looks_harder():
    """Responses count relative to each noun's own peak, so a weak noun isn't drowned by a strong one."""
    responses = np.zeros((2, 1, 5, 9), dtype=np.float32)
    responses[0, 0, 1:4, 1:4] = 1.0
    responses[0, 0, 1:4, 5:8] = 0.6
    responses[1, 0, 1:4, 5:8] = 0.01
    labels = identify_layout(Capture(responses, None), PEAKS).labels
    assert (labels[0, 0] > 0).sum() == 9
    assert (labels[1, 0] > 0).sum() == 9


def test_instances_grow_from_their_cores():
    """Cores tell neighbours apart; the weaker tokens around go to the nearer core, those elsewhere to none."""
    response = np.array([[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 3, 9, 3, 2.5, 3, 9, 3, 0, 3]], dtype=np.float32) / 9
    capture = Capture(response[None, None], None)
    config = IdentifyConfig(source="peaks", threshold=0.5, extent=0.25)
    assert identify_layout(capture, config).labels[0, 0, 1].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 0, 0]
    bare = IdentifyConfig(source="peaks", threshold=0.5, extent=1.0)
    assert identify_layout(capture, bare).labels[0, 0, 1].tolist() == [0, 0, 1, 0, 0, 0, 2, 0, 0, 0]


def test_tracks_bridge_a_gap_and_drop_a_flash():
    """An instance that is lost in one frame is put back; one that shows in one frame of five is dropped."""
    scene = Scene((12, 12), 5, 1, (Square(0, 1, 1, 3, 2), Square(0, 7, 7, 3, 0)))
    capture = scene.capture()
    capture.responses[0, 2, :5] = 0.0  # the upper square is lost in frame 2
    capture.responses[0, 4, 2:4, 9:11] = 1.0  # something flashes in the last
    layout = identify_layout(capture, TRACKS)
    assert layout.counts().tolist() == [[2] * 5]
    assert layout.clip_counts().tolist() == [2]
    assert (layout.labels[0, 2, :5] > 0).sum() == 9
    assert not layout.labels[0, 4, 2:4, 9:11].any()


def test_tracks_share_a_merged_piece():
    """Two instances that touch in one frame stay two: the piece is divided between them."""
    scene = Scene((8, 14), 3, 1, (Square(0, 2, 2, 3, 0), Square(0, 2, 8, 3, 0)))
    capture = scene.capture()
    capture.responses[0, 1, 2:5, 5:8] = 1.0
    layout = identify_layout(capture, TRACKS)
    assert layout.counts().tolist() == [[2, 2, 2]]
    for label in (1, 2):
        held = layout.labels[0, 1] == label
        assert (layout.labels[0, 0] == label)[held].sum() >= 5


def test_tracks_follow_what_moves():
    """Two instances that pass each other in different rows keep their numbers."""
    scene = Scene((12, 12), 5, 1, (Square(0, 1, 1, 2, 8), Square(0, 5, 9, 2, -8)))
    labels = identify_layout(scene.capture(), TRACKS).labels[0]
    for number in (1, 2):
        rows = {int(row) for frame in labels for row in np.argwhere(frame == number)[:, 0]}
        assert rows in ({1, 2}, {5, 6})


def test_what_is_far_away_is_another_thing():
    """An instance that vanishes while one shows up elsewhere is not one track that jumped."""
    scene = Scene((16, 16), 4, 1, (Square(0, 1, 1, 3, 0), Square(0, 11, 11, 3, 0)))
    capture = scene.capture()
    capture.responses[0, :2, 11:] = capture.responses[0, 2:, :4] = 0.0
    assert identify_layout(capture, TRACKS).clip_counts().tolist() == [2]
    far = dataclasses.replace(TRACKS, link_distance=20.0)
    assert identify_layout(capture, far).clip_counts().tolist() == [1]


def test_lone_tokens_are_out_of_focus():
    """A cluster whose only tokens in focus stand alone (DBSCAN noise) is no instance."""
    capture, kinds = blobs()
    capture.components[0, 0, 15] = (0.9, 0.9, 0.1)
    capture.responses[0, 0, 0, 15] = 1.0
    layout = identify_layout(capture, IdentifyConfig(bandwidth_quantile=0.1))
    np.testing.assert_array_equal(layout.labels[0, 0] > 0, kinds == 1)
    dense = IdentifyConfig(bandwidth_quantile=0.1, dbscan_min_samples=1)
    assert identify_layout(capture, dense).labels[0, 0, 0, 15] > 0


def blobs() -> tuple[Capture, np.ndarray]:
    """A self-attention image with a square of each of two kinds on a background, and a response to each kind."""
    kinds = np.zeros((16, 16), dtype=np.int64)
    kinds[2:7, 2:7], kinds[9:14, 9:14] = 1, 2
    colours = np.array([[0.1, 0.1, 0.1], [0.9, 0.1, 0.5], [0.2, 0.9, 0.9]], dtype=np.float32)
    responses = np.stack([kinds == 1, kinds == 2])[:, None].astype(np.float32)
    return Capture(responses + np.float32(0.001), colours[kinds][None]), kinds


def test_clusters_follow_the_self_attention_image():
    """The published form: each noun gets the cluster its focus lies on, not the background's."""
    capture, kinds = blobs()
    layout = identify_layout(capture, IdentifyConfig(bandwidth_quantile=0.1))
    assert layout.counts().tolist() == [[1], [1]]
    for noun in (0, 1):
        np.testing.assert_array_equal(layout.labels[noun, 0] > 0, kinds == noun + 1)


def test_connected_splits_what_looks_alike():
    """Two things of one kind are one cluster, unless clusters are split into connected pieces."""
    capture, kinds = blobs()
    image = (
        np.where((kinds > 0)[..., None], np.float32(0.9), np.float32(0.1)).astype(np.float32)[None].repeat(3, axis=-1)
    )
    capture = Capture(capture.responses.max(axis=0, keepdims=True), image[..., :3])
    merged = identify_layout(capture, IdentifyConfig(bandwidth_quantile=0.6))
    split = identify_layout(capture, IdentifyConfig(bandwidth_quantile=0.6, connected=True))
    assert merged.counts().tolist() == [[1]]
    assert split.counts().tolist() == [[2]]


def test_clusters_need_a_self_attention_image():
    """Asking for clusters without the capture they need is an error that says so."""
    with pytest.raises(ValueError, match="capture has none"):
        identify_layout(Capture(np.ones((1, 1, 4, 4), dtype=np.float32), None), IdentifyConfig())


def test_matches_means_every_noun_in_every_frame():
    """A clip is right only if all frames are; the clip count without tracks is the lower median."""
    labels = np.zeros((1, 4, 2, 4), dtype=np.int16)
    labels[0, :, 0, 0] = 1
    labels[0, :2, 0, 2] = 2
    layout = Layout(labels)
    assert layout.clip_counts().tolist() == [1]
    assert not layout.matches([Target("cats", 1)])
    assert Layout(labels[:, 2:]).matches([Target("cats", 1)])
    assert Layout(labels[:, :2]).matches([Target("cats", 2)])


def test_a_hidden_track_counts():
    """Of tracks the number is what counts: one that others hide for two frames is no reason to guide a right clip."""
    labels = np.zeros((2, 4, 2, 4), dtype=np.int16)
    labels[0, :, 0, 0] = labels[1, :, 1, 0] = 1
    labels[0, :2, 0, 2] = 2
    layout = Layout(labels, tracked=True)
    assert layout.matches([Target("cats", 2), Target("dogs", 1)])
    assert layout.right([Target("cats", 1), Target("dogs", 1)]).tolist() == [False, True]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.05, 0.9),
    st.sampled_from([0.5, 1.0, 1.5, 2.0**0.5, 3.0, 40.0]),
    st.integers(1, 8),
)
def test_dense_tokens_are_those_dbscan_keeps(seed, share, eps, min_samples):
    """A mask's tokens are kept or dropped exactly as by scikit-learn's DBSCAN."""
    random = np.random.default_rng(seed)
    mask = random.random(tuple(random.integers(1, 16, 2))) < share
    expected = mask.copy()
    if mask.any():
        expected[mask] = DBSCAN(eps=eps, min_samples=min_samples).fit(np.argwhere(mask)).labels_ >= 0
    np.testing.assert_array_equal(dense_tokens(mask, eps, min_samples), expected)


def test_nouns_may_share_a_cluster_where_each_is_read_alone():
    """With ``exclusive`` off every noun gets all that is in its focus; else the one that looks harder does."""
    capture, kinds = blobs()
    both = Capture(np.stack([capture.responses.max(axis=0), capture.responses[1]]), capture.components)
    shared = identify_layout(both, dataclasses.replace(preset("released").identify, bandwidth_quantile=0.1))
    assert shared.counts().tolist() == [[2], [1]]
    np.testing.assert_array_equal(shared.labels[1, 0] > 0, kinds == 2)
    alone = identify_layout(both, IdentifyConfig(bandwidth_quantile=0.1))
    assert ((alone.labels > 0).sum(axis=0) <= 1).all()
    parts = dataclasses.replace(PEAKS, exclusive=False)
    assert identify_layout(both, parts).counts().tolist() == [[2], [1]]
    assert identify_layout(both, dataclasses.replace(parts, tracks=True)).counts().tolist() == [[2], [1]]
    assert identify_layout(both, PEAKS).counts().tolist() == [[2], [0]]


def test_nouns_read_alone_bridge_gaps_alone():
    """A lost instance is put back where another noun lies only if nouns may share tokens."""
    responses = np.zeros((2, 3, 6, 6), dtype=np.float32)
    responses[:, :, 1:4, 1:4] = 1.0
    responses[0, 1] = 0.0
    shared = identify_layout(Capture(responses, None), dataclasses.replace(TRACKS, exclusive=False))
    assert shared.counts().tolist() == [[1, 1, 1], [1, 1, 1]]
    responses[1, ::2] = 0.0  # each is lost where the other is, and the second is seen too seldom to be put back
    alone = identify_layout(Capture(responses, None), dataclasses.replace(TRACKS, min_presence=0.3))
    assert alone.counts().tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("axis", [2, 3])
@settings(max_examples=40, deadline=None)
@given(capture=soft_scenes())
def test_a_flipped_clip_has_the_flipped_instances(axis, capture: Capture):
    """Rows and columns have no direction: the preset closed finds the same instances in a mirrored clip.

    Except for a token as far from two cores: it is the first one's in reading order.
    """
    config = preset("closed").identify
    layout = identify_layout(capture, config)
    cores = identify_layout(capture, dataclasses.replace(config, extent=1.0, tracks=False))
    for noun, frame in np.ndindex(layout.labels.shape[:2]):
        image = cores.labels[noun, frame]
        away = np.sort([ndimage.distance_transform_edt(image != core) for core in range(1, image.max() + 1)], axis=0)
        assume(len(away) < 2 or not ((away[0] == away[1]) & (layout.labels[noun, frame] > 0)).any())
    mirrored = identify_layout(Capture(np.flip(capture.responses, axis).copy(), None), config)
    for noun, labels in enumerate(np.flip(mirrored.labels, axis)):
        assert partition(labels) == partition(layout.labels[noun])


@pytest.mark.parametrize("axis", [2, 3])
@settings(max_examples=15, deadline=None)
@given(scene=uneven_scenes(), seed=st.integers(0, 10**6))
def test_a_flipped_image_has_the_flipped_clusters(axis, scene: Scene, seed):
    """The preset paper finds the same instances in a mirrored clip, where colours tell them from the background.

    How mean shift divides the background depends on where its grid of seeds begins, and so on the direction.
    """
    truth = scene.layout(tracked=False).labels
    inside = truth > 0
    colours = np.array([[1, 1, 1], [9, 1, 1], [1, 9, 1], [1, 1, 9], [9, 9, 1], [1, 9, 9]], dtype=np.float32) / 10
    image = colours[truth.max(axis=0)]
    image = image + np.random.default_rng(seed).uniform(0, 0.02, image.shape).astype(np.float32)
    responses = (inside + 0.001).astype(np.float32)
    config = preset("paper").identify
    layout = identify_layout(Capture(responses, image), config)
    mirrored = identify_layout(Capture(np.flip(responses, axis).copy(), np.flip(image, axis - 1).copy()), config)
    for noun, frame in np.ndindex(truth.shape[:2]):
        assert partition(layout.labels[noun, frame]) == partition(truth[noun, frame])
        assert partition(np.flip(mirrored.labels, axis)[noun, frame]) == partition(truth[noun, frame])


@pytest.mark.parametrize("name", ["paper", "closed", "released"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_maps_are_named(name, value):
    """A NaN or an infinity is an error that says where it is, never a layout."""
    config = preset(name).identify
    responses, components = np.ones((2, 3, 4, 5), dtype=np.float32), np.ones((3, 4, 5, 3), dtype=np.float32)
    responses[1, 2, 0, 3] = value
    with pytest.raises(ValueError, match="noun 1 in frame 2"):
        identify_layout(Capture(responses, components), config)
    responses[1, 2, 0, 3], components[1, 3, 4, 2] = 1.0, value
    with pytest.raises(ValueError, match="components of frame 1"):
        identify_layout(Capture(responses, components), config)


@pytest.mark.parametrize("name", ["paper", "closed", "released"])
@pytest.mark.parametrize("shape", [(1, 0, 4, 5), (0, 2, 4, 5), (1, 2, 0, 5)])
def test_a_capture_of_nothing_is_refused(name, shape):
    """No nouns, no frames or no tokens: an error that says so."""
    capture = Capture(np.zeros(shape, dtype=np.float32), np.zeros((*shape[1:], 3), dtype=np.float32))
    with pytest.raises(ValueError, match="at least one of each"):
        identify_layout(capture, preset(name).identify)


@pytest.mark.parametrize("name", ["paper", "closed", "released"])
@pytest.mark.parametrize("value", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (6, 5)])
def test_a_response_without_contrast_holds_nothing(name, value, grid):
    """The same response on all tokens, as always in a frame of one token, doesn't say where a noun is."""
    random = np.random.default_rng(0)
    rounding = 1 + random.uniform(-1e-7, 1e-7, (2, 2, *grid))
    capture = Capture((value * rounding).astype(np.float32), random.random((2, *grid, 3), dtype=np.float32))
    assert not identify_layout(capture, preset(name).identify).labels.any()


@pytest.mark.parametrize("name", ["paper", "closed", "released"])
def test_a_noun_may_cover_the_frame(name):
    """A response that is high everywhere, with some contrast, gives instances that cover all tokens."""
    random = np.random.default_rng(0)
    responses = random.uniform(0.8, 1.0, (1, 2, 6, 7)).astype(np.float32)
    capture = Capture(responses, random.random((2, 6, 7, 3), dtype=np.float32))
    layout = identify_layout(capture, preset(name).identify)
    assert (layout.labels > 0).all()
    if name == "closed":
        assert layout.counts().tolist() == [[1, 1]]


@pytest.mark.parametrize(("name", "seconds"), [("closed", 0.6), ("paper", 3.0), ("released", 3.0)])
def test_a_480p_clip_takes_seconds_at_most(name, seconds):
    """Identification of 21 frames of 30 x 52 tokens, two nouns: a gang's next clip is denoised meanwhile."""
    capture = moving_blobs(21, 30, 52, 2)
    began = time.process_time()
    assert identify_layout(capture, preset(name).identify).labels.any()
    assert time.process_time() - began < seconds


def test_peaks_form_is_fast():
    """A clip of 5 × 16 × 16 tokens takes less than 50 ms: the gangs never wait for a layout."""
    scene = Scene((16, 16), 5, 2, tuple(Square(i % 2, 5 * (i // 3), 5 * (i % 3), 3, 1) for i in range(9)))
    capture = scene.capture(noise=0.2)
    best = min(_seconds(capture) for _ in range(5))
    assert best < 0.05, f"{best * 1e3:.0f} ms"


def _seconds(capture: Capture) -> float:
    start = time.process_time()
    identify_layout(capture, TRACKS)
    return time.process_time() - start


def bumps(*tops: tuple[int, float], width: int = 24) -> np.ndarray:
    """One frame of one row with a peak of its own height at each place, falling linearly by 0.15 a token."""
    place = np.arange(width)
    rows = [np.maximum(0, height - 0.15 * np.abs(place - top)) for top, height in tops]
    return np.max(rows, axis=0).astype(np.float32)[None, None, None]


@pytest.mark.parametrize(
    ("tops", "prominence", "count"),
    [
        (((4, 1.0), (8, 1.0)), 0.2, 2),  # falls by 0.3 in between: no threshold of 0.7 or below tells them apart
        (((4, 1.0), (8, 1.0)), 0.4, 1),
        (((4, 1.0), (8, 0.8)), 0.2, 1),  # a dip of 19 % of the lower one
        (((4, 1.0), (9, 0.8)), 0.2, 2),
        (((4, 1.0), (6, 0.9)), 0.2, 1),  # a shoulder
        (((4, 1.0), (14, 0.55)), 0.2, 2),
        (((4, 1.0), (14, 0.45)), 0.2, 1),  # too low a peak
        (((4, 1.0), (9, 0.9), (14, 1.0)), 0.2, 3),
    ],
)
def test_neighbours_are_told_apart_by_the_dip_between_them(tops, prominence, count):
    """Prominence is relative to the lower of two peaks; each instance has its own surroundings, down to ``extent``."""
    config = IdentifyConfig(source="peaks", prominence=prominence, extent=0.3, threshold=0.5)
    response = bumps(*tops)
    layout = identify_layout(Capture(response, None), config)
    assert layout.counts().tolist() == [[count]]
    if count == len(tops):
        assert [layout.labels[0, 0, 0, top] for top, _ in tops] == list(range(1, count + 1))
        assert ((layout.labels[0, 0, 0] > 0) == (response[0, 0, 0] >= 0.3)).all()


def test_one_block_is_taken_as_it_is_and_several_as_shares_of_their_peaks():
    """The mean of blocks weighs a faint block as much as a strong one."""
    strong, faint = np.zeros((2, 1, 2, 3, 3), dtype=np.float32)
    strong[0, :, 0, 0], strong[0, :, 2, 2], faint[0, :, 2, 2] = 4.0, 2.0, 0.01
    np.testing.assert_array_equal(combine_blocks(strong[None], "mean"), strong)
    both = combine_blocks(np.stack([strong, faint]), "mean")
    assert both[0, 0, 2, 2] == pytest.approx(0.75 * (4.0 + 0.01) / 2)  # in the scale of the blocks' mean peak
    assert both[0, 0, 0, 0] == pytest.approx(0.5 * (4.0 + 0.01) / 2)


def test_the_steadiest_block_is_the_one_whose_maps_stay():
    """Objects are where they were a frame ago; noise isn't."""
    rng = np.random.default_rng(0)
    noise = rng.random((2, 4, 8, 8), dtype=np.float32)
    still = np.repeat(rng.random((2, 1, 8, 8), dtype=np.float32), 4, axis=1)
    assert steadiness(still) == pytest.approx(1.0)
    assert abs(steadiness(noise)) < 0.3
    assert steadiness(np.ones((1, 4, 2, 2), dtype=np.float32)) == steadiness(noise[:, :1]) == 0.0
    chosen = combine_blocks(np.stack([noise, still, noise]), "steadiest")
    np.testing.assert_array_equal(chosen, still)


def test_a_noun_that_nothing_looks_at_is_absent():
    """Beside a noun with a clear response, one whose peaks are far lower is noise; by itself it is all there is."""
    rng = np.random.default_rng(1)
    clear, noise = bumps((4, 1.0), (14, 0.9)), 0.3 * rng.random((1, 1, 1, 24), dtype=np.float32)
    config = IdentifyConfig(source="peaks", absence=0.5)
    assert identify_layout(Capture(np.concatenate([clear, noise]), None), config).counts().tolist() == [[2], [0]]
    assert identify_layout(Capture(np.concatenate([clear, clear * 0.6]), None), config).counts()[0] == 2
    assert identify_layout(Capture(noise, None), config).counts().item() > 0
    without = dataclasses.replace(config, absence=0.0)
    assert identify_layout(Capture(np.concatenate([clear, noise]), None), without).counts()[1] > 0
