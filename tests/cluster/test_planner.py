"""Plans: sizes from configs, times from measured tables, nothing invented where nothing was measured."""

from dataclasses import replace

import pytest

from cluster.driver import JobPlan
from cluster.job import load_job
from cluster.planner import estimate
from cluster.promptset import PromptRow
from numina.prompts import Target
from pipelines.base import ModelFacts

WAN_14B = ModelFacts(
    path="",
    name="Wan2.1-T2V-14B",
    revision="",
    depth=40,
    heads=40,
    head_size=128,
    token_strides=(4, 16, 16),
    transformer_bytes=28 * 2**30,
)
ROW = PromptRow(index=0, id=None, prompt="two cats", targets=(Target("cats", 2),), negative_prompt=None, seed=None)
ROWS = [replace(ROW, index=index, id=f"row {index}") for index in range(10)]


def plan(*overrides: str) -> JobPlan:
    job = load_job("wan14b", ["model.path=unread", *overrides])
    return JobPlan(job=job, model=WAN_14B, device="cuda", dtype="bfloat16", rows=ROWS)


def test_a_measured_shape_gets_its_time() -> None:
    """480p on four ranks: 1.012 s a forward, two forwards a step, 50 steps, and the 21 steps through t* before them."""
    found = estimate(plan("parallel.gangs=2"))
    assert found.tokens == 32760
    assert found.seconds_per_video == pytest.approx(1.012 * 2 * (50 + 21))
    assert found.hours == pytest.approx(10 * found.seconds_per_video / 2 / 3600)
    assert found.weights_gib == 28


def test_without_guidance_scale_a_step_is_one_forward() -> None:
    """Classifier-free guidance off halves the time; the baseline has no first phase."""
    full = estimate(plan("strategies=[baseline]")).seconds_per_video
    half = estimate(plan("strategies=[baseline]", "generation.guidance_scale=1")).seconds_per_video
    assert full == pytest.approx(1.012 * 2 * 50)
    assert half == pytest.approx(full / 2)


def test_variants_and_strides_count() -> None:
    """A variant's videos are its own, and a stride of 2 halves the steps before t*; times are the strategies' mean."""
    variant = "variants.quick={identify: {stride: 2}, guide: {anchor: null}}"
    found = estimate(plan("strategies=[baseline]", variant))
    assert found.videos == 20
    assert found.seconds_per_video == pytest.approx(1.012 * 2 * (50 + (50 + 11)) / 2)
    assert estimate(plan("strategies=[]", variant)).seconds_per_video == pytest.approx(1.012 * 2 * (50 + 11))


def test_what_was_not_measured_gets_no_time() -> None:
    """Another shape, degree or model: no number rather than a guess."""
    assert estimate(plan("generation.height=720", "generation.width=1280")).seconds_per_video is None
    assert estimate(plan("parallel.ulysses=5")).hours is None
    assert estimate(replace(plan(), device="cpu")).hours is None
    unknown = replace(plan(), model=replace(WAN_14B, depth=30))
    assert estimate(unknown).measured_on is None
