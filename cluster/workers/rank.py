"""A rank: one GPU's process of a gang, and what it does to clips."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import ray
import torch
import torch.distributed as dist

from cluster.observability import logs
from numina.config import MethodConfig
from numina.errors import ClipError, InputError
from pipelines.base import GenerationConfig, Text
from pipelines.checkpoints.hub import is_repository
from pipelines.checkpoints.lora import LoraConfig, lora_file
from pipelines.models.registry import FLOAT8, load_model, model_folder, resolve_device, uncollected
from pipelines.parallel.config import MemoryConfig, ParallelConfig
from pipelines.parallel.group import join_group
from pipelines.parallel.libraries import XFUSER, require
from pipelines.parallel.shard import limit_collectives
from pipelines.parallel.support import resolve_engine
from pipelines.sampling.clip import Clip, Identified, Request

if TYPE_CHECKING:
    from numina.guidance import GuidancePlan
    from pipelines.sampling.generate import ClipGenerator
from cluster.workers.member import Arrival, Member, ModelSpec, Running, text_on
from cluster.workers.passed import has_passed, note_passed


@dataclass(frozen=True, kw_only=True)
class GangSpec(ModelSpec):
    """What every rank of every gang of a job is made of."""

    device: str  # cuda | cpu
    methods: tuple[MethodConfig | None, ...]  # the strategies', for which compilation prepares
    parallel: ParallelConfig
    memory: MemoryConfig
    cpus_per_rank: int
    keep_latents: bool = False  # clips come with them: some MB more to fetch from the gang's node
    loras: tuple[LoraConfig, ...] = ()
    preflight: GenerationConfig | None = None  # of a small clip that is made before the gang stands
    preflight_always: bool = False  # also where it has passed before
    planned_gib: float | None = None  # of a rank's GPU, at most, by the planner; None on CPUs

    @property
    def actor(self) -> type[Member]:
        return Rank

    @property
    def ranks(self) -> int:
        return self.parallel.ranks

    @property
    def together(self) -> Sequence[int]:
        """The whole gang on one node; else a branch; else the ranks that swap heads in every layer."""
        return self.parallel.ranks, self.parallel.sequence_ranks, self.parallel.ulysses

    @property
    def need(self) -> dict[str, float]:
        return {"CPU": float(self.cpus_per_rank)} | ({"GPU": 1.0} if self.device == "cuda" else {})

    @property
    def compiles(self) -> bool:
        return self.parallel.compile

    @property
    def fetches(self) -> bool:
        return super().fetches or any(is_repository(lora.path) for lora in self.loras)

    @property
    def tests(self) -> bool:
        return self.preflight is not None


class Rank(Member):
    """One process of a gang that makes clips: its share of the model and of every clip.

    What it makes comes with a receipt, so that the driver learns of its end without fetching a clip's 97 MB of frames.
    """

    spec: GangSpec
    generator: ClipGenerator | None = None

    def download(self) -> None:
        model_folder(self.spec.model_path, self.spec.model_revision)
        for lora in self.spec.loras:
            lora_file(lora)

    def load(self, first: Arrival) -> dict[str, float]:
        """Joins the process group and loads the model: one rank reads, the others receive."""
        with uncollected():
            from pipelines.attention.engines import parallelize
            from pipelines.sampling.generate import ClipGenerator
            from pipelines.sampling.warmup import compile_blocks

        began, spec = time.perf_counter(), self.spec
        if resolve_device(spec.device) == "cpu":
            torch.set_num_threads(spec.cpus_per_rank)
        if spec.ranks > 1:
            assert first.port is not None, "the first of several ranks holds a port"
            patience = timedelta(seconds=spec.start_timeout)
            meeting = self.meeting or dist.TCPStore(first.host, first.port, is_master=False, timeout=patience)
            join_group(meeting, spec.device, self.rank, spec.ranks, patience)
        if resolve_engine(spec.parallel.engine, spec.device, spec.parallel.sequence_ranks) == "xfuser":
            require(XFUSER)  # before minutes of loading
        model = load_model(
            spec.model_path,
            dtype=spec.dtype,
            device=spec.device,
            memory=spec.memory,
            text_encoder=spec.memory.text_encoder == "gang",
            revision=spec.model_revision,
            loras=spec.loras,
            vae_dtype=spec.generation.vae_dtype,
        )
        shard = parallelize(model, spec.parallel, float8=spec.dtype == FLOAT8)
        if spec.compiles:
            compile_blocks(model)
        self.generator = ClipGenerator(model, spec.generation, shard, keep_latents=spec.keep_latents)
        return {"load": time.perf_counter() - began}

    def warm_up(self) -> dict[str, float]:
        """Compiles. From here on no collective may take longer than a step."""
        spec, seconds = self.spec, dict[str, float]()
        if spec.compiles:
            with size_told(spec.planned_gib):
                seconds = self._ready.warm_up(spec.methods, spec.parallel.batch)
        if spec.ranks > 1:
            limit_collectives(timedelta(seconds=spec.step_timeout))
        return seconds

    def runs(self) -> Running:
        """Engine and kernel as they were chosen here."""
        from pipelines.attention.kernels import faster_kernel

        if self.generator is None:
            return Running()
        ran, spec = self.generator.ran, self.spec
        engine = resolve_engine(spec.parallel.engine, spec.device, spec.parallel.sequence_ranks)
        blocks = "compiled" if spec.compiles else "eager"
        place = ran.gpu_name or "a CPU"
        what = f"{place}, torch {ran.torch_version}, engine {engine}, attention {ran.attention_kernel}, {blocks} blocks"
        model = self._ready.model
        faster = faster_kernel(model.device, model.transformer.dtype, ran.attention_kernel)
        return Running(what, (faster,) if faster else ())

    def passed(self) -> bool:
        return self.spec.preflight is None or (not self.spec.preflight_always and has_passed(self.spec))

    def preflight(self, first: Arrival) -> dict[str, float]:
        from pipelines.sampling.preflight import preflight

        spec, began = self.spec, time.perf_counter()
        if first.passed or spec.preflight is None:
            return {}
        method = next(filter(None, spec.methods), None)
        # Compiled blocks would have a graph of this clip's size, too.
        eager = torch.compiler.set_stance("force_eager") if spec.compiles else nullcontext()
        with eager, size_told(spec.planned_gib):
            encodes = spec.memory.text_encoder == "gang"
            preflight(self._ready.model, self._ready.shard, spec.preflight, method, encodes=encodes)
        if self.rank == 0:
            note_passed(spec)
        return {"preflight": time.perf_counter() - began}

    @ray.method(num_returns=2)
    def identify(
        self, requests: Sequence[Request], method: MethodConfig, texts: Sequence[Text] | None
    ) -> tuple[list[Identified | InputError | ClipError] | None, None]:
        if self._skips(requests):
            return None, None
        with self._about(request.key for request in requests):
            return self._ready.identify(requests, method, self._here(texts)), None

    @ray.method(num_returns=2)
    def plain(
        self, requests: Sequence[Request], texts: Sequence[Text] | None
    ) -> tuple[list[Clip | ClipError] | None, None]:
        if self._skips(requests):
            return None, None
        with self._about(request.key for request in requests):
            return self._ready.plain(requests, self._here(texts)), None

    @ray.method(num_returns=2)
    def finish(self, keys: Sequence[str]) -> tuple[list[Clip | ClipError] | None, None]:
        with self._about(keys):
            return self._ready.finish(keys), None

    @ray.method(num_returns=2)
    def guide(self, keys: Sequence[str], plans: Sequence[GuidancePlan]) -> tuple[list[Clip | ClipError] | None, None]:
        with self._about(keys):
            return self._ready.guide(keys, plans), None

    def _skips(self, requests: Sequence[Request]) -> bool:
        """Whether a batch that is about to begin was handed back."""
        return self.skipped.issuperset(request.key for request in requests)

    def drop(self, keys: Sequence[str]) -> None:
        self._ready.drop(keys)
        super().drop(keys)

    def _here(self, texts: Sequence[Text] | None) -> list[Text] | None:
        """An encoder's texts on this rank's device."""
        return None if texts is None else [text_on(self._ready.model.device, text) for text in texts]

    @contextmanager
    def _about(self, keys: Iterable[str]) -> Iterator[None]:
        """All that is logged inside is about these clips, and so is what runs out of memory."""
        with logs.about(key=" ".join(keys)), size_told(self.spec.planned_gib):
            yield

    @property
    def _ready(self) -> ClipGenerator:
        assert self.generator is not None, "load() comes first"
        return self.generator


@contextmanager
def size_told(planned_gib: float | None) -> Iterator[None]:
    """Where GPU memory runs out inside, says how much the planner expected to be taken, and what takes less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        expected = f"; the planner expects {planned_gib:.1f} GiB at most on every GPU" if planned_gib else ""
        raise torch.OutOfMemoryError(
            f"{error}{expected}; memory.shard=zero3, memory.text_encoder=apart, parallel.batch=1 or a smaller clip need"
            " less; see `numina plan`"
        ) from error
