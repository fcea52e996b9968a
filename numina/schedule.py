"""When a denoising step comes: its noise level, as a share of the model's native schedule.

Settings such as t* are shares of a schedule. With ``schedule_by`` "noise" a share is a noise level: 8 steps, 30 or 50,
and a sampler of another flow shift than the model's native one, are read and guided at the same noise. With "index" it
is a number of steps, as published: step 20 of 50, and in proportion of any other number, whatever the flow shift.

    s = 1 − i/steps                     time left, before the shift
    σ = a·s / (1 + (a − 1)·s)           noise level under flow shift a (arXiv 2403.03206 §5.3.2)
    time = 1 − s', s' of σ under the native shift

By index, at the native shift, and where a sampler has no shift, step i of n is at time i/n. If noise levels are given
instead of a shift, each is σ above.
"""

import math
from collections.abc import Sequence

from numina.config import GuideConfig


def schedule_times(steps: int, shift: float | None = None, native: float | None = None) -> tuple[float, ...]:
    """The time of each step, from 0 (pure noise) up to below 1; ``shift`` is the sampler's, ``native`` the model's."""
    if shift is None or native is None or shift == native:
        return tuple(i / steps for i in range(steps))
    return times_of(noise_levels(steps, shift), native)


def noise_levels(steps: int, shift: float) -> tuple[float, ...]:
    """σ of each step under a flow shift, from 1 down to above 0."""
    return tuple(_shifted(1 - i / steps, shift) for i in range(steps))


def times_of(sigmas: Sequence[float], native: float) -> tuple[float, ...]:
    """The time of each noise level under the model's native shift."""
    return tuple(1 - _unshifted(sigma, native) for sigma in sigmas)


def _shifted(left: float, shift: float) -> float:
    return shift * left / (1 + (shift - 1) * left)


def _unshifted(noise: float, shift: float) -> float:
    return noise / (shift - (shift - 1) * noise)


PUBLISHED_STEPS = 50  # the schedule that δ(t) is written for


def intensity(time: float, config: GuideConfig) -> float:
    """δ at a step's time (`numina.schedule`); 0 where guidance is off.

    tanh: ¼·(4 − 3·tanh(t − 25)) with t = 50·time, from 1.75 down to 0.25 (published, for 50 steps).
    """
    if time >= config.until - 1e-9:
        return 0.0
    if config.schedule == "constant":
        return config.strength
    return 0.25 * (4.0 - 3.0 * math.tanh(time * PUBLISHED_STEPS - PUBLISHED_STEPS / 2))
