"""Two-phase denoising of a batch of clips: identify to step t*, then go on unchanged or start again under guidance.

    state, captures = identify(...)            # steps 0..t*, looking on at t*
    latents = finish(state)                    # counts are right: nothing is run twice
    latents = guide(plans, state.path)         # else: same noise, biased cross-attention

Source: arXiv 2604.08546 §3. All clips of a batch are at the same step, each has its own text, noise and plan. Any
number of ranks runs these functions in step; see `Shard`. Where the two branches of a step are on different
ranks, captures and guidance are the conditional ranks' alone, and no collective of theirs waits for the others.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from numina.bias import ShardGuidance
from numina.config import MethodConfig, ScheduleBy
from numina.guidance import GuidancePlan
from numina.layout import Capture
from numina.prompts.tokens import TokenSpans
from numina.regions import edited
from numina.schedule import intensity
from pipelines.attention.capture import ClipCapture
from pipelines.attention.cross import guided
from pipelines.base import GenerationConfig, Scheduler, Text, VideoModel
from pipelines.parallel.shard import ALONE, Shard
from pipelines.parallel.support import check_cache
from pipelines.sampling.cache import Passes, cached

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all
ConditionalPass = Callable[[int], AbstractContextManager[None]]  # step → what surrounds its conditional forward


@dataclass
class DenoiseState:
    """Clips on their way: the next step, their latents [B, C, F, h, w] and the sampler with its multistep history."""

    step: int  # of the sampler's own schedule
    latents: Tensor
    scheduler: Scheduler
    kept: Sequence[int]  # the steps of the whole schedule that the sampler's is made of
    seeds: Sequence[int]  # the clips'
    path: tuple["DenoiseState", ...] = ()  # where a guided run is to be held to this one: this one after every step
    away: Tensor | None = None  # the unconditional prediction of the step before, where a guided run is to take it

    def take(self, clips: Sequence[int]) -> "DenoiseState":
        """Some clips of the batch, to go on with alone, without their path; what this state holds stays as it is."""
        chosen = list(clips)
        if chosen == list(range(len(self.latents))):
            return self.snapshot()  # no tensor is copied
        return replace(self._mapped(lambda name, value: value[chosen]), seeds=[self.seeds[clip] for clip in chosen])

    def snapshot(self) -> "DenoiseState":
        """This moment, kept: going on leaves it as it is. No tensor is copied, for none is changed in place."""
        return self._mapped(lambda name, value: value)

    def hold_to(self, other: "DenoiseState", free: Tensor) -> None:
        """Becomes `other`, with its history, where not `free` (bool, [B, 1, F, h, w])."""
        theirs = dict(other._tensors())
        held = self._mapped(lambda name, value: torch.where(free, value, theirs[name]) if name in theirs else value)
        self.latents, self.scheduler = held.latents, held.scheduler

    def _mapped(self, change: Callable[[str, Tensor], Tensor]) -> "DenoiseState":
        """A state of its own whose latents, and what the sampler remembers of their shape, are `change(name, …)`."""
        scheduler = copy.copy(self.scheduler)
        changed = {name: change(name, value) for name, value in self._tensors()}
        for attribute, value in vars(scheduler).items():
            if isinstance(value, list):
                items = [changed.get(f"{attribute}[{i}]", item) for i, item in enumerate(value)]
                setattr(scheduler, attribute, items)
            else:
                setattr(scheduler, attribute, changed.get(attribute, value))
        away = changed.get("away")
        return replace(self, latents=changed["latents"], scheduler=scheduler, path=(), away=away)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "latents", self.latents
        if self.away is not None:
            yield "away", self.away
        for attribute, value in vars(self.scheduler).items():
            named = {f"{attribute}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list) else {}
            for name, item in (named or {attribute: value}).items():
                if isinstance(item, Tensor) and item.shape == self.latents.shape:
                    yield name, item


def start(
    model: VideoModel, seeds: Sequence[int], generation: GenerationConfig, kept: Sequence[int] | None = None
) -> DenoiseState:
    """The clips' seeded noise, before the first step (of the schedule's `kept` steps).

    A few-step recipe may begin below pure noise: then its noise has the level of the first step.
    """
    run = range(generation.steps) if kept is None else kept
    noise = model.noise(seeds, generation)
    if generation.sampler != "native" and generation.sigmas and generation.sigmas[0] < 1:
        noise = generation.sigmas[0] * noise
    return DenoiseState(0, noise, model.scheduler(generation, kept), run, seeds)


def new_noise(seeds: Sequence[int], step: int) -> list[torch.Generator]:
    """What a step of `renoise` draws from, for each clip: its seed and the step (of the whole schedule) alone.

    On the CPU, so that ranks, batches, machines and the guided run have the same.
    """
    drawn = (hashlib.blake2b(f"renoise {seed} {step}".encode(), digest_size=8).digest() for seed in seeds)
    return [torch.Generator("cpu").manual_seed(int.from_bytes(own, "big") % 2**63) for own in drawn]


@torch.inference_mode()
def advance(
    model: VideoModel,
    state: DenoiseState,
    texts: Sequence[Text],
    generation: GenerationConfig,
    *,
    until: int,
    shard: Shard = ALONE,
    stage: str = "denoise",
    cache: str = "none",
    conditional_pass: ConditionalPass = lambda step: nullcontext(),
    after: Callable[[DenoiseState, Tensor | None], None] = lambda state, away: None,
    known: Callable[[int], Tensor | None] = lambda step: None,
    progress: Progress | None = None,
) -> DenoiseState:
    """Denoises up to (not including) step `until`, in place, under a step cache that lives no longer.

    `after` every step gets the state and the unconditional prediction, which isn't computed where it is `known`.
    """
    check_cache("cache", cache, batch=len(texts))
    branches = Branches(model, shard, texts)
    with cached(model.transformer, cache, state.kept[state.step : until], generation.steps) as passes:
        for step in range(state.step, until):
            timestep = state.scheduler.timesteps[step]
            velocity, away = branches.predict(state.latents, timestep, passes, conditional_pass(step), known(step))
            if away is not None:
                velocity = away + generation.guidance_scale * (velocity - away)
            drawn = {"generator": new_noise(state.seeds, state.kept[step])} if generation.sampler == "renoise" else {}
            state.latents = state.scheduler.step(velocity, timestep, state.latents, return_dict=False, **drawn)[0]
            state.step = step + 1
            after(state, away)
            if progress:
                progress(stage, state.step, len(state.scheduler.timesteps))
    return state


class Branches:
    """The two predictions of a step of classifier-free guidance, made here or on two ranks."""

    def __init__(self, model: VideoModel, shard: Shard, texts: Sequence[Text]):
        self.model = model
        self.shard = shard
        self.conditional = torch.cat([text.conditional for text in texts])
        without = [text.unconditional for text in texts if text.unconditional is not None]
        self.unconditional = torch.cat(without) if without else None
        assert without or shard.branch is None, "branches are spread over ranks only where there are two"

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        passes: Passes,
        around: AbstractContextManager[None],
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Velocities [B, C, F, h, w] of the conditional branch, computed within `around`, and of the other if there is
        one: the `known` one, else computed too."""

        def away() -> Tensor:
            assert self.unconditional is not None
            return known if known is not None else self.model.predict(latents, timestep, self.unconditional)

        if not self.shard.conditional:
            return self.shard.exchange(passes.unconditional(away, None))
        with around, passes.conditional():
            velocity = self.model.predict(latents, timestep, self.conditional)
        if self.shard.branch is not None:
            return self.shard.exchange(velocity)
        return velocity, None if self.unconditional is None else passes.unconditional(away, velocity)


def identify(
    model: VideoModel,
    shard: Shard,
    texts: Sequence[Text],
    spans: Sequence[Sequence[TokenSpans]],
    seeds: Sequence[int],
    generation: GenerationConfig,
    method: MethodConfig,
    progress: Progress | None = None,
) -> tuple[DenoiseState, list[Capture]]:
    """Denoises through step t* and reads the maps of block l* there (arXiv 2604.08546 §3.1); a capture per clip.

    Ranks of the unconditional branch return no captures. Only the steps before t* run under `identify.cache`: what is
    read at t* is computed in full. Raises ConfigError for a cache that can't run on so many ranks or clips, and for
    steps that the sampler can't leave out.
    """
    check_cache("method.identify.cache", method.identify.cache, ranks=shard.ranks, batch=len(texts))
    model.facts.check_stride(method.identify.stride)
    times = model.facts.times(generation, method.schedule_by)
    kept = method.identify.schedule(times)
    reference = kept.index(method.identify.capture_step(times))
    grid = model.grid(generation)
    seen = ClipCapture(model, generation, shard, spans, method.scaled_to(grid.height * grid.width).identify)
    state = start(model, seeds, generation, kept if len(kept) < generation.steps else None)
    path: list[DenoiseState] = []

    def remember(state: DenoiseState, away: Tensor | None) -> None:
        if method.guide.anchor is not None:
            kept = state.snapshot()
            path.append(replace(kept, away=away) if method.guide.unconditional == "plain" else kept)

    go_on = partial(
        advance, model, state, texts, generation, shard=shard, stage="identify", after=remember, progress=progress
    )
    go_on(until=reference, cache=method.identify.cache)
    go_on(until=reference + 1, conditional_pass=lambda step: seen.looking_on())
    return replace(state, path=tuple(path)), seen.results() if shard.conditional else []


def finish(
    model: VideoModel,
    state: DenoiseState,
    texts: Sequence[Text],
    generation: GenerationConfig,
    progress: Progress | None = None,
    shard: Shard = ALONE,
) -> Tensor:
    """Goes on from a kept state: bit-equal to generation without identification, if that ran the full schedule and
    neither had a cache."""
    until = len(state.scheduler.timesteps)
    advance(model, state, texts, generation, until=until, shard=shard, cache=generation.cache, progress=progress)
    return state.latents


def guide(
    model: VideoModel,
    shard: Shard,
    texts: Sequence[Text],
    plans: Sequence[GuidancePlan],
    seeds: Sequence[int],
    generation: GenerationConfig,
    progress: Progress | None = None,
    path: Sequence[DenoiseState] = (),
    by: ScheduleBy = "noise",
) -> Tensor:
    """Generates from the same noise under the clips' plans (arXiv 2604.08546 §3.3).

    With `path`, the same clips' states after each step of identification, everything farther than `anchor` tokens
    from what is removed or added is held to the plain clip for those steps: nothing else is decided anew while a
    clip's layout forms. It begins at `guide.start`, with the state there. `by` is the method's `schedule_by`. A cache
    begins anew where guidance ends, so that no unguided step is made from guided ones.
    """
    check_cache("generation.cache", generation.cache, ranks=shard.ranks, batch=len(texts))
    guidance = _prepare(model, shard, texts, plans) if shard.conditional else None
    config, times = plans[0].config, model.facts.times(generation, by)
    deltas = [intensity(time, config) for time in times]

    def biased(step: int) -> AbstractContextManager[None]:
        return guided(model, shard, guidance, deltas[step]) if guidance and deltas[step] else nullcontext()

    first = config.first_step(times) if path else 0
    state = path[first - 1].snapshot() if first else start(model, seeds, generation)
    free = _free(plans, state.latents) if path else None

    def hold(state: DenoiseState, away: Tensor | None) -> None:
        if free is not None and state.step <= len(path):
            state.hold_to(path[state.step - 1], free)

    def known(step: int) -> Tensor | None:
        return path[step].away if step < len(path) else None

    for until in (sum(map(bool, deltas)), generation.steps):
        advance(
            model,
            state,
            texts,
            generation,
            until=until,
            shard=shard,
            stage="guide",
            cache=generation.cache,
            conditional_pass=biased,
            after=hold,
            known=known,
            progress=progress,
        )
    return state.latents


def _prepare(model: VideoModel, shard: Shard, texts: Sequence[Text], plans: Sequence[GuidancePlan]) -> ShardGuidance:
    """The plans, ready for this rank's rows."""
    rows, text_tokens = shard.rows(plans[0].rows), texts[0].conditional.shape[1]
    return ShardGuidance.prepare(
        plans,
        rows,
        text_tokens,
        device=model.device,
        dtype=model.transformer.dtype,
        tail_alone=model.facts.joint,
        lengths=written(texts),
    )


def written(texts: Sequence[Text]) -> list[int]:
    """How many tokens of each text come before its padding: Wan's pipeline pads with zeros."""
    set_rows = torch.cat([text.conditional for text in texts]).any(dim=2)  # [B, T]
    numbers = torch.arange(1, set_rows.shape[1] + 1, device=set_rows.device)
    found: list[int] = (set_rows * numbers).amax(dim=1).tolist()
    return found


def _free(plans: Sequence[GuidancePlan], latents: Tensor) -> Tensor:
    """Where a guided clip may leave the plain one: bool [B, 1, F, h, w], of latents."""
    margin = plans[0].config.anchor
    assert margin is not None, "a path is kept only where guidance is anchored"
    tokens = torch.stack([torch.from_numpy(edited(plan.regions, margin)) for plan in plans])
    frames, height, width = (have // of for have, of in zip(latents.shape[2:], tokens.shape[1:], strict=True))
    for dim, patch in enumerate((frames, height, width), start=1):
        tokens = tokens.repeat_interleave(patch, dim)
    return tokens[:, None].to(latents.device)
