"""Generation of count-accurate clips: one rank's part in a gang's work, and one clip in one process."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from numina.config import MethodConfig, ScheduleBy
from numina.correct import correct
from numina.errors import ClipError, ConfigError, InputError
from numina.guidance import GuidancePlan
from numina.prompts.targets import Target, check_targets, parse_targets
from numina.prompts.tokens import TokenSpans, locate_tokens
from numina.stage import Stage
from pipelines.attention.engines import attention_kernel
from pipelines.base import GenerationConfig, Text, TextEncoder, VideoModel
from pipelines.models.text_limit import told
from pipelines.parallel.shard import ALONE, Shard
from pipelines.parallel.support import check_cache
from pipelines.sampling import denoise
from pipelines.sampling.broken import broken_capture, broken_latents, broken_pixels, first_of
from pipelines.sampling.clip import Clip, Identified, Ran, Request, Timings
from pipelines.sampling.warmup import warm_up
from pipelines.sampling.write import write_clips

log = logging.getLogger(__name__)

_TOLD = set[str]()  # the prompts of which this process has said that they are cut


@dataclass
class _Held:
    """An identified clip that waits for its layout: its place in the state to go on from, and its text."""

    text: Text
    seed: int
    state: denoise.DenoiseState
    place: int  # in the state's batch
    schedule_by: ScheduleBy  # the method's
    timings: Timings = field(default_factory=dict)


class ClipGenerator:
    """One rank's part in generating clips, a batch at a time. All ranks of a gang get the same calls in the same order.

    Identified clips are held under their key until `finish`, `guide` or `drop`. The gang's first rank returns what is
    asked for, the others None. Where a prompt was encoded elsewhere, its `Text` is given along. Clips come with their
    latents where these are kept. A clip that came out broken has its error in its place.

    Raises ConfigError where clips are to be decoded in another dtype than the model's VAE was loaded in.
    """

    def __init__(
        self,
        model: VideoModel,
        generation: GenerationConfig,
        shard: Shard = ALONE,
        progress: denoise.Progress | None = None,
        keep_latents: bool = False,
    ):
        self.model = model
        self.generation = generation
        self.shard = shard
        self.progress = progress
        self.keep_latents = keep_latents
        if generation.vae_dtype not in ("auto", model.vae_dtype):
            raise ConfigError(
                f"generation.vae_dtype is {generation.vae_dtype}, but the model was loaded to decode in"
                f" {model.vae_dtype}; give load_model the same vae_dtype"
            )
        if shard.gang is not None:
            model.split_decoder(shard.gang)
        gpu = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None
        self.ran = Ran(gpu, torch.__version__, attention_kernel(model))
        self._held: dict[str, _Held] = {}

    def warm_up(self, methods: Iterable[MethodConfig | None], batch: int = 1) -> dict[str, float]:
        """Runs each kind of pass once, so that the first clip waits for no compiler; seconds by name."""
        return warm_up(self.model, self.shard, self.generation, methods, batch)

    def plain(self, requests: Sequence[Request], texts: Sequence[Text] | None = None) -> list[Clip | ClipError] | None:
        """Generation without NUMINA."""
        self._check_cache(requests)
        timings = [Timings() for _ in requests]
        if texts is None:
            texts = self._encode(requests, timings)
        with timed(timings, Stage.DENOISE, self.model):
            state = denoise.start(self.model, [request.seed for request in requests], self.generation)
            latents = self._finish(state, texts)
        return self._clips(latents, timings, Stage.DENOISE)

    def identify(
        self, requests: Sequence[Request], method: MethodConfig, texts: Sequence[Text] | None = None
    ) -> list[Identified | InputError | ClipError] | None:
        """Denoises to t*, keeps the clips under their keys, and returns what the reference block showed.

        A request whose nouns have no tokens gets its error in place of an answer; the others aren't held up by it. A
        clip that is broken by then gets its error too, but is kept until it is dropped: only the first rank has looked.
        """
        timings = [Timings() for _ in requests]
        if texts is None:
            texts = self._encode(requests, timings)
        found = [_locate(self.model, text, request) for text, request in zip(texts, requests, strict=True)]
        spans = {i: own for i, own in enumerate(found) if not isinstance(own, InputError)}
        answers: list[Identified | InputError | ClipError] = [own for own in found if isinstance(own, InputError)]
        if not spans:
            return answers if self.shard.leads else None
        with timed([timings[i] for i in spans], Stage.IDENTIFY, self.model):
            state, captures = denoise.identify(
                self.model,
                self.shard,
                [texts[i] for i in spans],
                list(spans.values()),
                [requests[i].seed for i in spans],
                self.generation,
                method,
                self.progress,
            )
        for place, i in enumerate(spans):
            self._held[requests[i].key] = _Held(
                texts[i], requests[i].seed, state, place, method.schedule_by, timings[i]
            )
        if not self.shard.leads:
            return None
        broken = first_of(broken_latents(state.latents, Stage.IDENTIFY), list(map(broken_capture, captures)))
        for i, capture, error in zip(spans, captures, broken, strict=True):
            answers.insert(i, error or Identified(capture, spans[i], timings[i]))
        return answers

    def finish(self, keys: Sequence[str]) -> list[Clip | ClipError] | None:
        """Goes on from the kept state, for clips of one `identify`: their counts were right."""
        self._check_cache(keys)
        held = [self._held.pop(key) for key in keys]
        timings = [clip.timings for clip in held]
        with timed(timings, Stage.DENOISE, self.model):
            state = held[0].state.take([clip.place for clip in held])
            latents = self._finish(state, [clip.text for clip in held])
        return self._clips(latents, timings, Stage.DENOISE)

    def guide(self, keys: Sequence[str], plans: Sequence[GuidancePlan]) -> list[Clip | ClipError] | None:
        """Starts again from the same noise under the plans, for clips of one `identify`."""
        held = [self._held.pop(key) for key in keys]
        timings = [clip.timings for clip in held]
        with timed(timings, Stage.GUIDE, self.model):
            texts, seeds = [clip.text for clip in held], [clip.seed for clip in held]
            path = [earlier.take([clip.place for clip in held]) for earlier in held[0].state.path]
            latents = denoise.guide(
                self.model,
                self.shard,
                texts,
                plans,
                seeds,
                self.generation,
                self.progress,
                path,
                held[0].schedule_by,
            )
        return self._clips(latents, timings, Stage.GUIDE)

    def drop(self, keys: Sequence[str]) -> None:
        """Forgets kept clips."""
        for key in keys:
            self._held.pop(key, None)

    def _check_cache(self, clips: Sequence[object]) -> None:
        check_cache("generation.cache", self.generation.cache, ranks=self.shard.ranks, batch=len(clips))

    def _finish(self, state: denoise.DenoiseState, texts: Sequence[Text]) -> Tensor:
        return denoise.finish(self.model, state, texts, self.generation, self.progress, self.shard)

    def _encode(self, requests: Sequence[Request], timings: Sequence[Timings]) -> list[Text]:
        with timed(timings, Stage.ENCODE, self.model):
            return encode(self.model, requests, self.generation)

    def _clips(self, latents: Tensor, timings: Sequence[Timings], stage: Stage) -> list[Clip | ClipError] | None:
        with timed(timings, Stage.DECODE, self.model):
            decoded = self.model.decode(latents)
        if decoded is None or not self.shard.leads:
            return None
        videos, finite = decoded.pixels.numpy(), decoded.finite.tolist()
        broken = first_of(broken_latents(latents, stage), list(map(broken_pixels, videos, finite)))
        peak = torch.cuda.max_memory_allocated(self.model.device) if self.model.device.type == "cuda" else None
        kept = latents.float().cpu().numpy() if self.keep_latents else [None] * len(timings)
        return [
            error or Clip(video, b"", own, peak_memory_bytes=peak, latents=own_latents, ran=self.ran)
            for error, video, own, own_latents in zip(broken, videos, timings, kept, strict=True)
        ]


def encode(encoder: TextEncoder, requests: Sequence[Request], generation: GenerationConfig) -> list[Text]:
    """The requests' prompts, each with its own negative prompt or the config's."""
    default = generation.negative_prompt
    negative = [default if request.negative_prompt is None else request.negative_prompt for request in requests]
    texts = encoder.encode([request.prompt for request in requests], negative, generation)
    for request, text, avoided in zip(requests, texts, negative, strict=True):
        for what, given, cut in (("prompt", request.prompt, text.cut), ("negative prompt", avoided, text.negative_cut)):
            if cut and given not in _TOLD:
                _TOLD.add(given)
                log.warning("%s", told(what, given, cut, len(text.offsets)))
    return texts


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

    Targets are parsed from the prompt when None. Raises PromptError when a noun isn't in the prompt, and ClipError when
    the clip came out broken.
    """
    worker = ClipGenerator(model, generation, progress=progress)
    if method is None:
        return _written(worker.plain([Request("clip", prompt, negative_prompt, seed)]), generation)
    targets = tuple(targets) if targets is not None else parse_targets(prompt)
    check_targets(prompt, targets)
    [identified] = worker.identify([Request("clip", prompt, negative_prompt, seed, tuple(targets))], method) or []
    if isinstance(identified, Exception):
        raise identified
    correction = correct(identified.capture, targets, identified.spans, method)
    clips = worker.finish(["clip"]) if correction.plan is None else worker.guide(["clip"], [correction.plan])
    return replace(_written(clips, generation), correction=correction)


def _written(clips: list[Clip | ClipError] | None, generation: GenerationConfig) -> Clip:
    assert clips is not None, "only ranks other than the first return nothing"
    [made] = clips
    if isinstance(made, ClipError):
        raise made
    [clip] = write_clips([made], generation)
    return clip


def _locate(model: VideoModel, text: Text, request: Request) -> tuple[TokenSpans, ...] | InputError:
    try:
        return locate_tokens(text.prompt, request.targets, text.offsets, model.clean)
    except InputError as error:
        return error


@contextmanager
def timed(timings: Sequence[Timings], stage: Stage, model: VideoModel) -> Iterator[None]:
    """Adds a stage's seconds to its clips, in equal shares; a GPU is waited for, so that they are the stage's own."""
    began = time.perf_counter()
    with torch.inference_mode():
        yield
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    share = (time.perf_counter() - began) / len(timings)
    for own in timings:
        own[stage] = own.get(stage, 0.0) + share
