"""Two-phase denoising: identify to step t*, then go on unchanged or start again from the same noise with guidance.

    state, capture = identify(...)             # steps 0..t*, looking on at t*
    latents = finish(state)                    # counts are right: nothing is run twice
    latents = guide(plan)                      # else: same noise, biased cross-attention

Source: arXiv 2604.08546 §3. Any number of ranks runs these functions in step; see `parallel.Shard`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from numina.config import MethodConfig
from numina.guidance import GuidancePlan, intensity
from numina.layout import Capture
from numina.tokens import TokenSpans
from pipelines.attention import guided
from pipelines.base import GenerationConfig, Scheduler, Text, VideoModel
from pipelines.capture import BlockCapture, capturing
from pipelines.parallel import Shard

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all
ConditionalPass = Callable[[int], AbstractContextManager[None]]  # step → what surrounds its conditional forward


@dataclass
class DenoiseState:
    """A clip on its way: the next step, its latents [1, C, F, h, w] and the sampler with its multistep history."""

    step: int
    latents: Tensor
    scheduler: Scheduler


def start(model: VideoModel, seed: int, generation: GenerationConfig) -> DenoiseState:
    """The seeded noise, before the first step."""
    return DenoiseState(0, model.noise(seed, generation), model.scheduler(generation))


@torch.inference_mode()
def advance(
    model: VideoModel,
    state: DenoiseState,
    text: Text,
    generation: GenerationConfig,
    *,
    until: int,
    stage: str = "denoise",
    conditional_pass: ConditionalPass = lambda step: nullcontext(),
    progress: Progress | None = None,
) -> DenoiseState:
    """Denoises up to (not including) step `until`, in place."""
    for step in range(state.step, until):
        timestep = state.scheduler.timesteps[step]
        with conditional_pass(step):
            velocity = model.predict(state.latents, timestep, text.conditional)
        if text.unconditional is not None:
            unconditional = model.predict(state.latents, timestep, text.unconditional)
            velocity = unconditional + generation.guidance_scale * (velocity - unconditional)
        state.latents = state.scheduler.step(velocity, timestep, state.latents, return_dict=False)[0]
        state.step = step + 1
        if progress:
            progress(stage, state.step, generation.steps)
    return state


def identify(
    model: VideoModel,
    shard: Shard,
    text: Text,
    spans: Sequence[TokenSpans],
    seed: int,
    generation: GenerationConfig,
    method: MethodConfig,
    progress: Progress | None = None,
) -> tuple[DenoiseState, Capture]:
    """Denoises through step t* and reads the maps of block l* there (arXiv 2604.08546 §3.1)."""
    reference = method.identify.capture_step(generation.steps)
    seen = BlockCapture(model.grid(generation), shard, spans, method.identify)

    def look_on(step: int) -> AbstractContextManager[None]:
        return capturing(model, seen) if step == reference else nullcontext()

    state = advance(
        model,
        start(model, seed, generation),
        text,
        generation,
        until=reference + 1,
        stage="identify",
        conditional_pass=look_on,
        progress=progress,
    )
    return state, seen.result()


def finish(
    model: VideoModel,
    state: DenoiseState,
    text: Text,
    generation: GenerationConfig,
    progress: Progress | None = None,
) -> Tensor:
    """Goes on from a kept state: bit-equal to generation without identification."""
    return advance(model, state, text, generation, until=generation.steps, progress=progress).latents


def guide(
    model: VideoModel,
    shard: Shard,
    text: Text,
    plan: GuidancePlan,
    seed: int,
    generation: GenerationConfig,
    progress: Progress | None = None,
) -> Tensor:
    """Generates from the same noise under the plan's bias (arXiv 2604.08546 §3.3)."""

    def biased(step: int) -> AbstractContextManager[None]:
        delta = intensity(step, generation.steps, plan.config)
        return guided(model, shard, plan, delta, text.conditional.shape[1]) if delta else nullcontext()

    return advance(
        model,
        start(model, seed, generation),
        text,
        generation,
        until=generation.steps,
        stage="guide",
        conditional_pass=biased,
        progress=progress,
    ).latents
