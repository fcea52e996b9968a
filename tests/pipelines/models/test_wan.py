"""Wan's adapter: what it computes is what diffusers' pipeline does."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from numina.config import IdentifyConfig
from numina.errors import ConfigError
from pipelines.models.families import inspect
from pipelines.models.wan import WanModel
from tests.pipelines.conftest import GENERATION, NEGATIVES, PROMPTS


def test_offsets_stand_in_the_cleaned_prompt(tiny_model: WanModel) -> None:
    """Offsets count in the text that was tokenized, after the pipeline's own cleaning."""
    [text] = tiny_model.encode(["  three   red circles &amp; two blue squares"], [""], GENERATION)
    assert text.prompt == "three red circles & two blue squares"
    words = [text.prompt[start:end] for start, end in text.offsets if end]
    assert words[:3] == ["three", "red", "circles"]


def test_texts_of_a_batch_are_the_prompts_own(tiny_model: WanModel) -> None:
    """A prompt's states, offsets and negative states are those it has alone; at scale 1 the last are left out."""
    for clip, together in enumerate(tiny_model.encode(PROMPTS, NEGATIVES, GENERATION)):
        [alone] = tiny_model.encode([PROMPTS[clip]], [NEGATIVES[clip]], GENERATION)
        assert (together.prompt, together.offsets) == (alone.prompt, alone.offsets)
        torch.testing.assert_close(together.conditional, alone.conditional, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.unconditional, alone.unconditional, atol=1e-5, rtol=1e-5)
    unguided = tiny_model.encode(PROMPTS, NEGATIVES, replace(GENERATION, guidance_scale=1.0))
    assert [text.unconditional for text in unguided] == [None] * len(PROMPTS)


def test_a_shortened_schedule_ends_at_the_clean_clip(tiny_model: WanModel) -> None:
    """The kept steps have the timesteps and noise levels of the whole schedule, and the last leads to no noise."""
    whole, kept = tiny_model.scheduler(GENERATION), tiny_model.scheduler(GENERATION, [0, 2, 5])
    assert torch.equal(kept.timesteps, whole.timesteps[[0, 2, 5]])
    assert torch.equal(kept.sigmas, whole.sigmas[[0, 2, 5, 6]])
    assert kept.sigmas[-1] == 0


@pytest.mark.parametrize("steps", [8, 30, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_times_are_those_of_the_samplers_noise(tiny_model: WanModel, shift: float, steps: int) -> None:
    """The sampler's noise levels, unshifted by the native shift, are the time that is left, to one training step.

    Of 1000, and of the sampler's own shift: its last step would lead to the first training step's noise, not to none.
    """
    generation = replace(GENERATION, steps=steps, flow_shift=shift)
    noise = tiny_model.scheduler(generation).sigmas[:-1]
    native = tiny_model.facts.native_shift(generation)
    left = noise / (native - (native - 1) * noise)
    times = torch.tensor(tiny_model.facts.times(generation))
    torch.testing.assert_close(left, 1 - times, atol=1e-3 * max(1.0, shift / native), rtol=0)


def test_the_native_shift_follows_the_size(tiny_checkpoint: Path) -> None:
    """A checkpoint of shift 3 is sampled at 3 up to 480p and at 5 beyond, as Wan2.1's README has it, unless told."""
    facts = replace(inspect(tiny_checkpoint), shift=3.0)
    small, large = (replace(GENERATION, height=height, width=width) for height, width in ((480, 832), (720, 1280)))
    assert (facts.native_shift(small), facts.native_shift(large)) == (3.0, 5.0)
    assert facts.flow_shift(large) == 5.0
    assert facts.flow_shift(replace(large, flow_shift=8.0)) == 8.0
    assert facts.times(large) == tuple(step / GENERATION.steps for step in range(GENERATION.steps))


@pytest.mark.parametrize("sampler", ["native", "euler", "renoise"])
def test_times_of_given_noise_levels(tiny_model: WanModel, sampler: str) -> None:
    """They are the sampler's, and their times those of the native schedule; by index, shares of the steps."""
    sigmas = [0.9, 0.75, 0.3]
    generation = replace(GENERATION, steps=3, sampler=sampler, sigmas=sigmas)
    made = tiny_model.scheduler(generation)
    assert made.sigmas.tolist() == pytest.approx([*sigmas, 0.0])
    assert made.timesteps.tolist() == pytest.approx([900, 750, 300], abs=1)
    native = tiny_model.facts.native_shift(generation)
    left = [sigma / (native - (native - 1) * sigma) for sigma in sigmas]
    assert tiny_model.facts.times(generation) == pytest.approx([1 - own for own in left])
    assert tiny_model.facts.times(generation, "index") == (0, 1 / 3, 2 / 3)
    assert IdentifyConfig().capture_step(tiny_model.facts.times(generation)) == 1


@pytest.mark.parametrize("steps", [8, 30, 50])
@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_by_index_times_are_shares_of_the_steps(tiny_checkpoint: Path, shift: float, steps: int) -> None:
    """The published forms count steps, step 20 of 50, whatever the shift; by noise shift 5 reads and ends later."""
    facts = replace(inspect(tiny_checkpoint), shift=3.0)
    generation = replace(GENERATION, steps=steps, flow_shift=shift)
    assert facts.times(generation, "index") == tuple(step / steps for step in range(steps))
    assert IdentifyConfig().capture_step(facts.times(generation, "index")) == math.ceil(0.4 * steps)
    if shift == 5.0 and steps == 50:
        assert IdentifyConfig().capture_step(facts.times(generation, "noise")) == 27


def test_a_sampler_without_shift_refuses_one(twin: Callable[[str], Path]) -> None:
    """CogVideoX's sampler is no flow's: its times are shares of the steps, and a shift is an error that says so."""
    facts = inspect(twin("cogvideox-5b"))
    assert facts.native_shift(GENERATION) is None
    assert facts.times(GENERATION) == tuple(step / GENERATION.steps for step in range(GENERATION.steps))
    for by in ("noise", "index"):
        with pytest.raises(ConfigError, match=r"flow_shift is 3, but .* CogVideoXDDIMScheduler.* leave it null"):
            facts.times(replace(GENERATION, flow_shift=3.0), by)
