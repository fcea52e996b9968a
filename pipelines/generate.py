"""Generation of count-accurate clips: one rank's part in a gang's work, and one clip in one process."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from numina.config import MethodConfig
from numina.correct import correct
from numina.guidance import GuidancePlan
from numina.prompts import Target, check_targets, parse_targets
from numina.tokens import TokenSpans, locate_tokens
from pipelines import denoise
from pipelines.base import GenerationConfig, Text, VideoModel
from pipelines.clip import Clip, Identified, Timings
from pipelines.parallel import Shard
from pipelines.video import encode_mp4


@dataclass
class _Held:
    """An identified clip that waits for its layout: the state to go on from, and its text."""

    text: Text
    spans: tuple[TokenSpans, ...]
    state: denoise.DenoiseState
    seed: int
    timings: Timings = field(default_factory=dict)


class ClipGenerator:
    """One rank's part in generating clips. All ranks of a gang get the same calls in the same order.

    Identified clips are held under their key until `finish`, `guide` or `drop`; rank 0 returns clips, the others None.
    """

    def __init__(
        self,
        model: VideoModel,
        generation: GenerationConfig,
        shard: Shard | None = None,
        progress: denoise.Progress | None = None,
    ):
        self.model = model
        self.generation = generation
        self.shard = shard or Shard()
        self.progress = progress
        self._held: dict[str, _Held] = {}

    def plain(self, prompt: str, negative_prompt: str | None, seed: int) -> Clip | None:
        """Generation without NUMINA."""
        timings: Timings = {}
        with stage(timings, "encode", self.model):
            text = self._encode(prompt, negative_prompt)
        with stage(timings, "denoise", self.model):
            state = denoise.start(self.model, seed, self.generation)
            latents = denoise.finish(self.model, state, text, self.generation, self.progress)
        return self._clip(latents, timings)

    def identify(
        self,
        key: str,
        prompt: str,
        negative_prompt: str | None,
        targets: Sequence[Target],
        seed: int,
        method: MethodConfig,
    ) -> Identified:
        """Denoises to t*, keeps the state under `key`, and returns what the reference block showed."""
        timings: Timings = {}
        with stage(timings, "encode", self.model):
            text = self._encode(prompt, negative_prompt)
            spans = locate_tokens(text.prompt, targets, text.offsets)
        with stage(timings, "identify", self.model):
            state, capture = denoise.identify(
                self.model, self.shard, text, spans, seed, self.generation, method, self.progress
            )
        self._held[key] = _Held(text, spans, state, seed, timings)
        return Identified(capture, spans, timings)

    def finish(self, key: str) -> Clip | None:
        """Goes on from the kept state: the counts were right."""
        held = self._held.pop(key)
        with stage(held.timings, "denoise", self.model):
            latents = denoise.finish(self.model, held.state, held.text, self.generation, self.progress)
        return self._clip(latents, held.timings)

    def guide(self, key: str, plan: GuidancePlan) -> Clip | None:
        """Starts again from the same noise under the plan."""
        held = self._held.pop(key)
        with stage(held.timings, "guide", self.model):
            latents = denoise.guide(self.model, self.shard, held.text, plan, held.seed, self.generation, self.progress)
        return self._clip(latents, held.timings)

    def drop(self, key: str) -> None:
        """Forgets a kept state."""
        self._held.pop(key, None)

    def _encode(self, prompt: str, negative_prompt: str | None) -> Text:
        negative = self.generation.negative_prompt if negative_prompt is None else negative_prompt
        return self.model.encode(prompt, negative, self.generation)

    def _clip(self, latents: Tensor, timings: Timings) -> Clip | None:
        if self.shard.rank != 0:
            return None
        with stage(timings, "decode", self.model):
            video = self.model.decode(latents).numpy()
        with stage(timings, "write", self.model):
            mp4 = encode_mp4(video, fps=self.generation.fps, crf=self.generation.crf)
        peak = torch.cuda.max_memory_allocated(self.model.device) if self.model.device.type == "cuda" else None
        return Clip(video, mp4, timings, peak_memory_bytes=peak)


def generate(
    model: VideoModel,
    prompt: str,
    *,
    targets: Sequence[Target] | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    generation: GenerationConfig,
    method: MethodConfig | None,
    progress: denoise.Progress | None = None,
) -> Clip:
    """One prompt to one clip in this process; `method=None` generates without NUMINA.

    Targets are parsed from the prompt when None. Raises PromptError when a noun isn't in the prompt.
    """
    worker = ClipGenerator(model, generation, progress=progress)
    if method is None:
        clip = worker.plain(prompt, negative_prompt, seed)
        assert clip is not None
        return clip
    targets = tuple(targets) if targets is not None else parse_targets(prompt)
    check_targets(prompt, targets)
    identified = worker.identify("clip", prompt, negative_prompt, targets, seed, method)
    correction = correct(identified.capture, targets, identified.spans, method)
    clip = worker.finish("clip") if correction.plan is None else worker.guide("clip", correction.plan)
    assert clip is not None
    return replace(clip, correction=correction)


@contextmanager
def stage(timings: Timings, name: str, model: VideoModel) -> Iterator[None]:
    """Adds the seconds of a stage; a GPU is waited for, so that they are the stage's own."""
    began = time.perf_counter()
    with torch.inference_mode():
        yield
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - began
