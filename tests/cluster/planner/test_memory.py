"""What a GPU must hold: what was measured comes out, and what is spread is divided."""

from dataclasses import replace

import pytest

from cluster.planner import Setup
from tests.cluster.planner.conftest import FOUR, H100, Plan


def test_a_transformers_peak_is_what_was_measured(planner: Plan) -> None:
    """14B at 480p on one GPU, weights and activations: 33 GiB, within a tenth."""
    [measured] = [row.gib for row in H100.forward.rows if row.gib]
    memory = planner().memory.of(Setup())
    assert measured == 33
    assert memory.transformer == pytest.approx(26.6, rel=0.01)  # 14.3e9 parameters, stored in float32, held in bfloat16
    assert memory.transformer + memory.denoising == pytest.approx(measured, rel=0.1)


def test_decoding_peaks_as_measured_and_is_split(planner: Plan) -> None:
    """9.3 GiB at 480p on one GPU, whatever the frames; a rank's share in a gang; by the pixels of a frame elsewhere."""
    assert planner().memory.of(Setup()).decoding == pytest.approx(9.3)
    assert planner("generation.num_frames=41").memory.of(Setup()).decoding == pytest.approx(9.3)
    assert planner().memory.of(Setup(cfg=2, ulysses=2)).decoding == pytest.approx(5.2 / 2)
    assert planner("parallel.batch=2").memory.of(Setup()).decoding == pytest.approx(2 * 9.3)
    large = planner("generation.height=720", "generation.width=1280").memory
    assert large.of(Setup()).decoding == pytest.approx(9.3 * 720 * 1280 / (480 * 832))


def test_what_a_rank_holds(planner: Plan) -> None:
    """Sharding divides weights by the ranks, offloading leaves none; ranks divide activations; phases don't add up."""
    memory = planner().memory
    whole, shared = memory.of(FOUR), memory.of(replace(FOUR, shard="zero3"))
    offloaded = memory.of(replace(FOUR, shard="zero3_offload"))
    block = 351e6 * 2 / 2**30
    assert shared.transformer == pytest.approx(whole.transformer / 4)
    assert shared.denoising == pytest.approx(whole.denoising + block, rel=0.01)
    assert shared.encoding == pytest.approx(256384 * 4096 * 2 / 2**30)  # all embeddings at once
    assert (offloaded.transformer, offloaded.text_encoder) == (0, 0)
    assert whole.text_encoder == 12.6
    assert memory.of(replace(FOUR, text_encoder="apart")).text_encoder == 0
    assert whole.denoising == pytest.approx(memory.of(Setup()).denoising / 4)
    held = whole.transformer + whole.text_encoder + whole.vae + whole.states
    assert whole.peak == pytest.approx((held + max(whole.denoising, whole.decoding) + 0.6) * 1.05)
    assert planner("model.dtype=float32").memory.weights == memory.weights  # the plan's dtype is what counts


def test_anchored_guidance_keeps_its_path(planner: Plan) -> None:
    """Latents of 21 steps with the sampler's, of two clips in flight; without an anchor next to nothing."""
    latents = 16 * 21 * 60 * 104 * 4 / 2**30
    assert planner().memory.of(FOUR).states == pytest.approx(2 * latents * (3 * 21 + 1))
    assert planner("method.guide.anchor=null").memory.of(FOUR).states == pytest.approx(2 * latents)
