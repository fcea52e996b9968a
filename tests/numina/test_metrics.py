from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from numina.metrics import (
    RESAMPLED,
    agreement,
    all_frames_exact,
    bootstrap_interval,
    clip_score,
    count_accuracy,
    count_stability,
    mean_absolute_error,
    paired_difference,
    signed_bias,
    temporal_consistency,
    within_one_accuracy,
)

#                     nouns: cats dogs
DETECTED = np.array([[3, 2], [3, 1], [5, 2], [3, 2]])
ASKED = (3, 2)


def test_count_accuracy_is_the_mean_share_of_right_nouns():
    """Per frame the share of nouns with exactly the asked count, mean over frames."""
    assert count_accuracy(DETECTED, ASKED) == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)


def test_companion_measures():
    """±1, exactness, MAE, bias and stability, by hand."""
    assert within_one_accuracy(DETECTED, ASKED) == pytest.approx(7 / 8)
    assert all_frames_exact(DETECTED, ASKED) == 0.0
    assert all_frames_exact(DETECTED[[0, 3]], ASKED) == 1.0
    assert mean_absolute_error(DETECTED, ASKED) == pytest.approx(3 / 8)
    assert signed_bias(DETECTED, ASKED) == pytest.approx(1 / 8)
    assert count_stability(DETECTED) == pytest.approx(2 / 6)
    assert count_stability(DETECTED[:1]) == 1.0


@pytest.mark.parametrize("missing", [None, np.zeros((0, 2), dtype=np.int64)])
def test_a_missing_video_scores_zero(missing):
    """A clip that was never made pays: 0 in all shares, and errors as if nothing was detected."""
    for share in (count_accuracy, within_one_accuracy, all_frames_exact):
        assert share(missing, ASKED) == 0.0
    assert count_stability(missing) == 0.0
    assert mean_absolute_error(missing, ASKED) == 2.5
    assert signed_bias(missing, ASKED) == -2.5


def test_unsigned_counts_don_t_wrap():
    """Detectors may count in unsigned integers: one too few is −1, not 255."""
    assert signed_bias(np.array([[1]], dtype=np.uint64), (2,)) == -1.0


def test_columns_must_be_the_nouns():
    """Counts of other nouns than asked for are an error, not a score."""
    with pytest.raises(ValueError, match="detected has 2 nouns, asked 3"):
        count_accuracy(DETECTED, (1, 2, 3))
    with pytest.raises(ValueError, match="asked is empty"):
        count_accuracy(DETECTED, ())


EMBEDDED = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 5.0]], dtype=np.float32)


def test_temporal_consistency_and_clip_score_by_hand():
    """Cosines, whatever the embeddings' lengths: of neighbours, and of frames with the text times 100."""
    assert temporal_consistency(EMBEDDED) == pytest.approx((0 + 1) / 2)
    assert temporal_consistency(EMBEDDED[:1]) == 1.0
    assert clip_score(EMBEDDED, np.array([0.0, 3.0], dtype=np.float32)) == pytest.approx(200 / 3)
    assert clip_score(-EMBEDDED[1:], np.array([0.0, 1.0], dtype=np.float32)) == pytest.approx(-100)
    for measure in (temporal_consistency, lambda frames: clip_score(frames, EMBEDDED[0])):
        with pytest.raises(ValueError, match="frames is empty"):
            measure(EMBEDDED[:0])


@given(arrays(np.float32, (4, 3), elements=st.integers(-5, 5).map(float)))
def test_embeddings_measures_stay_in_their_ranges(frames):
    """Cosines lie in [−1, 1], of vectors of zeros too, and turning time round changes no consistency."""
    assert abs(temporal_consistency(frames)) <= 1 + 1e-9
    assert abs(clip_score(frames, frames[0])) <= 100 + 1e-9
    assert temporal_consistency(frames[::-1]) == pytest.approx(temporal_consistency(frames))


scores = st.integers(0, 20).map(lambda twentieths: twentieths / 20)  # as count accuracy of few frames is


@given(st.lists(scores, min_size=1, max_size=30), st.sampled_from([0.8, 0.95]))
@settings(max_examples=20, deadline=None)
def test_intervals_hold_what_was_seen(values, level):
    """They lie between the least and the greatest value, have the mean beside them, and are the same each time."""
    found = bootstrap_interval(values, level, resamples=200)
    slack = 1e-9
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found.mean == pytest.approx(np.mean(values))
    assert found == bootstrap_interval(np.array(values), level, resamples=200)
    if len(set(values)) == 1:
        assert found.low == found.high == found.mean


def test_intervals_cover_the_true_mean():
    """Of 100 samples from one distribution about 95 % of the intervals hold its mean, and a lower level holds less."""
    rng = np.random.default_rng(0)
    samples = rng.random((100, 40)) ** 2  # skewed, mean 1/3
    for level, least, most in ((0.95, 0.88, 0.99), (0.6, 0.5, 0.7)):
        found = [bootstrap_interval(sample, level, resamples=300) for sample in samples]
        assert least < np.mean([interval.low <= 1 / 3 <= interval.high for interval in found]) < most


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_differences_are_paired(pairs):
    """Turned round they change sign, p stays; the order of prompts and what both have in common don't matter."""
    first, second = map(np.array, zip(*pairs, strict=True))
    found = paired_difference(first, second, resamples=200)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert 0 < found.p_value <= 1
    turned = paired_difference(second, first, resamples=200)
    assert turned.mean == pytest.approx(-found.mean)
    assert turned.p_value == pytest.approx(found.p_value, abs=0.15)  # of some hundred random sign patterns
    both = paired_difference(first + 1, second + 1, resamples=200)
    assert both.mean == pytest.approx(found.mean)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
@settings(max_examples=20, deadline=None)
def test_p_is_the_share_of_signs_as_far_from_zero(differences):
    """All sign patterns of a few prompts, counted one by one."""
    sums = np.abs([np.dot(signs, differences) for signs in product((-1, 1), repeat=len(differences))])
    expected = (sums >= abs(sum(differences))).mean()
    found = paired_difference(np.array(differences) + 0.5, np.full(len(differences), 0.5), resamples=1000)
    assert found.p_value == pytest.approx(min(1.0, expected))


def test_a_clear_difference_is_told_from_none():
    """Ten prompts that all gain have p = 2/1024 and an interval above 0; as many gains as losses have neither."""
    gains = np.linspace(0.1, 0.3, 10)
    clear = paired_difference(gains, np.zeros(10))
    assert clear.p_value == pytest.approx(2 / 1024)
    assert 0.1 <= clear.low < clear.mean < clear.high <= 0.3
    even = paired_difference([0.2, 0.0] * 5, [0.0, 0.2] * 5)
    assert even.low < 0 < even.high
    assert even.p_value == 1.0
    assert paired_difference([0.4], [0.4]).p_value == 1.0


def test_values_that_can_t_be_compared_are_errors():
    """One finite value per prompt, and the same prompts."""
    for values in ([], [float("nan")], np.zeros((2, 2))):
        with pytest.raises((ValueError, TypeError)):
            bootstrap_interval(values)
    with pytest.raises(ValueError, match="first has 2 values and second 3, but they are paired"):
        paired_difference([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"level is 95.0, but a confidence lies between 0 and 1"):
        bootstrap_interval([0.0, 1.0], 95.0)
    with pytest.raises(ValueError, match="resamples is 10, too few"):
        bootstrap_interval([0.0, 1.0], resamples=10)


def test_agreement_is_over_frames_in_common():
    """Judges of every 2nd and every 3rd frame share every 6th; counts of other shapes are no agreement."""
    counts = np.arange(24).reshape(12, 2)
    assert agreement(DETECTED, DETECTED) == 1.0
    assert agreement(DETECTED, DETECTED + np.array([0, 1])) == 0.5
    assert agreement(counts[::2], counts[::3], 2, 3) == 1.0
    assert agreement(counts, np.where(np.arange(12)[::4, None] == 4, -1, counts[::4]), 1, 4) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"frames in common are \(12, 2\) and \(3, 2\)"):
        agreement(counts, counts[::4])
    with pytest.raises(ValueError, match="both must be at least 1"):
        agreement(counts, counts, 0)


def test_many_prompts_take_the_limit_of_the_bootstrap(monkeypatch):
    """From RESAMPLED on: of skewed values it is BCa's interval to a 25th of its width, and p the sign test's."""
    values = np.random.default_rng(0).exponential(size=RESAMPLED + 1) ** 1.5
    other = values + np.random.default_rng(1).normal(0.03, 1, len(values))
    limit, p_value = bootstrap_interval(values), paired_difference(values, other).p_value
    monkeypatch.setattr("numina.metrics.RESAMPLED", len(values))
    resampled = bootstrap_interval(values, resamples=4000)
    width = resampled.high - resampled.low
    assert limit.low == pytest.approx(resampled.low, abs=width / 25)
    assert limit.high == pytest.approx(resampled.high, abs=width / 25)
    assert limit.high - limit.mean > limit.mean - limit.low, "the long tail is above"
    signs = paired_difference(values, other, resamples=4000).p_value
    assert p_value == pytest.approx(signs, abs=0.025)  # three standard deviations of so many signs


def test_a_million_prompts_take_seconds():
    """Neither resamples nor a jackknife of so many are made."""
    values = (np.arange(1_000_000) % 7 < 5).astype(float)
    found = bootstrap_interval(values)
    assert found.low < found.mean < found.high
    assert paired_difference(values, values[::-1]).p_value > 0.5
