import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from numina.config import IdentifyConfig
from numina.tracks import _NEVER, _link_costs, centroid, link_instances


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 5), st.floats(0, 6))
def test_link_costs_are_distance_less_overlap(seed, before, now, link_distance):
    """All pairs at once cost what each pair does by definition; full overlap is worth a third of the link distance."""
    random = np.random.default_rng(seed)
    old, new = ([random.random((5, 6)) < random.uniform(0.1, 0.9) for _ in range(n)] for n in (before, now))
    for mask in (*old, *new):
        mask[random.integers(5), random.integers(6)] = True
    costs = _link_costs(old, new, link_distance)
    assert costs.shape == (before, now)
    for i, j in np.ndindex(costs.shape):
        distance = np.linalg.norm(centroid(old[i]) - centroid(new[j]))
        overlap = (old[i] & new[j]).sum() / (old[i] | new[j]).sum()
        near = distance <= link_distance or overlap > 0.5
        assert costs[i, j] == pytest.approx(distance - overlap * link_distance / 3 if near else _NEVER)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 1))
def test_any_pieces_become_sound_tracks(seed, frames, min_presence):
    """There are no more tracks than pieces, none lies on taken tokens, and a frame alone stays as it is."""
    random = np.random.default_rng(seed)
    labels = np.stack([ndimage.label(random.random((7, 8)) < 0.4)[0] for _ in range(frames)]).astype(np.int16)
    taken = (random.random(labels.shape) < 0.2) & (labels == 0)
    linked = link_instances(labels, taken, IdentifyConfig(min_presence=min_presence))
    assert not linked[taken].any()
    tracks = np.unique(linked[linked > 0])
    assert len(tracks) <= sum(frame.max() for frame in labels)
    if frames == 1:
        np.testing.assert_array_equal(linked, labels)


def test_noise_is_linked_in_time():
    """Hundreds of pieces a frame, few of which last: linking takes a moment, not minutes."""
    labels = np.zeros((21, 30, 52), dtype=np.int16)
    random = np.random.default_rng(0)
    for frame in labels:
        frame[:] = ndimage.label(random.random(frame.shape) < 0.15, structure=np.ones((3, 3)))[0]
    assert labels.max() > 100
    began = time.process_time()
    link_instances(labels, np.zeros(labels.shape, dtype=bool), IdentifyConfig())
    assert time.process_time() - began < 2.0


def test_no_instances_are_no_tracks():
    """A noun that is nowhere has no tracks."""
    nothing = np.zeros((3, 4, 5), dtype=np.int16)
    np.testing.assert_array_equal(link_instances(nothing, nothing > 0, IdentifyConfig()), nothing)
