"""Anchored guidance: while a clip's layout forms, nothing is decided anew where nothing is edited."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.errors import ConfigError
from numina.guidance import GuidancePlan
from numina.prompts.tokens import locate_tokens
from numina.regions import Region
from pipelines.base import Text
from pipelines.models.wan import WanModel
from pipelines.parallel.shard import Shard
from pipelines.sampling import denoise
from tests.pipelines.conftest import BATCH_TARGETS, GENERATION, PROMPT, PROMPTS, SEEDS, TARGETS

GUIDE = GuideConfig(overwrite="none", schedule="constant", until=1.0, anchor=0)
METHOD = MethodConfig(identify=IdentifyConfig(source="peaks", head="mean", step=0.5), guide=GUIDE)


def test_held_to_the_plain_clip_outside_the_edits_up_to_the_captured_step(tiny_model: WanModel) -> None:
    """Up to t* the latents outside are the plain clip's, bit for bit, with the sampler's history; inside they differ;
    after t* the clip goes its own way. Two clips of a batch, only the second guided."""
    texts = tiny_model.encode([PROMPT] * 2, [""] * 2, GENERATION)
    spans = [locate_tokens(text.prompt, TARGETS, text.offsets) for text in texts]
    seeds = [1, 2]
    state, _ = denoise.identify(tiny_model, Shard(), texts, spans, seeds, GENERATION, METHOD)
    assert len(state.path) == state.step

    regions = np.zeros((2, 5, 4, 4), dtype=np.int8)
    regions[0, :, 0, :2] = Region.REMOVE
    plan = GuidancePlan(regions, tuple(span.noun for span in spans[1]), GUIDE)
    path = [earlier.take([1]) for earlier in state.path]
    seen: list[torch.Tensor] = []
    original = denoise.DenoiseState.hold_to

    def hold_to(own: denoise.DenoiseState, other: denoise.DenoiseState, free: torch.Tensor) -> None:
        original(own, other, free)
        ours, theirs = dict(own._tensors()), dict(other._tensors())
        assert ours.keys() == theirs.keys()
        assert len(ours) > 1
        outside = ~free.expand_as(own.latents)
        assert all(torch.equal(ours[name][outside], theirs[name][outside]) for name in ours)
        seen.append((own.latents - other.latents)[~outside].abs().max())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoise.DenoiseState, "hold_to", hold_to)
        anchored = denoise.guide(tiny_model, Shard(), texts[1:], [plan], seeds[1:], GENERATION, path=path)
    assert len(seen) == state.step
    assert seen[-1] > 0
    plain = denoise.finish(tiny_model, state.take([1]), texts[1:], GENERATION)
    loose = denoise.guide(tiny_model, Shard(), texts[1:], [plan], seeds[1:], GENERATION)
    outside = torch.ones_like(plain, dtype=torch.bool)
    outside[..., : plain.shape[3] // 4, : plain.shape[4] // 2] = False
    change, without = ((clip - plain)[outside].abs().mean() for clip in (anchored, loose))
    assert 0 < change < without


def test_a_plan_that_edits_nothing_is_the_plain_clip(tiny_model: WanModel) -> None:
    """Held everywhere up to t*, unguided after it: what identification would have gone on to."""
    method = replace(METHOD, guide=replace(GUIDE, until=0.5))
    texts = tiny_model.encode([PROMPT], [""], GENERATION)
    spans = [locate_tokens(texts[0].prompt, TARGETS, texts[0].offsets)]
    state, _ = denoise.identify(tiny_model, Shard(), texts, spans, [1], GENERATION, method)
    plan = GuidancePlan(np.zeros((2, 5, 4, 4), dtype=np.int8), tuple(span.noun for span in spans[0]), method.guide)
    path = state.path
    guided = denoise.guide(tiny_model, Shard(), texts, [plan], [1], GENERATION, path=path)
    torch.testing.assert_close(guided, denoise.finish(tiny_model, state, texts, GENERATION), atol=1e-5, rtol=1e-5)


def test_a_coarser_schedule_has_no_path_to_hold_to() -> None:
    """The plain clip's states at the steps left out don't exist."""
    with pytest.raises(ConfigError, match=r"anchor = 2 .*stride = 2"):
        MethodConfig(identify=IdentifyConfig(stride=2), guide=GuideConfig(anchor=2))


def of_batch(model: WanModel, method: MethodConfig) -> tuple[list[Text], denoise.DenoiseState, list[GuidancePlan]]:
    """Three clips, identified, and a plan for each that removes a quarter of every frame."""
    texts = model.encode(PROMPTS, [""] * len(PROMPTS), GENERATION)
    spans = [locate_tokens(text.prompt, own, text.offsets) for text, own in zip(texts, BATCH_TARGETS, strict=True)]
    state, _ = denoise.identify(model, Shard(), texts, spans, SEEDS, GENERATION, method)
    plans = []
    for own in spans:
        regions = np.zeros((len(own), 5, 4, 4), dtype=np.int8)
        regions[0, :, :2, :2] = Region.REMOVE
        plans.append(GuidancePlan(regions, tuple(span.noun for span in own), method.guide))
    return texts, state, plans


def guided(model: WanModel, method: MethodConfig, clips: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """The latents of some clips of the batch, guided, and the steps that were run for them."""
    texts, state, plans = of_batch(model, method)
    path = [earlier.take(clips) for earlier in state.path]
    steps: list[int] = []
    latents = denoise.guide(
        model,
        Shard(),
        [texts[clip] for clip in clips],
        [plans[clip] for clip in clips],
        [SEEDS[clip] for clip in clips],
        GENERATION,
        lambda stage, done, total: steps.append(done - 1),
        path,
    )
    return latents, steps


def test_a_guided_run_starts_from_the_plain_runs_state(tiny_model: WanModel) -> None:
    """Steps before `start` aren't made again, and the clip is held to the plain one as from the noise. It isn't the
    clip from the noise, whose first steps were guided too; and it doesn't depend on its batch."""
    late = replace(METHOD, guide=replace(GUIDE, start=0.35))
    first = late.guide.first_step(tiny_model.facts.times(GENERATION))
    assert 0 < first < late.identify.capture_step(tiny_model.facts.times(GENERATION))
    clips, steps = guided(tiny_model, late, [0, 1, 2])
    assert steps == list(range(first, GENERATION.steps))
    from_noise, all_steps = guided(tiny_model, METHOD, [0, 1, 2])
    assert all_steps == list(range(GENERATION.steps))
    assert not torch.allclose(clips, from_noise, atol=1e-3)
    torch.testing.assert_close(guided(tiny_model, late, [2, 0])[0], clips[[2, 0]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_kept_state_goes_on_as_its_run_did(tiny_model: WanModel, sampler: str) -> None:
    """A plan that edits nothing, from a kept state, gives the plain clip, also if the sampler draws noise."""
    method = replace(METHOD, guide=replace(GUIDE, until=0.5, start=0.35))
    clip = replace(GENERATION, sampler=sampler)
    texts = tiny_model.encode([PROMPT], [""], clip)
    spans = [locate_tokens(texts[0].prompt, TARGETS, texts[0].offsets)]
    state, _ = denoise.identify(tiny_model, Shard(), texts, spans, [1], clip, method)
    plan = GuidancePlan(np.zeros((2, 5, 4, 4), dtype=np.int8), tuple(span.noun for span in spans[0]), method.guide)
    made = denoise.guide(tiny_model, Shard(), texts, [plan], [1], clip, path=state.path)
    torch.testing.assert_close(made, denoise.finish(tiny_model, state, texts, clip), atol=1e-5, rtol=1e-5)


def test_the_plain_clips_unconditional_prediction_is_taken_again(tiny_model: WanModel) -> None:
    """Anchored steps run the transformer once instead of twice; the clip changes a little, and is held as before."""
    again = replace(METHOD, guide=replace(GUIDE, unconditional="plain"))
    forwards: dict[str, int] = {}
    made: dict[str, torch.Tensor] = {}
    for method in (METHOD, again):
        texts, state, plans = of_batch(tiny_model, method)
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        watched = tiny_model.transformer.register_forward_hook(count)
        name = method.guide.unconditional
        made[name] = denoise.guide(tiny_model, Shard(), texts, plans, SEEDS, GENERATION, path=state.path)
        watched.remove()
        forwards[name] = calls
    assert forwards == {"own": 2 * GENERATION.steps, "plain": 2 * GENERATION.steps - state.step}
    assert not torch.equal(made["own"], made["plain"])
    plain = denoise.finish(tiny_model, state, texts, GENERATION)
    assert (made["own"] - made["plain"]).abs().mean() < (made["own"] - plain).abs().mean()


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ({"start": 0.3, "anchor": None}, "start = 0.3 .*without method.guide.anchor"),
        ({"start": 0.6}, "start = 0.6 is after method.identify.step = 0.5"),
        ({"start": 0.4, "until": 0.3}, "start = 0.4 is after method.guide.until = 0.3"),
        ({"unconditional": "plain", "anchor": None}, "unconditional = 'plain' .*anchor is null"),
    ],
)
def test_states_that_are_not_kept_are_refused(guide: dict[str, Any], message: str) -> None:
    """What a guided run is to take from the plain one must be there."""
    with pytest.raises(ConfigError, match=message):
        replace(METHOD, guide=replace(GUIDE, **guide))
