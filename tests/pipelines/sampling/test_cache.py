"""Step caches: they skip what they say, leave the captured step and guidance alone, and leave nothing behind."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig
from torch import Tensor

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.errors import ConfigError
from numina.guidance import GuidancePlan
from numina.layout import Capture
from numina.prompts.tokens import locate_tokens
from numina.regions import Region
from numina.schedule import schedule_times
from pipelines.attention.engines import parallelize
from pipelines.base import GenerationConfig
from pipelines.models.wan import WanModel
from pipelines.parallel.config import ParallelConfig
from pipelines.parallel.shard import ALONE, Shard
from pipelines.parallel.support import CACHES, check_cache
from pipelines.sampling import denoise
from pipelines.sampling.cache import (
    CFG_INTERVAL,
    cache_label,
    cached,
    computed_steps,
    forwards,
    identify_forwards,
)
from tests.pipelines.conftest import GENERATION, PROMPT, TARGETS, of_pipeline
from tests.pipelines.ranks import spawn

LONG = replace(GENERATION, steps=20)
OTHER_PROMPT = "one green triangle moving on a grey background"
REAL = [name for name in CACHES if name != "none"]
BY_STEP = [name for name in REAL if name != "first_block"]
ON_RANKS = ["taylorseer", "cfg_cache"]


def method(cache: str, **identify: object) -> MethodConfig:
    return MethodConfig(identify=IdentifyConfig(cache=cache, source="peaks", head="mean", **identify))


def identified(
    model: WanModel,
    cache: str,
    generation: GenerationConfig = LONG,
    prompts: Sequence[str] = (PROMPT,),
    shard: Shard = ALONE,
    **identify: object,
) -> tuple[denoise.DenoiseState, list[Capture]]:
    texts = model.encode(prompts, [""] * len(prompts), generation)
    spans = [locate_tokens(text.prompt, TARGETS if text.prompt == PROMPT else (), text.offsets) for text in texts]
    seeds = range(1, len(prompts) + 1)
    return denoise.identify(model, shard, texts, spans, seeds, generation, method(cache, **identify))


def plain(
    model: WanModel,
    generation: GenerationConfig = LONG,
    prompts: Sequence[str] = (PROMPT,),
    seed: int = 1,
    shard: Shard = ALONE,
) -> Tensor:
    texts = model.encode(prompts, [""] * len(prompts), generation)
    state = denoise.start(model, range(seed, seed + len(prompts)), generation)
    return denoise.finish(model, state, texts, generation, shard=shard)


def guided(
    model: WanModel,
    generation: GenerationConfig = LONG,
    shard: Shard = ALONE,
    **guide: object,
) -> Tensor:
    texts = model.encode([PROMPT], [""], generation)
    regions = np.zeros((2, 5, 4, 4), dtype=np.int8)
    regions[0, :, 2:, 1] = Region.ADD_DISC
    regions[1, :, 1, 2] = Region.REMOVE
    spans = locate_tokens(texts[0].prompt, TARGETS, texts[0].offsets)
    config = GuideConfig(overwrite="none", schedule="constant", **guide)
    plan = GuidancePlan(regions, tuple(span.noun for span in spans), config)
    return denoise.guide(model, shard, texts, [plan], [1], generation)


@pytest.fixture(scope="module")
def before(tiny_model: WanModel) -> Tensor:
    """The plain clip, before any cache was on."""
    return plain(tiny_model)


@contextmanager
def counted(model: WanModel) -> Iterator[list[int]]:
    """How often each block was computed; counted inside it, where a cache's hooks can't answer for it."""
    calls = [0] * model.depth

    def count(block: int) -> Callable[..., None]:
        def called(*_: object) -> None:
            calls[block] += 1

        return called

    blocks = model.transformer.blocks
    handles = [block.ffn.register_forward_hook(count(number)) for number, block in enumerate(blocks)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def test_without_a_cache_clips_are_those_of_diffusers(tiny_model: WanModel, before: Tensor) -> None:
    """`none` is WanPipeline's clip, bit for bit, also after every cache has been on and off again."""
    for name in REAL:
        identified(tiny_model, name)
    assert torch.equal(before, of_pipeline(tiny_model, LONG))


def test_the_method_knows_the_caches_there_are() -> None:
    """The config of the method can't import the pipelines, so it lists their names itself."""
    assert all(IdentifyConfig(cache=name).cache == name for name in CACHES)
    with pytest.raises(ConfigError, match=", ".join(CACHES)):
        IdentifyConfig(cache="pab")


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_cache_runs_as_many_blocks_as_it_says(tiny_model: WanModel, name: str, stride: int) -> None:
    """Identification computes the steps that `computed_steps` names and t*, in both passes, and no more."""
    with counted(tiny_model) as calls:
        identified(tiny_model, name, stride=stride, step=0.75)
    config = method(name, stride=stride, step=0.75).identify
    times = tiny_model.facts.times(LONG)
    expected = identify_forwards(config, times, LONG.steps)
    every = 2 * len([step for step in config.schedule(times) if step <= 15])
    assert calls[0] <= every
    if name == "first_block":
        assert calls[0] == every  # the block that decides
        assert calls[1] == calls[2] <= expected
    else:
        assert calls == [expected] * tiny_model.depth
    if name in BY_STEP and stride == 1:
        assert expected < every


def test_first_block_skips_the_others(tiny_model: WanModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below its threshold only the first block runs, but for the phase's first step and t*."""
    monkeypatch.setattr("pipelines.sampling.cache.FIRST_BLOCK_THRESHOLD", 1e3)
    with counted(tiny_model) as calls:
        identified(tiny_model, "first_block")
    assert calls == [2 * 9, 2 * 2, 2 * 2]


@pytest.mark.parametrize("name", REAL)
def test_the_captured_step_is_computed_in_full(tiny_model: WanModel, name: str) -> None:
    """At t* every block runs in both passes, on the latents that the cache left, and the capture sees that."""
    generation = replace(LONG, steps=8)
    state, [capture] = identified(tiny_model, name, generation, step=0.75)
    assert state.step == 7
    text = tiny_model.encode([PROMPT], [""], generation)
    again = denoise.start(tiny_model, [1], generation)
    denoise.advance(tiny_model, again, text, generation, until=6, cache=name)
    with counted(tiny_model) as calls:
        denoise.advance(tiny_model, again, text, generation, until=7)
    assert calls == [2] * tiny_model.depth
    assert torch.equal(state.latents, again.latents)
    assert capture.responses.shape == (2, 5, 4, 4)
    assert np.isfinite(capture.responses).all()


@pytest.mark.parametrize("name", REAL)
def test_a_cache_comes_near_the_full_computation(tiny_model: WanModel, before: Tensor, name: str) -> None:
    """A cached clip is another clip than the plain one, but nearer to it than one from other noise."""
    clip = plain(tiny_model, replace(LONG, cache=name))
    far = (plain(tiny_model, seed=2) - before).norm()
    assert 0 <= (clip - before).norm() < 0.2 * far
    assert name == "first_block" or not torch.equal(clip, before)


@pytest.mark.parametrize("name", REAL)
def test_nothing_of_a_cache_stays_behind(tiny_model: WanModel, before: Tensor, name: str) -> None:
    """A cached clip doesn't depend on the clips before it, and a plain clip after it is the plain clip."""
    first = identified(tiny_model, name)
    assert not tiny_model.transformer.is_cache_enabled
    assert torch.equal(plain(tiny_model), before)
    identified(tiny_model, name, prompts=[OTHER_PROMPT])
    again = identified(tiny_model, name)
    assert torch.equal(first[0].latents, again[0].latents)
    assert np.array_equal(first[1][0].responses, again[1][0].responses)


def test_a_cache_is_taken_off_after_an_error(tiny_model: WanModel, before: Tensor) -> None:
    """A clip that fails in the middle leaves the model as it was."""

    def fail(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise RuntimeError("lost")

    text = tiny_model.encode([PROMPT], [""], LONG)
    state = denoise.start(tiny_model, [1], LONG)
    with pytest.raises(RuntimeError, match="lost"):
        denoise.advance(tiny_model, state, text, LONG, until=9, cache="taylorseer", progress=fail)
    assert torch.equal(plain(tiny_model), before)


@pytest.mark.parametrize("name", REAL)
def test_going_on_from_a_cached_identification(tiny_model: WanModel, before: Tensor, name: str) -> None:
    """`finish` computes every step that is left, from what the cache made of the steps before."""
    state, _ = identified(tiny_model, name)
    text = tiny_model.encode([PROMPT], [""], LONG)
    with counted(tiny_model) as calls:
        latents = denoise.finish(tiny_model, state, text, LONG)
    assert calls == [2 * (LONG.steps - 9)] * tiny_model.depth
    assert (latents - before).norm() < 0.2 * before.norm()


@pytest.mark.parametrize("name", BY_STEP)
def test_clips_of_a_batch_are_those_made_alone(tiny_model: WanModel, name: str) -> None:
    """Batch mates don't change a cached clip."""
    both, captures = identified(tiny_model, name, prompts=[PROMPT, OTHER_PROMPT])
    alone, [capture] = identified(tiny_model, name)
    torch.testing.assert_close(both.latents[:1], alone.latents, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(captures[0].responses, capture.responses, atol=1e-5)


@pytest.mark.parametrize("name", REAL)
def test_guidance_comes_through_a_cache(tiny_model: WanModel, before: Tensor, name: str) -> None:
    """What guidance changes in a cached clip is what it changes in a full one: skipped steps keep their guidance."""
    own = replace(LONG, cache=name)
    change = guided(tiny_model, own) - plain(tiny_model, own)
    reference = guided(tiny_model) - before
    assert torch.cosine_similarity(change.flatten(), reference.flatten(), dim=0) > 0.7
    assert 0.5 < change.norm() / reference.norm() < 2


@pytest.mark.parametrize("name", BY_STEP)
def test_a_cache_begins_anew_where_guidance_ends(tiny_model: WanModel, name: str) -> None:
    """The first unguided step is computed, in a fresh cache: it is made from no guided one."""
    generation = replace(LONG, cache=name)
    with counted(tiny_model) as calls:
        guided(tiny_model, generation, until=0.6)
    expected = forwards(name, range(12), 20) + forwards(name, range(12, 20), 20)
    assert calls == [expected] * tiny_model.depth


def test_pab_would_lose_guidance(tiny_model: WanModel) -> None:
    """Why `pab` is refused: diffusers' serves the unconditional pass what the conditional one computed."""
    text = tiny_model.encode([PROMPT], [""], LONG)[0]
    latents, timestep = tiny_model.noise([1], LONG), tiny_model.scheduler(LONG).timesteps[0]
    transformer = tiny_model.transformer
    transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            spatial_attention_block_identifiers=("blocks",),
            current_timestep_callback=lambda: 500,
        )
    )
    try:
        with torch.inference_mode(), counted(tiny_model):
            seen: list[Tensor] = []
            handle = tiny_model.self_attention(0).to_out[0].register_forward_hook(lambda *_: seen.append(_[2]))
            with transformer.cache_context("cond"):
                tiny_model.predict(latents, timestep, text.conditional)
            with transformer.cache_context("uncond"):
                tiny_model.predict(latents, timestep, text.unconditional)
            handle.remove()
    finally:
        transformer._reset_stateful_cache()
        transformer.disable_cache()
    assert len(seen) == 1  # the second pass took the first one's


@pytest.mark.parametrize("name", ["pab", "faster", "teacache"])
def test_unknown_caches_are_refused_with_the_known_ones(tiny_model: WanModel, name: str) -> None:
    """A name that isn't offered says what is, in both places, before a step is run."""
    with pytest.raises(ConfigError, match="taylorseer"):
        GenerationConfig(cache=name)
    with pytest.raises(ConfigError, match="taylorseer"):
        identified(tiny_model, name)


@pytest.mark.parametrize("name", REAL)
def test_caches_that_cannot_run_on_ranks_are_refused(tiny_model: WanModel, name: str) -> None:
    """Before a step is run, in both phases, with what to use instead."""
    if name in ON_RANKS:
        check_cache("generation.cache", name, ranks=8)
        return
    with pytest.raises(
        ConfigError, match=rf"method\.identify\.cache={name}.* 2 ranks.*taylorseer.*parallel\.ulysses=1"
    ):
        identified(tiny_model, name, shard=Shard(0, 2, None))
    with pytest.raises(ConfigError, match=rf"generation\.cache={name}.* 2 ranks"):
        guided(tiny_model, replace(LONG, cache=name), shard=Shard(0, 2, None))


def test_a_cache_that_decides_by_content_takes_one_clip(tiny_model: WanModel) -> None:
    """first_block's decision for a batch would make a clip depend on its batch mates; the others' doesn't."""
    with pytest.raises(ConfigError, match=r"2 clips.*taylorseer.*parallel\.batch=1"):
        identified(tiny_model, "first_block", prompts=[PROMPT, OTHER_PROMPT])
    with pytest.raises(ConfigError, match=r"2 clips"):
        plain(tiny_model, replace(LONG, cache="first_block"), prompts=[PROMPT, OTHER_PROMPT])
    for name in BY_STEP:
        check_cache("generation.cache", name, batch=8)


def on_ranks(rank: int, parallel: ParallelConfig, names: list[str], checkpoint: Path, folder: Path) -> None:
    model = WanModel.load(checkpoint)
    shard = parallelize(model, parallel)
    kept = {name: identified(model, name, shard=shard)[0].latents.numpy() for name in names}
    np.savez(folder / f"rank{rank}.npz", plain=plain(model, shard=shard).numpy(), **kept)


@pytest.mark.parametrize(
    ("parallel", "names"),
    [(ParallelConfig(ulysses=2), list(ON_RANKS)), (ParallelConfig(cfg=2), ["taylorseer", "magcache", "first_block"])],
    ids=["ulysses", "cfg"],
)
def test_ranks_share_every_decision(
    tiny_model: WanModel,
    before: Tensor,
    tiny_checkpoint: Path,
    tmp_path: Path,
    parallel: ParallelConfig,
    names: list[str],
) -> None:
    """Two real ranks give one rank's cached clip, and one rank's plain clip after that.

    Ranks of different branches each have that branch's own state, so that what decides by content runs there, too.
    """
    spawn(on_ranks, 2, tmp_path, parallel, names, tiny_checkpoint, tmp_path)
    for rank in range(2):
        together = np.load(tmp_path / f"rank{rank}.npz")
        np.testing.assert_allclose(together["plain"], before.numpy(), atol=1e-4)
        for name in names:
            alone = identified(tiny_model, name)[0].latents.numpy()
            np.testing.assert_allclose(together[name], alone, atol=1e-4, err_msg=f"{name} on rank {rank}")


def test_cfg_cache_does_nothing_without_a_second_pass(tiny_model: WanModel) -> None:
    """At guidance scale 1 there is one pass, and it is computed."""
    generation = replace(LONG, guidance_scale=1.0)
    clip = plain(tiny_model, replace(generation, cache="cfg_cache"))
    assert torch.equal(clip, plain(tiny_model, generation))
    assert forwards("cfg_cache", range(LONG.steps), LONG.steps, passes=1) == LONG.steps


def test_forwards_of_the_published_schedule() -> None:
    """What identification costs at 50 and 25 steps, of 42 and 22 forwards in full."""

    def cost(name: str, steps: int, stride: int = 1) -> int:
        config = IdentifyConfig(cache=name, stride=stride)
        return identify_forwards(config, schedule_times(steps), steps)

    assert [cost("none", steps) for steps in (50, 25)] == [42, 22]
    assert [cost("none", steps, 2) for steps in (50, 25)] == [22, 12]
    assert [cost("taylorseer", steps) for steps in (50, 25)] == [24, 14]
    assert [cost("magcache", steps) for steps in (50, 25)] == [22, 12]
    assert [cost("cfg_cache", steps) for steps in (50, 25)] == [32, 17]
    assert computed_steps("cfg_cache", range(9), 50) == [place % CFG_INTERVAL == 0 for place in range(9)]


def test_a_phase_without_steps_needs_no_cache(tiny_model: WanModel) -> None:
    """Identification at step 0 has nothing to cache."""
    with cached(tiny_model.transformer, "magcache", [], 50):
        assert not tiny_model.transformer.is_cache_enabled


def test_rows_say_which_phase_had_a_cache() -> None:
    """The column `cache` of a row."""
    assert cache_label(None, "none") == cache_label("none", "none") == "none"
    assert cache_label("taylorseer", "none") == "identify=taylorseer"
    assert cache_label("taylorseer", "cfg_cache") == "identify=taylorseer,generation=cfg_cache"
