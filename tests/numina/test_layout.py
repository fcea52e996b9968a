import dataclasses
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from numina.config import IdentifyConfig
from numina.layout import Capture, Layout, identify_layout
from numina.prompts import Target
from tests.numina.scenes import Scene, Square, scenes

COMPONENTS = IdentifyConfig(source="components", head="mean", extent=0.5)
TRACKS = IdentifyConfig(source="components", head="mean", extent=0.5, min_area=2, tracks=True)


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    """Instances as sets of tokens, whatever their numbers."""
    flat = labels.ravel()
    return {frozenset(np.flatnonzero(flat == label).tolist()) for label in np.unique(flat) if label > 0}


@settings(max_examples=40, deadline=None)
@given(scenes(), st.sampled_from([COMPONENTS, TRACKS]))
def test_components_recover_separated_instances(scene: Scene, config: IdentifyConfig):
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
    config = IdentifyConfig(source="components", threshold=threshold, tracks=tracks)
    layout = identify_layout(Capture(responses, None), config)
    assert ((layout.labels > 0).sum(axis=0) <= 1).all()
    assert (layout.counts() <= np.array([len(layout.instances(noun)) for noun in range(nouns)])[:, None]).all()
    if not tracks:
        assert (layout.counts() == layout.labels.max(axis=(2, 3))).all()
    np.testing.assert_array_equal(layout.labels, identify_layout(Capture(responses, None), config).labels)


@pytest.mark.filterwarnings("ignore:Binning data failed")
def test_a_blank_response_has_no_instances():
    """A noun that no token looks at, and one that every token looks at alike, don't raise."""
    blank = Capture(np.zeros((2, 2, 4, 4), dtype=np.float32), np.zeros((2, 4, 4, 3), dtype=np.float32))
    assert identify_layout(blank, COMPONENTS).counts().tolist() == [[0, 0], [0, 0]]
    assert identify_layout(blank, IdentifyConfig()).counts().tolist() == [[0, 0], [0, 0]]


def test_specks_are_dropped():
    """Pieces below ``min_area`` are no instances."""
    scene = Scene((9, 9), 1, 1, (Square(0, 1, 1, 3, 0), Square(0, 6, 6, 1, 0)))
    assert identify_layout(scene.capture(), COMPONENTS).counts().tolist() == [[2]]
    assert identify_layout(scene.capture(), TRACKS).counts().tolist() == [[1]]


def test_a_token_goes_to_the_noun_that_looks_harder():
    """Responses count relative to each noun's own peak, so a weak noun isn't drowned by a strong one."""
    responses = np.zeros((2, 1, 5, 9), dtype=np.float32)
    responses[0, 0, 1:4, 1:4] = 1.0
    responses[0, 0, 1:4, 5:8] = 0.6
    responses[1, 0, 1:4, 5:8] = 0.01
    labels = identify_layout(Capture(responses, None), COMPONENTS).labels
    assert (labels[0, 0] > 0).sum() == 9
    assert (labels[1, 0] > 0).sum() == 9


def test_instances_grow_from_their_cores():
    """Cores tell neighbours apart; the weaker tokens around go to the nearer core, those elsewhere to none."""
    response = np.array([[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 3, 9, 3, 2.5, 3, 9, 3, 0, 3]], dtype=np.float32) / 9
    capture = Capture(response[None, None], None)
    config = IdentifyConfig(source="components", threshold=0.5, extent=0.25)
    assert identify_layout(capture, config).labels[0, 0, 1].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 0, 0]
    bare = IdentifyConfig(source="components", threshold=0.5, extent=1.0)
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


def test_components_form_is_fast():
    """A clip of 5 × 16 × 16 tokens takes less than 50 ms: the gangs never wait for a layout."""
    scene = Scene((16, 16), 5, 2, tuple(Square(i % 2, 5 * (i // 3), 5 * (i % 3), 3, 1) for i in range(9)))
    capture = scene.capture(noise=0.2)
    best = min(_seconds(capture) for _ in range(5))
    assert best < 0.05, f"{best * 1e3:.0f} ms"


def _seconds(capture: Capture) -> float:
    start = time.perf_counter()
    identify_layout(capture, TRACKS)
    return time.perf_counter() - start
