"""A gang: processes that start together, work together and end together, as Ray actors in one placement group.

    placing ─► loading ─► (compiling) ─► standing ─► ending          a lost process takes its gang with it

All ranks get the same calls in the same order; rank 0 answers. Nothing here waits: starting and ending give references
to wait for, and the driver has other gangs to serve.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
import torch.distributed as dist
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster import logs
from numina.config import MethodConfig
from numina.errors import InputError
from pipelines.base import GenerationConfig, Text
from pipelines.clip import Clip, Identified, Request
from pipelines.lora import LoraConfig
from pipelines.parallel import MemoryConfig, ParallelConfig, limit_collectives
from pipelines.registry import load_model

if TYPE_CHECKING:
    from numina.guidance import GuidancePlan
    from pipelines.generate import ClipGenerator

PLACING, LOADING, COMPILING, STANDING, ENDING = "placing", "loading", "compiling", "standing", "ending"
PULSE_SECONDS = 1.0  # between two questions for a sign of life
TITLE = "ray::"  # how Ray's worker processes call themselves


@dataclass(frozen=True, kw_only=True)
class Spec(ABC):
    """How long a gang's processes may take, and what they need; by itself, a gang of one."""

    start_timeout: float  # seconds until it stands
    step_timeout: float  # seconds without a sign of life
    end_timeout: float  # seconds until its processes are gone
    log_format: str  # text | json

    @property
    @abstractmethod
    def actor(self) -> type[Member]: ...

    @property
    @abstractmethod
    def need(self) -> dict[str, float]:
        """Ray resources of one rank."""

    @property
    def ranks(self) -> int:
        return 1

    @property
    def together(self) -> Sequence[int]:
        """How many neighbouring ranks must share a node, the best first; the last is the least that works."""
        return (self.ranks,)

    @property
    def compiles(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class AloneSpec(Spec):
    """What a process beside the gangs takes. It is a gang of one: it starts, is watched and is replaced like others."""

    cpus: int
    gpus: float  # a share of one; 0: on the CPU

    @property
    def need(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """What processes that hold a part of the job's model are made of."""

    model_path: str
    model_revision: str | None = None  # of a hub id
    dtype: str
    generation: GenerationConfig


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


@dataclass(frozen=True)
class Arrival:
    """Where a process is; and where its gang's ranks can meet, if it is the first one."""

    rank: int
    node: str  # Ray's id
    pid: int
    host: str
    port: int | None


class Member(ABC):
    """One process of a gang."""

    def __init__(self, spec: Any, rank: int, gang: str):
        logs.set_up(spec.log_format, gang=gang)
        self.spec = spec
        self.rank = rank
        self.meeting: dist.TCPStore | None = None

    def arrive(self) -> Arrival:
        """The first sign of a process. Rank 0 holds the port from here on."""
        host, port = ray.util.get_node_ip_address(), None
        if self.rank == 0 and self.spec.ranks > 1:
            patience = timedelta(seconds=self.spec.start_timeout)
            self.meeting = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=patience)
            port = self.meeting.port
        return Arrival(self.rank, ray.get_runtime_context().get_node_id(), os.getpid(), host, port)

    @abstractmethod
    def load(self, first: Arrival) -> dict[str, float]:
        """Makes ready for work; what it took, in seconds by name."""

    def warm_up(self) -> dict[str, float]:
        """The last thing before work; what it took, in seconds by name."""
        return {}

    def drop(self, keys: Sequence[str]) -> None:
        """Forgets what it holds of these clips."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what is left after running out of memory is in pieces

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> bool:
        """Answered by a thread of its own while others compute: only a process that is stopped or gone is silent."""
        return True


class Rank(Member):
    """One process of a gang that makes clips: its share of the model and of every clip.

    What it makes comes with a receipt, so that the driver learns of its end without fetching a clip's 97 MB of frames.
    """

    spec: GangSpec
    generator: ClipGenerator | None = None

    def load(self, first: Arrival) -> dict[str, float]:
        """Joins the process group and loads the model: one rank reads, the others receive."""
        from pipelines.engines import parallelize  # seconds to import, in ranks only
        from pipelines.generate import ClipGenerator
        from pipelines.warmup import compile_blocks

        began, spec = time.perf_counter(), self.spec
        if spec.device == "cpu":
            torch.set_num_threads(spec.cpus_per_rank)
        if spec.ranks > 1:
            assert first.port is not None, "the first of several ranks holds a port"
            patience = timedelta(seconds=spec.start_timeout)
            meeting = self.meeting or dist.TCPStore(first.host, first.port, is_master=False, timeout=patience)
            backend = "nccl" if spec.device == "cuda" else "gloo"
            dist.init_process_group(backend, store=meeting, rank=self.rank, world_size=spec.ranks, timeout=patience)
        model = load_model(
            spec.model_path,
            dtype=spec.dtype,
            device=spec.device,
            memory=spec.memory,
            text_encoder=spec.memory.text_encoder == "gang",
            revision=spec.model_revision,
            loras=spec.loras,
        )
        shard = parallelize(model, spec.parallel)
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

    @ray.method(num_returns=2)
    def identify(
        self, requests: Sequence[Request], method: MethodConfig, texts: Sequence[Text] | None
    ) -> tuple[list[Identified | InputError] | None, None]:
        with self._about(request.key for request in requests):
            return self._ready.identify(requests, method, self._here(texts)), None

    @ray.method(num_returns=2)
    def plain(self, requests: Sequence[Request], texts: Sequence[Text] | None) -> tuple[list[Clip] | None, None]:
        with self._about(request.key for request in requests):
            return self._ready.plain(requests, self._here(texts)), None

    @ray.method(num_returns=2)
    def finish(self, keys: Sequence[str]) -> tuple[list[Clip] | None, None]:
        with self._about(keys):
            return self._ready.finish(keys), None

    @ray.method(num_returns=2)
    def guide(self, keys: Sequence[str], plans: Sequence[GuidancePlan]) -> tuple[list[Clip] | None, None]:
        with self._about(keys):
            return self._ready.guide(keys, plans), None

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
            f"{error}{expected}; memory.shard=zero3, memory.text_encoder=apart, parallel.batch=1 or a smaller clip take"
            " less, see `numina plan`"
        ) from error


class Gang:
    """The driver's handle on one gang."""

    def __init__(self, name: str, spec: Spec):
        self.name = name
        self.spec = spec
        self.stage = PLACING
        self.arrivals: list[Arrival] = []
        self.seconds: dict[str, float] = {}  # what the start took, by name: the slowest rank's
        self.bundles = bundles(spec, node_sizes())
        self._began = time.monotonic()
        self._awaited: dict[ObjectRef, str] = {}  # what the stage that begins or ends waits for
        self._pulses: list[tuple[ObjectRef, float]] = []  # per rank: the question, and when it was asked
        self._place: PlacementGroup = placement_group(self.bundles, strategy="PACK")
        actor = ray.remote(concurrency_groups={"pulse": 1})(spec.actor)
        size = spec.ranks // len(self.bundles)
        self.ranks: list[ActorHandle] = [
            actor.options(
                num_cpus=spec.need["CPU"],
                num_gpus=spec.need.get("GPU", 0),
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._place, placement_group_bundle_index=rank // size
                ),
            ).remote(spec, rank, name)
            for rank in range(spec.ranks)
        ]

    def start(self) -> list[ObjectRef]:
        """Starts all ranks. Once every reference was handed to `heard`, the gang stands."""
        arrivals = [rank.arrive.remote() for rank in self.ranks]
        loads = [rank.load.remote(arrivals[0]) for rank in self.ranks]
        last = [rank.warm_up.remote() for rank in self.ranks]
        self._awaited = (
            dict.fromkeys(arrivals, PLACING)
            | dict.fromkeys(loads, LOADING)
            | dict.fromkeys(last, COMPILING if self.spec.compiles else LOADING)
        )
        return list(self._awaited)

    def heard(self, reference: ObjectRef, answer: Any) -> None:
        """A step of the start is done."""
        del self._awaited[reference]
        if isinstance(answer, Arrival):
            self.arrivals.append(answer)
        else:
            self.seconds |= {name: max(took, self.seconds.get(name, 0.0)) for name, took in answer.items()}
        if self._awaited:
            self.stage = next(iter(self._awaited.values()))
        else:
            self.stage = STANDING
            self._pulses = [(rank.pulse.remote(), time.monotonic()) for rank in self.ranks]

    @property
    def age(self) -> float:
        """Seconds since its start, or its end, began."""
        return time.monotonic() - self._began

    @property
    def overdue(self) -> bool:
        """Whether its start, or its end, takes longer than it may."""
        limits = {STANDING: float("inf"), ENDING: self.spec.end_timeout}
        return self.age > limits.get(self.stage, self.spec.start_timeout)

    @property
    def silent(self) -> bool:
        """Whether a rank of a standing gang owes a sign of life for longer than a step may take."""
        now = time.monotonic()
        for rank, (question, asked) in enumerate(self._pulses):
            if now - asked < PULSE_SECONDS:
                continue
            if ray.wait([question], timeout=0)[0]:
                self._pulses[rank] = (self.ranks[rank].pulse.remote(), now)
            elif now - asked > self.spec.step_timeout:
                return True
        return False

    def call(self, method: str, *arguments: Any) -> None:
        """The same call on every rank, whose end nobody waits for."""
        for rank in self.ranks:
            getattr(rank, method).remote(*arguments)

    def make(self, method: str, *arguments: Any) -> tuple[ObjectRef, list[ObjectRef]]:
        """The same call on every rank: what rank 0 makes, and every rank's receipt, rank 0's first.

        No argument may be a reference that isn't there yet: it would hold up signs of life behind it.
        """
        answers = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        return answers[0][0], [receipt for _, receipt in answers]

    def kill(self) -> list[ObjectRef]:
        """Ends all ranks, whatever they do; once the references are done their processes, and GPU memory, are gone."""
        self.stage, self._began = ENDING, time.monotonic()
        for rank in self.ranks:
            ray.kill(rank)
        self._awaited = {}
        for node in {arrival.node for arrival in self.arrivals}:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            pids = [arrival.pid for arrival in self.arrivals if arrival.node == node]
            reference = end_processes.options(scheduling_strategy=there).remote(pids, self.spec.end_timeout)
            self._awaited[reference] = ENDING
        return list(self._awaited)

    def gone(self, reference: ObjectRef) -> bool:
        """Whether this was the last of `kill`'s references."""
        del self._awaited[reference]
        return not self._awaited

    def free(self) -> None:
        """Gives its place back, after its end."""
        remove_placement_group(self._place)

    def fresh(self) -> Gang:
        """Another one like this."""
        return Gang(self.name, self.spec)

    def lateness(self) -> str:
        """What an overdue gang waits for, in numbers."""
        if self.stage != PLACING:
            return f"{self.name} was still {self.stage} after {self.age:.0f} s; cluster.start_timeout gives it longer"
        free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
        largest = max(node_sizes(), key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        return (
            f"{self.name} found no place within {self.age:.0f} s: it needs {len(self.bundles)} ×"
            f" {_amounts(self.bundles[0])}, each on one node; the cluster's largest node has {_amounts(largest)}, and"
            f" {_amounts(free)} are free in all; use fewer ranks (parallel.ulysses, ring, cfg) or gangs"
            " (parallel.gangs)"
        )


def text_on(device: torch.device, text: Text) -> Text:
    """A text on another device, by itself: a view would travel with all that it is a view of."""
    away = None if text.unconditional is None else text.unconditional.to(device, copy=True)
    return replace(text, conditional=text.conditional.to(device, copy=True), unconditional=away)


def end_gangs(gangs: Sequence[Gang]) -> None:
    """Ends gangs side by side and waits until their processes are gone, no longer than `end_timeout`."""
    references = [reference for gang in gangs for reference in gang.kill()]
    if references:
        ray.wait(references, num_returns=len(references), timeout=max(gang.spec.end_timeout for gang in gangs))
    for gang in gangs:
        gang.free()


def bundles(spec: Spec, nodes: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """A gang's share of the cluster, in rank order: as few parts as its nodes allow, each to lie on one node.

    Where not even the smallest part fits a node, it is asked for all the same: a larger node may join.
    """
    for together in spec.together:
        bundle = {name: amount * together for name, amount in spec.need.items()}
        if any(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes):
            break
    return [bundle] * (spec.ranks // together)


def node_sizes() -> list[dict[str, float]]:
    """What the cluster's living nodes have in all, used or not."""
    return [
        {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]
    ]


@ray.remote(num_cpus=0, max_retries=0)
def end_processes(pids: Sequence[int], timeout: float) -> None:
    """Kills Ray's workers of this node, also stopped ones, and returns when they are gone or time is up."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and (living := [pid for pid in pids if _is_worker(pid)]):
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _is_worker(pid: int) -> bool:
    """Whether it lives, and is no other process that was given the number since. A zombie has no title."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith(TITLE)
    except OSError:
        return False


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"
