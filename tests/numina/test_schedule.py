"""Shares of a schedule are noise levels: any number of steps, and any flow shift, is read and guided at the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numina.config import GuideConfig, IdentifyConfig
from numina.schedule import intensity, noise_levels, schedule_times, times_of

STEPS = st.integers(1, 100)
SHIFTS = st.floats(0.5, 12.0)


def noise(time: float | np.ndarray, shift: float) -> float | np.ndarray:
    """σ at a share of a schedule of this shift (arXiv 2403.03206 §5.3.2)."""
    return shift * (1 - time) / (1 + (shift - 1) * (1 - time))


@given(STEPS, SHIFTS)
def test_at_the_native_shift_times_are_shares_of_the_steps(steps, native):
    """Step i of n is at i/n, exactly: for the model's own shift, and where a sampler has none."""
    shares = tuple(i / steps for i in range(steps))
    assert schedule_times(steps) == schedule_times(steps, native, native) == shares


@given(STEPS, SHIFTS, SHIFTS)
def test_times_rise_from_pure_noise(steps, shift, native):
    """The first step is at 0, each later than the one before, all before 1."""
    times = schedule_times(steps, shift, native)
    assert times[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(times) > 0).all()
    assert times[-1] < 1


@given(STEPS, SHIFTS, SHIFTS)
def test_a_time_is_the_steps_own_noise_level(steps, shift, native):
    """The native schedule has at a step's time the noise that the sampler has at that step."""
    found = noise(np.array(schedule_times(steps, shift, native)), native)
    np.testing.assert_allclose(found, noise(np.arange(steps) / steps, shift), atol=1e-12)


@pytest.mark.parametrize(("steps", "index"), [(50, 20), (30, 12), (25, 10), (8, 4), (7, 3), (2, 1), (1, 0)])
def test_shorter_runs_are_read_at_the_published_noise_or_less(steps, index):
    """t* of 0.4: step 20 of 50 as published; where no step has its noise, the first that has less, never one more."""
    assert IdentifyConfig().capture_step(schedule_times(steps)) == index
    levels = noise(np.arange(steps) / steps, 3.0)
    assert levels[index] <= noise(0.4, 3.0) + 1e-9 or index == steps - 1
    assert (levels[:index] > noise(0.4, 3.0)).all()


@given(STEPS, SHIFTS, SHIFTS, st.floats(0, 1))
def test_another_shift_is_read_at_the_same_noise(steps, shift, native, share):
    """The captured step is the first whose noise is t*'s or less, but for rounding, whatever the sampler's shift."""
    times = schedule_times(steps, shift, native)
    index = IdentifyConfig(step=share).capture_step(times)
    slack = 1.1e-3
    assert index == steps - 1 or noise(times[index] + slack, native) <= noise(share, native) + 1e-9
    assert index == 0 or noise(times[index - 1], native) > noise(share, native) - 1e-9


@given(STEPS, SHIFTS, st.floats(0, 1), st.floats(0.01, 1))
def test_a_guided_run_never_starts_later_than_asked(steps, shift, start, until):
    """The last step at `start` or before that guidance reaches, but for rounding."""
    times = schedule_times(steps, shift, 3.0)
    index = GuideConfig(start=start, until=until).first_step(times)
    assert index == 0 or (times[index] < until and times[index] <= start + 1.1e-3)
    later = times[index + 1 : index + 2]
    assert not later or later[0] > start or later[0] >= until


def test_rounded_noise_levels_name_the_same_steps():
    """A sampler's noise levels are of single precision: no step is missed for their last digit."""
    times = times_of(np.float32(noise_levels(50, 3.0)).astype(float).tolist(), 3.0)
    assert IdentifyConfig(step=0.4).capture_step(times) == 20
    assert GuideConfig(start=0.2, until=0.4).first_step(times) == 10


@settings(deadline=None)
@given(st.sampled_from([8, 30, 50]) | STEPS, SHIFTS, SHIFTS, st.floats(0.1, 1), st.sampled_from(["tanh", "constant"]))
def test_guidance_follows_the_noise_level(steps, shift, native, until, schedule):
    """δ over the noise level is one curve, whatever the steps and the shift: that of a native run of 2000 steps."""
    config = GuideConfig(schedule=schedule, until=until)
    fine = np.arange(2000) / 2000
    curve = np.array([intensity(time, config) for time in fine])
    for step, time in enumerate(schedule_times(steps, shift, native)):
        same = np.searchsorted(-noise(fine, native), -noise(step / steps, shift))  # of that noise, in the native run
        near = curve[max(0, same - 2) : same + 2]
        assert near.min() - 1e-6 <= intensity(time, config) <= near.max() + 1e-6
