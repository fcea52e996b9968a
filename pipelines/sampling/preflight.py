"""A preflight: one small clip of few steps through every stage that a job has, so that a wrong build fails before it.

encode ─► identify ─► layout ─► guide ─► decode ─► mp4       all ranks of a gang together; the plan is a made-up one
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from numina.errors import MachineError
from numina.prompts.targets import Target
from numina.prompts.tokens import TokenSpans, locate_tokens
from numina.stage import Stage
from pipelines.base import GenerationConfig
from pipelines.sampling import denoise
from pipelines.sampling.broken import broken_latents
from pipelines.sampling.warmup import NOUN, any_plan, blank_text
from pipelines.video.mp4 import encode_mp4

if TYPE_CHECKING:
    from numina.config import MethodConfig
    from pipelines.base import VideoModel
    from pipelines.parallel.shard import Shard

PROMPT, TARGETS = "two cats and a dog", (Target("cats", 2), Target("dog", 1))


@torch.inference_mode()
def preflight(
    model: VideoModel,
    shard: Shard,
    generation: GenerationConfig,
    method: MethodConfig | None,
    *,
    encodes: bool,
) -> dict[str, float]:
    """Makes the clip and throws it away; seconds by stage. `encodes`: the text encoder is here.

    All ranks of a gang call it together. Raises MachineError that names the stage, and why it failed.
    """
    seconds: dict[str, float] = {}
    spans: tuple[TokenSpans, ...]
    targets: tuple[Target, ...]
    texts, spans, targets = [blank_text(model, generation)], (NOUN,), TARGETS[:1]
    if encodes:
        with _stage(Stage.ENCODE, seconds, model):
            texts = model.encode([PROMPT], [generation.negative_prompt], generation)
            targets = TARGETS
            spans = tuple(locate_tokens(texts[0].prompt, targets, texts[0].offsets, model.clean))
    if method is None:
        with _stage(Stage.DENOISE, seconds, model):
            latents = denoise.finish(model, denoise.start(model, [0], generation), texts, generation, shard=shard)
            _check(latents, Stage.DENOISE)
    else:
        with _stage(Stage.IDENTIFY, seconds, model):
            state, captures = denoise.identify(model, shard, texts, [spans], [0], generation, method)
            _check(state.latents, Stage.IDENTIFY)
        if shard.leads:
            with _stage(Stage.LAYOUT, seconds, model):
                from numina.correct import correct  # takes a second to import

                correct(captures[0], targets, spans, method)
        with _stage(Stage.GUIDE, seconds, model):
            plans, path = [any_plan(model, generation, method)], [earlier.take([0]) for earlier in state.path]
            latents = denoise.guide(model, shard, texts, plans, [0], generation, None, path)
            _check(latents, Stage.GUIDE)
    with _stage(Stage.DECODE, seconds, model):
        decoded = model.decode(latents)
        if decoded is not None and not decoded.finite.all():
            raise ArithmeticError("the pixels have values that aren't finite")
    if decoded is not None and shard.leads:
        with _stage("mp4", seconds, model):
            encode_mp4(decoded.pixels[0].numpy(), fps=generation.fps, crf=generation.crf)
    return seconds


def _check(latents: torch.Tensor, stage: Stage) -> None:
    for error in broken_latents(latents, stage):
        if error is not None:
            raise ArithmeticError(str(error))


@contextmanager
def _stage(stage: str, seconds: dict[str, float], model: VideoModel) -> Iterator[None]:
    """Times a stage, and names it where it fails."""
    began = time.perf_counter()
    try:
        yield
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)  # a kernel's error comes with what waits for it
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise MachineError(
            f"the preflight's small clip failed in {stage}: {said}",
            "`numina doctor` with this job's settings shows what this machine lacks; cluster.preflight=never starts"
            " without this clip",
        ) from error
    seconds[stage] = time.perf_counter() - began
