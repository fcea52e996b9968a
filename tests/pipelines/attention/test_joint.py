"""CogVideoX's joint attention, looked on at and guided, against the method written out in float64."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from numina.bias import ShardGuidance
from numina.config import GuideConfig, MethodConfig
from numina.errors import ConfigError
from numina.guidance import GuidancePlan
from numina.prompts.tokens import TokenSpans
from pipelines.attention.cross import guided, processors
from pipelines.attention.joint import GuidedJointAttention, attend, project
from pipelines.base import GenerationConfig, Text
from pipelines.models.cogvideox import CogVideoXModel
from pipelines.parallel.shard import ALONE
from pipelines.sampling import denoise
from tests.pipelines.attention.test_cross import CONFIGS, F, H, T, W, plan_with
from tests.pipelines.conftest import GENERATION, NEGATIVES, PROMPTS, SEEDS
from tests.pipelines.rules import ruled

N_ROWS = F * H * W


@pytest.fixture(scope="module")
def model(twin: Callable[[str], Path]) -> CogVideoXModel:
    return CogVideoXModel.load(twin("cogvideox-5b"))


@pytest.fixture(scope="module")
def texts(model: CogVideoXModel) -> list[Text]:
    return model.encode(PROMPTS, NEGATIVES, GENERATION)


def states(attn: torch.nn.Module, clips: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Random states of video and text, and the rotary tables of a clip of F × H × W tokens."""
    generator = torch.Generator().manual_seed(0)
    width = attn.to_q.in_features
    rotary = torch.rand(N_ROWS, width // attn.heads // 2, generator=generator).repeat_interleave(2, dim=1)
    video = torch.randn(clips, N_ROWS, width, generator=generator)
    return video, torch.randn(clips, T, width, generator=generator), (rotary.cos(), rotary.sin())


def by_the_book(attn: torch.nn.Module, video: Any, text: Any, rotary: Any, plan: GuidancePlan, delta: float) -> Any:
    """Joint attention of one clip with all scores at hand."""
    query, key, value = (x[0].double() for x in project(attn, text, video, rotary))
    scores = query @ key.mT / query.shape[-1] ** 0.5  # [N, L, L]
    scores[:, T:, :T] = ruled(scores[:, T:, :T], plan, delta)
    output = (scores.softmax(dim=-1) @ value).transpose(0, 1).flatten(1)
    output = torch.nn.functional.linear(output, attn.to_out[0].weight.double(), attn.to_out[0].bias.double())
    return output[T:], output[:T]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("delta", [1.75, 0.25])
def test_the_processor_computes_the_rules(model: CogVideoXModel, config: GuideConfig, delta: float) -> None:
    """Video rows of a batch are guided on their text columns, clip by clip; text rows are what they were."""
    attn = model.blocks[1].attn1
    video, text, rotary = states(attn, clips=3)
    plans = [plan_with(config, variant) for variant in (0, 1, 0)]
    guidance = ShardGuidance.prepare(plans, slice(0, N_ROWS), T, tail_alone=True)
    with torch.inference_mode():
        expected = [
            by_the_book(attn, video[i : i + 1], text[i : i + 1], rotary, plan, delta) for i, plan in enumerate(plans)
        ]
        with guided(model, ALONE, guidance, delta):
            found = attn(video, text, image_rotary_emb=rotary)
        plain = attn(video, text, image_rotary_emb=rotary)
    for part, wanted in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(part.double(), torch.stack(wanted), atol=2e-5, rtol=2e-5)
    assert not torch.allclose(plain[0], found[0], atol=1e-3)
    torch.testing.assert_close(plain[1], found[1], atol=2e-5, rtol=2e-5)


def test_a_dominant_token_is_taken_away_without_a_trace(model: CogVideoXModel) -> None:
    """In bfloat16, a token that held nearly all of a row's attention is suppressed and the rest stands as exact as
    ever: its part isn't subtracted, it is never added."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 40, 16) for _ in range(3))
    query[..., 0], key[..., 0] = 6, 0
    key[:, :, 3, 0] = 6  # all rows look for it …
    value[:, :, 3] *= 1000  # … and it hides what the others give
    mask = torch.zeros(1, 1, 40, 4)
    mask[..., 3] = -1e4
    half = [x.bfloat16() for x in (query, key, value)]
    with torch.inference_mode():
        out, lse = attend(half[0], half[1][:, :, 4:], half[2][:, :, 4:])
        tail, tail_lse = attend(half[0], half[1][:, :, :4], half[2][:, :, :4], mask.bfloat16())
    joined = torch.lerp(out.float(), tail.float(), torch.sigmoid(tail_lse - lse)[..., None])
    scores = half[0].double() @ half[1].double().mT / 16**0.5
    assert scores.softmax(dim=-1)[..., 3].mean() > 0.9
    scores[..., 3] = -torch.inf
    exact = scores.softmax(dim=-1) @ half[2].double()
    assert (joined.double() - exact).abs().max() < 0.02 * exact.abs().max()


def test_looking_on_shows_the_blocks_own_scores_and_changes_nothing(model: CogVideoXModel) -> None:
    """Queries and keys that are shown give the attention that the block computes, text columns and video columns."""
    attn = model.blocks[0].attn1
    video, text, rotary = states(attn, clips=2)
    seen: dict[str, Any] = {}
    watched = model.onlookers(
        0, lambda query, key: seen.update(cross=(query, key)), lambda query, key: seen.update(own=(query, key))
    )
    with torch.inference_mode():
        before = attn(video, text, image_rotary_emb=rotary)
        with processors(watched):
            after = attn(video, text, image_rotary_emb=rotary)
        query, key, _ = project(attn, text, video, rotary)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    assert seen["cross"][0].shape == (2, N_ROWS, 4, 16)
    assert torch.equal(seen["cross"][0], query[:, :, T:].transpose(1, 2))
    assert torch.equal(seen["cross"][1], key[:, :, :T].transpose(1, 2))
    assert torch.equal(seen["own"][1], key[:, :, T:].transpose(1, 2))


def test_decoding_is_the_vaes_own(model: CogVideoXModel) -> None:
    """Pixels are what diffusers' pipeline makes of the latents, rounded to bytes; every frame is there."""
    latents = model.noise([3, 4], GENERATION)
    theirs = model.pipeline.decode_latents(latents.transpose(1, 2))
    ours, finite = model.decode(latents) or (None, None)
    assert ours is not None
    assert finite.tolist() == [True, True]
    assert ours.shape == (2, GENERATION.num_frames, 64, 64, 3)
    expected = ((theirs + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 4, 1)
    assert (ours.float() - expected).abs().max() <= 1


def test_a_batch_is_guided_clip_by_clip(model: CogVideoXModel, texts: list[Text]) -> None:
    """Identified and guided together, clips are what they are alone."""
    spans = [(TokenSpans(noun=(2,), phrase=(1, 2), first=(2,)),)] * len(PROMPTS)
    method = MethodConfig()

    def run(clips: list[int]) -> tuple[Any, Any]:
        own = [texts[i] for i in clips]
        chosen, seeds = [spans[i] for i in clips], [SEEDS[i] for i in clips]
        _, captures = denoise.identify(model, ALONE, own, chosen, seeds, GENERATION, method)
        grid = model.grid(GENERATION)
        plans = []
        for i in clips:
            plan = plan_with(method.guide, i % 2)
            regions = torch.from_numpy(plan.regions).repeat(1, 2, 1, 1)[:, : grid.frames].numpy()
            plans.append(replace(plan, regions=regions))
        return captures, denoise.guide(model, ALONE, own, plans, seeds, GENERATION)

    captures, latents = run([0, 1, 2])
    for i in range(len(PROMPTS)):
        [capture], [alone] = run([i])
        torch.testing.assert_close(torch.as_tensor(captures[i].responses), torch.as_tensor(capture.responses))
        torch.testing.assert_close(latents[i], alone, atol=1e-4, rtol=1e-4)


def test_compiled_blocks_serve_every_plan(model: CogVideoXModel, fresh_compiler: None) -> None:
    """Other rows, strengths and intensities need no new graph."""
    attn = model.blocks[1].attn1
    video, text, rotary = states(attn, clips=1)
    traced = torch.compile(lambda own: own(attn, video, text, image_rotary_emb=rotary), backend="aot_eager")
    for config in (CONFIGS["paper"], CONFIGS["closed"]):
        with torch.inference_mode():
            for i, (variant, delta) in enumerate([(0, 1.75), (1, 0.5), (0, 0.25)]):
                guidance = ShardGuidance.prepare([plan_with(config, variant)], slice(0, N_ROWS), T, tail_alone=True)
                guidance.set(delta)
                own = GuidedJointAttention(guidance, ALONE)
                with torch.compiler.set_stance("fail_on_recompile" if i > 1 else "default"):
                    found = traced(own)
                expected = own(attn, video, text, image_rotary_emb=rotary)
                torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", ["taylorseer", "first_block", "cfg_cache"])
def test_step_caches_stay_near_the_whole_computation(model: CogVideoXModel, texts: list[Text], cache: str) -> None:
    """A cached clip is another one than the computed, and not far from it: its two branches keep apart."""
    long = replace(GENERATION, steps=12)

    def denoised(cache: str) -> Any:
        generation = replace(long, cache=cache)
        return denoise.finish(model, denoise.start(model, [1], generation), texts[:1], generation)

    whole, cached = denoised("none"), denoised(cache)
    apart = (cached - whole).norm() / whole.norm()
    assert (0 if cache == "first_block" else 1e-4) <= apart < 0.05  # these weights give it nothing to skip


def test_numbers_of_frames_that_the_vae_cannot_make_are_refused(model: CogVideoXModel) -> None:
    """8k + 1, and the nearest is named: of 13 frames it would make 16."""
    for frames, instead in ((13, 17), (21, 17), (5, 1)):
        with pytest.raises(ConfigError, match=rf"is {frames}; .* 8k \+ 1: use {instead}"):
            model.grid(replace(GENERATION, num_frames=frames))
    for frames in (1, 9, 25):
        clip = replace(GENERATION, num_frames=frames)
        decoded = model.decode(model.noise([0], clip))
        assert decoded is not None
        assert decoded.pixels.shape[1] == frames


def test_what_its_sampler_cannot_do_is_refused(model: CogVideoXModel) -> None:
    """Steps that are left out, and a flow shift."""
    with pytest.raises(ConfigError, match="use stride 1"):
        model.facts.check_stride(2)
    shifted: GenerationConfig = replace(GENERATION, flow_shift=3.0)
    with pytest.raises(ConfigError, match="leave it null"):
        model.scheduler(shifted)
