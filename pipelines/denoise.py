"""Two-phase denoising of a batch of clips: identify to step t*, then go on unchanged or start again under guidance.

    state, captures = identify(...)            # steps 0..t*, looking on at t*
    latents = finish(state)                    # counts are right: nothing is run twice
    latents = guide(plans)                     # else: same noise, biased cross-attention

Source: arXiv 2604.08546 §3. All clips of a batch are at the same step, each has its own text, noise and plan. Any number
of ranks runs these functions in step; see `parallel.Shard`.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from numina.config import MethodConfig
from numina.guidance import GuidancePlan, ShardGuidance, intensity
from numina.layout import Capture
from numina.tokens import TokenSpans
from pipelines.attention import guided
from pipelines.base import GenerationConfig, Scheduler, Text, VideoModel
from pipelines.capture import ClipCapture
from pipelines.parallel import Shard

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all
ConditionalPass = Callable[[int], AbstractContextManager[None]]  # step → what surrounds its conditional forward


@dataclass
class DenoiseState:
    """Clips on their way: the next step, their latents [B, C, F, h, w] and the sampler with its multistep history."""

    step: int  # of the sampler's own schedule
    latents: Tensor
    scheduler: Scheduler

    def take(self, clips: Sequence[int]) -> "DenoiseState":
        """Some clips of the batch, to go on with alone; what this state holds stays as it is."""
        shape, chosen = self.latents.shape, list(clips)

        def pick(value: Any) -> Any:
            if isinstance(value, list):
                return [pick(item) for item in value]
            return value[chosen] if isinstance(value, Tensor) and value.shape == shape else value

        scheduler = copy.copy(self.scheduler)
        for name, value in vars(scheduler).items():
            setattr(scheduler, name, pick(value))
        return DenoiseState(self.step, self.latents[chosen], scheduler)


def start(
    model: VideoModel, seeds: Sequence[int], generation: GenerationConfig, kept: Sequence[int] | None = None
) -> DenoiseState:
    """The clips' seeded noise, before the first step (of the schedule's `kept` steps)."""
    return DenoiseState(0, model.noise(seeds, generation), model.scheduler(generation, kept))


@torch.inference_mode()
def advance(
    model: VideoModel,
    state: DenoiseState,
    texts: Sequence[Text],
    generation: GenerationConfig,
    *,
    until: int,
    stage: str = "denoise",
    conditional_pass: ConditionalPass = lambda step: nullcontext(),
    progress: Progress | None = None,
) -> DenoiseState:
    """Denoises up to (not including) step `until`, in place."""
    conditional = torch.cat([text.conditional for text in texts])
    without = [text.unconditional for text in texts if text.unconditional is not None]
    unconditional = torch.cat(without) if without else None
    for step in range(state.step, until):
        timestep = state.scheduler.timesteps[step]
        with conditional_pass(step):
            velocity = model.predict(state.latents, timestep, conditional)
        if unconditional is not None:
            away = model.predict(state.latents, timestep, unconditional)
            velocity = away + generation.guidance_scale * (velocity - away)
        state.latents = state.scheduler.step(velocity, timestep, state.latents, return_dict=False)[0]
        state.step = step + 1
        if progress:
            progress(stage, state.step, len(state.scheduler.timesteps))
    return state


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
    """Denoises through step t* and reads the maps of block l* there (arXiv 2604.08546 §3.1); a capture per clip."""
    kept = method.identify.schedule(generation.steps)
    reference = kept.index(method.identify.capture_step(generation.steps))
    seen = ClipCapture(model, generation, shard, spans, method.identify)

    def look_on(step: int) -> AbstractContextManager[None]:
        return seen.looking_on() if step == reference else nullcontext()

    state = advance(
        model,
        start(model, seeds, generation, kept if len(kept) < generation.steps else None),
        texts,
        generation,
        until=reference + 1,
        stage="identify",
        conditional_pass=look_on,
        progress=progress,
    )
    return state, seen.results()


def finish(
    model: VideoModel,
    state: DenoiseState,
    texts: Sequence[Text],
    generation: GenerationConfig,
    progress: Progress | None = None,
) -> Tensor:
    """Goes on from a kept state: bit-equal to generation without identification, if that ran the full schedule."""
    return advance(model, state, texts, generation, until=len(state.scheduler.timesteps), progress=progress).latents


def guide(
    model: VideoModel,
    shard: Shard,
    texts: Sequence[Text],
    plans: Sequence[GuidancePlan],
    seeds: Sequence[int],
    generation: GenerationConfig,
    progress: Progress | None = None,
) -> Tensor:
    """Generates from the same noise under the clips' plans (arXiv 2604.08546 §3.3)."""
    text_tokens = texts[0].conditional.shape[1]
    rows = shard.rows(plans[0].rows)
    guidance = ShardGuidance.prepare(plans, rows, text_tokens, device=model.device, dtype=model.transformer.dtype)

    def biased(step: int) -> AbstractContextManager[None]:
        delta = intensity(step, generation.steps, plans[0].config)
        return guided(model, shard, guidance, delta) if delta else nullcontext()

    return advance(
        model,
        start(model, seeds, generation),
        texts,
        generation,
        until=generation.steps,
        stage="guide",
        conditional_pass=biased,
        progress=progress,
    ).latents
