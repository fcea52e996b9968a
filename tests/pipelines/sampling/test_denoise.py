"""Two-phase generation: looking on changes nothing, going on repeats nothing, guidance starts from the same noise.

And a batch is its clips: what each gets depends on its own prompt, seed, targets and plan alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from numina.bias import SPARSE
from numina.config import GuideConfig, IdentifyConfig, MethodConfig, ScheduleBy
from numina.guidance import GuidancePlan
from numina.prompts.tokens import TokenSpans
from numina.regions import Region
from pipelines.base import GenerationConfig, Text
from pipelines.models.wan import WanModel
from pipelines.parallel.shard import Shard
from pipelines.sampling import denoise
from tests.pipelines.conftest import GENERATION, SEEDS

CLUSTERS = MethodConfig(identify=IdentifyConfig(source="clusters"))
PEAKS = MethodConfig(identify=IdentifyConfig(source="peaks", tokens="phrase", head="mean"))
METHODS = {"clusters": CLUSTERS, "peaks": PEAKS}
CLOSED = GuideConfig(overwrite="none", tokens="phrase", add=6, keep=2, elsewhere=6, other=4)
Spans = list[tuple[TokenSpans, ...]]


@pytest.fixture(scope="module")
def plain(tiny_model: WanModel, texts: list[Text]) -> torch.Tensor:
    """The first clip without NUMINA."""
    return denoise.finish(tiny_model, denoise.start(tiny_model, [1], GENERATION), texts[:1], GENERATION)


def some_plan(spans: Sequence[TokenSpans], config: GuideConfig, variant: int = 0) -> GuidancePlan:
    """A reference and a copy of it, a disc and a removal, in every frame; variant 2 changes 12 of a frame's 16 rows."""
    regions = np.zeros((len(spans), 5, 4, 4), dtype=np.int8)
    regions[0, :, 0, 0] = Region.REFERENCE
    regions[0, :, 2:, 1 + variant % 2] = Region.ADD_COPY
    if variant == 2:
        regions[0, :, 1:] = Region.ADD_COPY
    regions[-1, :, 1, 2] = Region.REMOVE
    regions[-1, :, 3, 3] = Region.ADD_DISC
    return GuidancePlan(regions, tuple(getattr(span, config.tokens) for span in spans), config)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_going_on_after_identification_is_bit_equal_to_plain(
    tiny_model: WanModel, texts: list[Text], spans: Spans, plain: torch.Tensor, method: MethodConfig
) -> None:
    """Capture disturbs nothing and no step runs twice: the clip is the plain clip, bit for bit."""
    state, [capture] = denoise.identify(tiny_model, Shard(), texts[:1], spans[:1], [1], GENERATION, method)
    assert state.step == method.identify.capture_step(tiny_model.facts.times(GENERATION)) + 1
    assert capture.responses.shape == (2, 5, 4, 4)
    assert (capture.components is not None) == (method is CLUSTERS)
    assert torch.equal(denoise.finish(tiny_model, state, texts[:1], GENERATION), plain)


def test_processors_are_put_back(tiny_model: WanModel, texts: list[Text], spans: Spans) -> None:
    """After capture and guidance the model has the processors that it came with."""
    before = dict(tiny_model.transformer.attn_processors)
    denoise.identify(tiny_model, Shard(), texts[:1], spans[:1], [1], GENERATION, CLUSTERS)
    denoise.guide(tiny_model, Shard(), texts[:1], [some_plan(spans[0], GuideConfig())], [1], GENERATION)
    assert dict(tiny_model.transformer.attn_processors) == before


def test_a_plan_without_strength_changes_nothing(
    tiny_model: WanModel, texts: list[Text], spans: Spans, plain: torch.Tensor
) -> None:
    """Zero bias through the guided processor is the unguided model, to float32 rounding."""
    nothing = some_plan(spans[0], GuideConfig(remove=0, add=0, overwrite="none"))
    guided = denoise.guide(tiny_model, Shard(), texts[:1], [nothing], [1], GENERATION)
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overwrite", ["none", "head", "global"])
def test_guidance_changes_the_clip_from_the_same_noise(
    tiny_model: WanModel, texts: list[Text], spans: Spans, plain: torch.Tensor, overwrite: str
) -> None:
    """Guidance is deterministic and reaches the latents."""
    plans = [some_plan(spans[0], GuideConfig(overwrite=overwrite))]
    once, twice = (denoise.guide(tiny_model, Shard(), texts[:1], plans, [1], GENERATION) for _ in range(2))
    assert torch.equal(once, twice)
    assert not torch.allclose(once, plain, atol=1e-4)


def test_guidance_leaves_the_unconditional_pass_alone(tiny_model: WanModel, texts: list[Text], spans: Spans) -> None:
    """At guidance scale 0 the clip is the unconditional pass alone, and no plan can reach it."""
    unconditional_only = replace(GENERATION, guidance_scale=0.0)
    plans = [some_plan(spans[0], GuideConfig())]
    guided = denoise.guide(tiny_model, Shard(), texts[:1], plans, [1], unconditional_only)
    start = denoise.start(tiny_model, [1], unconditional_only)
    assert torch.equal(guided, denoise.finish(tiny_model, start, texts[:1], unconditional_only))


def test_a_padded_text_guides_as_all_its_tokens_do(
    tiny_model: WanModel, texts: list[Text], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Wan's pipeline pads to 512 tokens: fewer columns give the same clips to rounding, whichever are written."""
    more = 512 - tiny_model.text_tokens
    long = [
        replace(text, **{name: pad(getattr(text, name), (0, 0, 0, more)) for name in ("conditional", "unconditional")})
        for text in texts[:2]
    ]
    lengths = [int(text.conditional.any(dim=2).sum()) for text in texts[:2]]
    assert denoise.written(long) == lengths
    assert denoise.written([replace(long[0], conditional=torch.zeros_like(long[0].conditional))]) == [0]
    plans = [some_plan(own, CLOSED, variant) for variant, own in enumerate(spans[:2])]
    short = denoise.guide(tiny_model, Shard(), long, plans, SEEDS[:2], GENERATION)
    assert denoise._prepare(tiny_model, Shard(), long, plans).padding is not None
    monkeypatch.setattr(denoise, "written", lambda texts: [512] * len(texts))
    assert denoise._prepare(tiny_model, Shard(), long, plans).padding is None
    torch.testing.assert_close(
        short, denoise.guide(tiny_model, Shard(), long, plans, SEEDS[:2], GENERATION), atol=1e-4, rtol=1e-4
    )


def test_until_ends_guidance(tiny_model: WanModel, texts: list[Text], spans: Spans) -> None:
    """Steps past `until` run unguided: the two runs differ only if those steps were guided."""
    seen: list[int] = []
    constant = GuideConfig(schedule="constant", until=0.5, overwrite="none")
    cross = tiny_model.cross_attention(0)
    original = cross.processor

    def watch(stage: str, done: int, total: int) -> None:
        assert cross.processor is original  # between steps nothing is installed
        seen.append(done)

    def guided(config: GuideConfig, progress: denoise.Progress | None = None) -> torch.Tensor:
        plans = [some_plan(spans[0], config)]
        return denoise.guide(tiny_model, Shard(), texts[:1], plans, [1], GENERATION, progress)

    half, full = guided(constant, watch), guided(replace(constant, until=1.0))
    assert seen == list(range(1, GENERATION.steps + 1))
    assert not torch.equal(half, full)


def test_by_index_the_steps_are_counted_at_any_flow_shift(
    tiny_model: WanModel, texts: list[Text], spans: Spans
) -> None:
    """Half of the steps are half of the steps, also where a flow shift puts them at other noise; t* likewise."""
    shifted = replace(GENERATION, flow_shift=9.0, steps=6)
    times = tiny_model.facts.times(shifted)
    assert times[3] < 0.5

    def guided(until: float, by: ScheduleBy) -> torch.Tensor:
        config = GuideConfig(schedule="constant", until=until, overwrite="none")
        return denoise.guide(tiny_model, Shard(), texts[:1], [some_plan(spans[0], config)], [1], shifted, by=by)

    by_index = guided(0.5, "index")
    assert torch.equal(by_index, guided(times[3], "noise"))
    assert not torch.equal(by_index, guided(0.5, "noise"))
    for by in get_args(ScheduleBy):
        method = replace(PEAKS, schedule_by=by)
        state, _ = denoise.identify(tiny_model, Shard(), texts[:1], spans[:1], [1], shifted, method)
        assert state.step == method.identify.capture_step(tiny_model.facts.times(shifted, by)) + 1
        assert state.step == {"index": 4, "noise": 5}[by]


# --- batches ---


@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_a_plain_batch_is_its_clips(tiny_model: WanModel, guidance_scale: float, texts: list[Text]) -> None:
    """Three prompts and seeds together give the latents that each gets alone, with an unconditional pass or without."""
    generation = replace(GENERATION, guidance_scale=guidance_scale)
    if guidance_scale == 1:
        texts = [replace(text, unconditional=None) for text in texts]
    together = denoise.finish(tiny_model, denoise.start(tiny_model, SEEDS, generation), texts, generation)
    for clip, (seed, text) in enumerate(zip(SEEDS, texts, strict=True)):
        alone = denoise.finish(tiny_model, denoise.start(tiny_model, [seed], generation), [text], generation)
        torch.testing.assert_close(together[clip : clip + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_identified_batch_is_its_clips(
    tiny_model: WanModel, texts: list[Text], spans: Spans, method: MethodConfig
) -> None:
    """Every clip's capture, of its own nouns, and the state to go on from are what the clip gets alone."""
    state, captures = denoise.identify(tiny_model, Shard(), texts, spans, SEEDS, GENERATION, method)
    assert [len(capture.responses) for capture in captures] == [2, 1, 2]
    for clip, capture in enumerate(captures):
        own = slice(clip, clip + 1)
        alone_state, [alone] = denoise.identify(
            tiny_model, Shard(), texts[own], spans[own], SEEDS[own], GENERATION, method
        )
        np.testing.assert_allclose(capture.responses, alone.responses, atol=1e-5)
        if method is CLUSTERS:
            np.testing.assert_allclose(capture.components, alone.components, atol=1e-4)  # variances amplify rounding
        finished = denoise.finish(tiny_model, state.take([clip]), texts[own], GENERATION)
        alone_finished = denoise.finish(tiny_model, alone_state, texts[own], GENERATION)
        torch.testing.assert_close(finished, alone_finished, atol=1e-5, rtol=1e-5)


def test_a_part_goes_on_as_the_whole_does(tiny_model: WanModel, texts: list[Text], spans: Spans) -> None:
    """Clips taken out of a batch, in any order, end where the whole batch ends; the batch itself is left as it was."""
    state, _ = denoise.identify(tiny_model, Shard(), texts, spans, SEEDS, GENERATION, PEAKS)
    step, latents = state.step, state.latents.clone()
    parts = {}
    for clips in ((2, 0), (1,)):
        own = [texts[clip] for clip in clips]
        parts[clips] = denoise.finish(tiny_model, state.take(clips), own, GENERATION)
    assert state.step == step
    assert torch.equal(state.latents, latents)
    whole = denoise.finish(tiny_model, state, texts, GENERATION)
    untouched = denoise.finish(tiny_model, denoise.start(tiny_model, SEEDS, GENERATION), texts, GENERATION)
    assert torch.equal(whole, untouched)
    for clips, part in parts.items():
        torch.testing.assert_close(part, whole[list(clips)], atol=1e-5, rtol=1e-5)


CHANGED = (Region.REMOVE, Region.ADD_COPY, Region.ADD_DISC)  # by every preset
GUIDES = {"paper": GuideConfig(), "closed": CLOSED, "released": GuideConfig(overwrite="global")}


@pytest.mark.parametrize("config", GUIDES.values(), ids=GUIDES)
def test_a_guided_batch_is_its_clips(
    tiny_model: WanModel, texts: list[Text], spans: Spans, config: GuideConfig
) -> None:
    """Three plans with other nouns, tokens and rows: each clip is guided by its own alone.

    Alone, a plan of few rows has them computed again; in the batch so many change that it gets a mask over all.
    """
    plans = [some_plan(own, config, variant) for variant, own in enumerate(spans)]
    changed = [np.isin(plan.regions, CHANGED).any(axis=0).mean() for plan in plans]
    assert changed[0] < SPARSE < np.mean(changed)
    together = denoise.guide(tiny_model, Shard(), texts, plans, SEEDS, GENERATION)
    for clip, plan in enumerate(plans):
        own = slice(clip, clip + 1)
        alone = denoise.guide(tiny_model, Shard(), texts[own], [plan], SEEDS[own], GENERATION)
        torch.testing.assert_close(together[own], alone, atol=1e-5, rtol=1e-5)


# --- fewer steps before t* ---


STRIDES = {stride: MethodConfig(identify=IdentifyConfig(source="peaks", stride=stride)) for stride in (1, 2, 3)}


@pytest.mark.parametrize("stride", STRIDES)
def test_a_stride_runs_its_schedule_and_lands_on_the_same_noise_level(
    tiny_model: WanModel, texts: list[Text], spans: Spans, stride: int
) -> None:
    """Only the scheduled steps run; t* and all steps after it have the full schedule's timesteps and noise levels."""
    generation, method = replace(GENERATION, steps=12), STRIDES[stride]
    times = tiny_model.facts.times(generation)
    kept = method.identify.schedule(times)
    seen: list[tuple[str, int, int]] = []

    def watch(*progress: str | int) -> None:
        seen.append(progress)

    state, _ = denoise.identify(tiny_model, Shard(), texts, spans, SEEDS, generation, method, watch)
    full = tiny_model.scheduler(generation)
    captured = method.identify.capture_step(times)
    reference = kept.index(captured)
    assert seen == [("identify", done, len(kept)) for done in range(1, reference + 2)]
    assert torch.equal(state.scheduler.timesteps, full.timesteps[kept])
    assert torch.equal(state.scheduler.sigmas[reference:], full.sigmas[captured:])
    denoise.finish(tiny_model, state, texts, generation, watch)
    assert seen[reference + 1 :] == [("denoise", done, len(kept)) for done in range(reference + 2, len(kept) + 1)]


def test_a_stride_changes_the_plain_clip_only_a_little(tiny_model: WanModel, texts: list[Text], spans: Spans) -> None:
    """The clip that goes on after a stride of 2 is the full schedule's but for a hundredth of what a seed changes."""
    generation = GenerationConfig(height=64, width=64, steps=25, num_frames=17, guidance_scale=4.0)

    def finished(stride: int, seed: int) -> torch.Tensor:
        state, _ = denoise.identify(tiny_model, Shard(), texts[:1], spans[:1], [seed], generation, STRIDES[stride])
        return denoise.finish(tiny_model, state, texts[:1], generation)

    full = finished(1, 1)
    by_seed = (finished(1, 2) - full).square().mean().sqrt()
    by_stride = (finished(2, 1) - full).square().mean().sqrt()
    assert 0 < by_stride < 0.01 * by_seed


def test_noise_depends_on_the_seed_alone(tiny_model: WanModel) -> None:
    """The same seed gives the same noise whatever torch's global state and the batch; another seed another."""
    torch.manual_seed(5)
    first = tiny_model.noise([3], GENERATION)
    torch.manual_seed(6)
    batch = tiny_model.noise([4, 3], GENERATION)
    assert torch.equal(first[0], batch[1])
    assert not torch.equal(batch[0], batch[1])
