"""Few-step samplers: diffusers' steps are the formulas, and all that holds for a model's own sampler holds for them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.guidance import GuidancePlan
from pipelines.base import GenerationConfig, Text
from pipelines.models.wan import WanModel
from pipelines.parallel.shard import Shard
from pipelines.parallel.support import CACHES
from pipelines.sampling import denoise
from tests.pipelines.conftest import GENERATION, SEEDS
from tests.pipelines.sampling.test_denoise import Spans, some_plan

LIGHTX2V = [1.0, 0.9375, 0.8333, 0.625]
RCM = [0.9877, 0.9338, 0.8529, 0.6090]  # begins below pure noise
SAMPLED = {
    "euler": replace(GENERATION, sampler="euler"),
    "euler, given noise levels": replace(GENERATION, sampler="euler", steps=4, sigmas=LIGHTX2V),
    "renoise": replace(GENERATION, sampler="renoise"),
    "renoise, given noise levels": replace(GENERATION, sampler="renoise", steps=4, sigmas=RCM),
    "native, given noise levels": replace(GENERATION, steps=4, sigmas=LIGHTX2V),
}
METHOD = MethodConfig(
    identify=IdentifyConfig(source="peaks", head="mean", step=0.5),
    guide=GuideConfig(overwrite="none", schedule="constant", until=0.5, anchor=0),
)

sampled = pytest.mark.parametrize("generation", SAMPLED.values(), ids=SAMPLED)


def plain(model: WanModel, texts: Sequence[Text], generation: GenerationConfig, seeds: Sequence[int]) -> Tensor:
    return denoise.finish(model, denoise.start(model, seeds, generation), texts, generation)


def velocity(model: WanModel, text: Text, x: Tensor, sigma: float) -> Tensor:
    """Of both branches, in float64 around the model's own forwards."""
    time = torch.tensor(1000 * sigma, dtype=torch.float32)
    with torch.inference_mode():
        seen, away = (model.predict(x.float(), time, own).double() for own in (text.conditional, text.unconditional))
    return away + GENERATION.guidance_scale * (seen - away)


@pytest.mark.parametrize("name", ["euler", "euler, given noise levels", "renoise", "renoise, given noise levels"])
def test_a_clip_is_the_formulas(tiny_model: WanModel, texts: list[Text], name: str) -> None:
    """Written out in float64: from noise of the first level, along the flow, or to the clean clip and back."""
    generation, seed = SAMPLED[name], 2**40
    shift = tiny_model.facts.native_shift(generation)
    share = [1 - step / generation.steps for step in range(generation.steps)]
    sigmas = generation.sigmas or [shift * s / (1 + (shift - 1) * s) for s in share]
    x = sigmas[0] * tiny_model.noise([seed], generation).double()
    for step, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        v = velocity(tiny_model, texts[0], x, sigma)
        if generation.sampler == "euler":
            x = x + (after - sigma) * v
        else:
            [generator] = denoise.new_noise([seed], step)
            noise = torch.randn(x.shape, generator=generator)
            x = (1 - after) * (x - sigma * v) + after * noise.double()
    torch.testing.assert_close(plain(tiny_model, texts[:1], generation, [seed]).double(), x, atol=1e-5, rtol=1e-5)


@sampled
def test_a_right_clip_is_the_plain_clip(
    tiny_model: WanModel, texts: list[Text], spans: Spans, generation: GenerationConfig
) -> None:
    """Bit for bit, also when a lost gang's clip is begun again, and as one of a batch is taken out of it."""
    for _ in range(2):
        state, _ = denoise.identify(tiny_model, Shard(), texts[:1], spans[:1], [7], generation, METHOD)
        clip = denoise.finish(tiny_model, state.take([0]), texts[:1], generation)
        assert torch.equal(clip, plain(tiny_model, texts[:1], generation, [7]))
    state, _ = denoise.identify(tiny_model, Shard(), texts, spans, SEEDS, generation, METHOD)
    part = denoise.finish(tiny_model, state.take([2, 0]), [texts[2], texts[0]], generation)
    whole = denoise.finish(tiny_model, state, texts, generation)
    torch.testing.assert_close(part, whole[[2, 0]], atol=1e-5, rtol=1e-5)
    assert torch.equal(whole, plain(tiny_model, texts, generation, SEEDS))


@sampled
def test_a_batch_is_its_clips(
    tiny_model: WanModel, texts: list[Text], spans: Spans, generation: GenerationConfig
) -> None:
    """Plain and guided: noise comes from each clip's own seed."""
    plans = [some_plan(own, METHOD.guide, variant) for variant, own in enumerate(spans)]
    together = plain(tiny_model, texts, generation, SEEDS)
    guided = denoise.guide(tiny_model, Shard(), texts, plans, SEEDS, generation)
    for clip in range(3):
        own = slice(clip, clip + 1)
        alone = plain(tiny_model, texts[own], generation, SEEDS[own])
        torch.testing.assert_close(together[own], alone, atol=1e-5, rtol=1e-5)
        alone = denoise.guide(tiny_model, Shard(), texts[own], plans[own], SEEDS[own], generation)
        torch.testing.assert_close(guided[own], alone, atol=1e-5, rtol=1e-5)


@sampled
def test_a_guided_run_has_the_plain_runs_noise(
    tiny_model: WanModel, texts: list[Text], spans: Spans, generation: GenerationConfig
) -> None:
    """Anchored everywhere, it is the plain clip; where it edits, it leaves it there alone up to t*."""
    state, _ = denoise.identify(tiny_model, Shard(), texts[:1], spans[:1], [1], generation, METHOD)
    assert len(state.path) == state.step
    clip = plain(tiny_model, texts[:1], generation, [1])
    nothing = GuidancePlan(np.zeros((2, 5, 4, 4), dtype=np.int8), tuple(own.noun for own in spans[0]), METHOD.guide)
    untouched = denoise.guide(tiny_model, Shard(), texts[:1], [nothing], [1], generation, path=state.path)
    torch.testing.assert_close(untouched, clip, atol=1e-5, rtol=1e-5)
    plans = [some_plan(spans[0], METHOD.guide)]
    anchored, loose = (
        denoise.guide(tiny_model, Shard(), texts[:1], plans, [1], generation, path=path) for path in (state.path, ())
    )
    assert 0 < (anchored - clip).abs().mean() < (loose - clip).abs().mean()


def test_each_step_and_seed_has_its_own_noise() -> None:
    """And equal ones the same, whatever is drawn elsewhere."""
    drawn = {
        (seed, step): torch.randn(1000, generator=denoise.new_noise([seed], step)[0])
        for seed in (0, 1, 2**63 - 1)
        for step in range(3)
    }
    for one, own in drawn.items():
        assert torch.equal(own, torch.randn(1000, generator=denoise.new_noise([5, one[0]], one[1])[1]))
        for other in drawn.keys() - {one}:
            assert abs(torch.corrcoef(torch.stack([own, drawn[other]]))[0, 1]) < 0.15


@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_keeps_given_noise_levels(tiny_model: WanModel, texts: list[Text], spans: Spans, stride: int) -> None:
    """Steps before t* that are left out; the others have their noise level, and their step's noise."""
    sigmas = [1.0, 0.97, 0.94, 0.9, 0.8, 0.5]
    generation = replace(GENERATION, sampler="renoise", sigmas=sigmas)
    method = MethodConfig(schedule_by="noise", identify=IdentifyConfig(source="peaks", step=0.4, stride=stride))
    times = tiny_model.facts.times(generation)
    kept = method.identify.schedule(times)
    assert len(kept) < 6
    state, _ = denoise.identify(tiny_model, Shard(), texts[:1], spans[:1], [1], generation, method)
    torch.testing.assert_close(state.scheduler.sigmas, torch.tensor([*(sigmas[step] for step in kept), 0.0]))
    assert torch.isfinite(denoise.finish(tiny_model, state, texts[:1], generation)).all()


@pytest.mark.parametrize("cache", [name for name in CACHES if name != "none"])
@pytest.mark.parametrize("name", ["euler, given noise levels", "renoise"])
def test_step_caches_work(tiny_model: WanModel, texts: list[Text], cache: str, name: str) -> None:
    """A cached clip is near the uncached one, and nothing stays behind."""
    generation = SAMPLED[name]
    before = plain(tiny_model, texts[:1], generation, [1])
    kept = plain(tiny_model, texts[:1], replace(generation, cache=cache), [1])
    other = plain(tiny_model, texts[:1], generation, [2])
    assert (kept - before).abs().mean() < (other - before).abs().mean()
    assert torch.equal(plain(tiny_model, texts[:1], generation, [1]), before)
