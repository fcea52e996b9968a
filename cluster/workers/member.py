"""What all processes of gangs have in common: how they arrive, load and show that they are alive."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist

from cluster.dataset.leases import process_started
from cluster.observability import logs
from cluster.workers.code import ROOT, code_digest
from pipelines.base import GenerationConfig, Text
from pipelines.checkpoints.hub import downloading, is_repository


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

    @property
    def fetches(self) -> bool:
        """Whether anything is a hub's, which a node may have to download."""
        return False

    @property
    def tests(self) -> bool:
        """Whether a preflight is a part of its start."""
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

    @property
    def fetches(self) -> bool:
        return is_repository(self.model_path)


@dataclass(frozen=True)
class Arrival:
    """Where a process is; and where its gang's ranks can meet, if it is the first one."""

    rank: int
    node: str  # Ray's id
    pid: int
    started: int | None  # `process_started` of it
    host: str
    port: int | None
    code: str  # `code_digest` of what it runs
    code_place: str  # and where that lies
    passed: bool = False  # whether a preflight of its gang has passed on this machine, or none is asked for


@dataclass(frozen=True)
class Running:
    """What a process works with, in words; and what would make it faster."""

    what: str = ""
    faster: tuple[str, ...] = ()


class Member(ABC):
    """One process of a gang."""

    def __init__(self, spec: Any, rank: int, gang: str):
        logs.set_up(spec.log_format, gang=gang)
        self.spec = spec
        self.rank = rank
        self.meeting: dist.TCPStore | None = None
        self.skipped: set[str] = set()  # keys of clips that are made elsewhere

    def arrive(self) -> Arrival:
        """The first sign of a process. Rank 0 holds the port from here on."""
        host, port = ray.util.get_node_ip_address(), None
        if self.rank == 0 and self.spec.ranks > 1:
            patience = timedelta(seconds=self.spec.start_timeout)
            self.meeting = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=patience)
            port = self.meeting.port
        pid, node = os.getpid(), ray.get_runtime_context().get_node_id()
        code = code_digest(), str(ROOT)
        return Arrival(self.rank, node, pid, process_started(pid), host, port, *code, self.passed())

    def passed(self) -> bool:
        """Whether no preflight is needed here."""
        return True

    def fetch(self) -> dict[str, float]:
        """Downloads what this node lacks of the weights; what it took, in seconds by name. No clock runs meanwhile."""
        began = time.perf_counter()
        self.download()
        return {"download": time.perf_counter() - began}

    @abstractmethod
    def download(self) -> None:
        """Has the files of hub ids here."""

    @abstractmethod
    def load(self, first: Arrival) -> dict[str, float]:
        """Makes ready for work; what it took, in seconds by name."""

    def warm_up(self) -> dict[str, float]:
        """The last thing before work; what it took, in seconds by name."""
        return {}

    def runs(self) -> Running:
        """What it works with, once it is ready."""
        return Running()

    def preflight(self, first: Arrival) -> dict[str, float]:
        """One small clip, unless the `first` process says that it has passed; what it took, in seconds by name."""
        return {}

    def drop(self, keys: Sequence[str]) -> None:
        """Forgets what it holds of these clips."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what is left after running out of memory is in pieces

    @ray.method(concurrency_group="pulse")
    def skip(self, keys: Sequence[str]) -> None:
        """Leaves out these clips where they aren't begun: somebody else makes them. Heard while others compute."""
        self.skipped |= set(keys)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> str:
        """What is downloaded, if anything is. Answered by a thread of its own while others compute: only a process that
        is stopped or gone is silent."""
        return downloading()


def text_on(device: torch.device, text: Text) -> Text:
    """A text on another device, by itself: a view would travel with all that it is a view of."""
    away = None if text.unconditional is None else text.unconditional.to(device, copy=True)
    return replace(text, conditional=text.conditional.to(device, copy=True), unconditional=away)
