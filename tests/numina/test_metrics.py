import numpy as np
import pytest

from numina.metrics import (
    all_frames_exact,
    count_accuracy,
    count_stability,
    mean_absolute_error,
    signed_bias,
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
