"""What a GPU must hold: what was measured comes out, and what is spread is divided."""

from dataclasses import replace

import pytest

from cluster.planner import Setup
from cluster.planner.measured import DecodeBlock
from tests.cluster.planner.conftest import COG_5B, FOUR, H100, WAN_5B, Plan


def test_a_transformers_peak_is_what_was_measured(planner: Plan) -> None:
    """14B at 480p on one GPU, weights and activations: 33 GiB, within a tenth."""
    [measured] = [row.gib for row in H100.forward.rows if row.gib and row.heads == 40]
    memory = planner().memory.of(Setup())
    assert measured == 33
    assert memory.transformer == pytest.approx(26.6, rel=0.01)  # 14.3e9 parameters, stored in float32, held in bfloat16
    assert memory.transformer + memory.denoising == pytest.approx(measured, rel=0.1)


def test_decoding_peaks_as_measured_and_is_split(planner: Plan) -> None:
    """7.6 GiB at 480p on one GPU, whatever the frames; a rank's share in a gang; by the pixels of a frame elsewhere."""
    assert planner().memory.of(Setup()).decoding == pytest.approx(7.6)
    assert planner("generation.num_frames=41").memory.of(Setup()).decoding == pytest.approx(7.6)
    assert planner().memory.of(Setup(cfg=2, ulysses=2)).decoding == pytest.approx(4.1 / 2)
    assert planner().memory.of(Setup(batch=2)).decoding == pytest.approx(2 * 7.6)
    large = planner("generation.height=720", "generation.width=1280").memory
    assert large.of(Setup()).decoding == pytest.approx(7.6 * 720 * 1280 / (480 * 832))


def test_decoding_in_half_precision_holds_less(planner: Plan) -> None:
    """As measured, or no less than counted; its weights take half. CogVideoX's in float32 takes twice its own."""
    half = "generation.vae_dtype=bfloat16"
    exact, quick = planner().memory.of(Setup()), planner(half).memory.of(Setup())
    assert quick.decoding == pytest.approx(6.7)
    assert quick.vae == exact.vae / 2
    assert planner(half, wan=WAN_5B).memory.of(Setup()).decoding == pytest.approx(13.2)
    table = replace(H100, decode=DecodeBlock(rows=[row for row in H100.decode.rows if row.dtype == "float32"]))
    assert 13.2 < planner(half, wan=WAN_5B, gpu=table).memory.of(Setup()).decoding < 20
    doubled = planner("generation.vae_dtype=float32", wan=COG_5B).memory.of(Setup())
    assert doubled.decoding == pytest.approx(2 * 14.8)
    assert doubled.transformer == planner(wan=COG_5B).memory.of(Setup()).transformer


def test_a_decoder_that_was_not_measured_is_taken_for_no_less(planner: Plan) -> None:
    """From Wan2.1's rows: at least what Wan2.2's and CogVideoX's hold at their own size, counted on fake tensors."""
    table = replace(H100, decode=DecodeBlock(rows=[row for row in H100.decode.rows if row.decoder_width == 96]))
    for shape, counted in ((WAN_5B, 18.1), (COG_5B, 14.7)):
        assert counted < planner(wan=shape, gpu=table).memory.of(Setup()).decoding < 2 * counted


def test_cogvideox_decodes_on_one_rank_in_its_own_dtype(planner: Plan) -> None:
    """Neither ranks nor a batch's other clips change that; a block works on text and video tokens, split by no rank."""
    memory = planner(wan=COG_5B).memory
    one, two = memory.of(Setup()), memory.of(Setup(cfg=2, batch=2))
    assert one.decoding == two.decoding
    assert one.vae == pytest.approx(215.6e6 * 2 / 2**30, rel=0.01)
    assert planner(wan=WAN_5B).memory.of(Setup()).vae == pytest.approx(704.7e6 * 4 / 2**30, rel=0.01)
    assert one.transformer == pytest.approx(5.57e9 * 2 / 2**30, rel=0.01)
    assert two.denoising == 2 * one.denoising == pytest.approx(2 * (17550 + 226) * 13 * 3072 * 2 * 1.8 / 2**30)


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
