import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import cluster

from numina.meanshift import estimate_bandwidth, mean_shift

ROUNDING = 1e-7  # of distances from a matrix product: the root of float64's, which kernels of some CPUs don't have
KINDS = ("noise", "flat", "two tones", "patches", "gradient")


def features(kind: str, height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A frame's features as the layout has them: an image of three components, and half the place."""
    row, column = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    image = {
        "noise": random.random((height, width, 3)),
        "flat": np.zeros((height, width, 3)),
        "two tones": random.integers(0, 2, (height, width, 1)) * np.ones(3),
        "patches": random.random((4, 3))[2 * (row > 0.4) + (column > 0.6)],
        "gradient": np.stack([row, column, row * column], axis=-1),
    }[kind]
    points = np.concatenate([image, 0.5 * np.stack([row, column], axis=-1)], axis=-1).reshape(-1, 5)
    return points + random.normal(0, 1e-4, points.shape)  # a perfect lattice is all ties


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 16),
    width=st.integers(1, 16),
    quantile=st.sampled_from([0.05, 0.1, 0.2, 0.4]),
)
def test_labels_are_those_of_scikit_learn(kind, seed, height, width, quantile):
    """Bandwidth and labels equal the library's, on small frames of every kind."""
    points = features(kind, height, width, np.random.default_rng(seed))
    bandwidth = estimate_bandwidth(points, quantile, 1000)
    assert bandwidth == pytest.approx(
        cluster.estimate_bandwidth(points, quantile=quantile, n_samples=1000), abs=ROUNDING
    )
    compare(points, bandwidth if bandwidth > 0 else 0.5)


@pytest.mark.parametrize("kind", ["noise", "patches"])
def test_a_whole_frame_is_clustered_as_by_scikit_learn(kind):
    """The same with more tokens than the bandwidth is estimated on."""
    points = features(kind, 30, 52, np.random.default_rng(1))
    bandwidth = estimate_bandwidth(points, 0.2, 1000)
    assert bandwidth == pytest.approx(cluster.estimate_bandwidth(points, quantile=0.2, n_samples=1000), abs=ROUNDING)
    compare(points, bandwidth)


def compare(points: np.ndarray, bandwidth: float) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Binning data failed")
        expected = cluster.MeanShift(bandwidth=bandwidth, bin_seeding=True).fit(points).labels_
    np.testing.assert_array_equal(mean_shift(points, bandwidth), expected)


def test_seeds_without_points_near_them_give_way_to_the_points():
    """All points in a corner of a cell, too far from its middle: the library raises, here they are the seeds."""
    points = np.full((2, 5), 0.49)
    with pytest.raises(ValueError, match="No point was within"):
        cluster.MeanShift(bandwidth=1.0, bin_seeding=True).fit(points)
    assert mean_shift(points, 1.0).tolist() == [0, 0]


def test_one_point_and_equal_points():
    """The smallest frames, and tokens that can't be told apart."""
    assert mean_shift(np.zeros((1, 5)), 0.5).tolist() == [0]
    assert mean_shift(np.ones((7, 5)), 0.5).tolist() == [0] * 7
    assert estimate_bandwidth(np.ones((7, 5)), 0.2, 1000) == 0.0
    assert estimate_bandwidth(np.ones((1, 5)), 1.0, 1000) == 0.0


def test_clusters_of_two_bodies_are_the_bodies():
    """Two far bodies of points, the larger one first."""
    random = np.random.default_rng(0)
    bodies = np.repeat([1, 0], [30, 50])
    points = random.normal(0, 0.05, (80, 5)) + bodies[:, None]
    np.testing.assert_array_equal(mean_shift(points, 0.5), np.where(bodies == 0, 0, 1))
