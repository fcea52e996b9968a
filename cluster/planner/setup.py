"""One way to run a job on a cluster: what the planner chooses."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from cluster.job.config import JobConfig
from pipelines.parallel.config import Place
from pipelines.parallel.support import Sharding

SETTINGS = {  # what the planner chooses, by its name in a job
    "cfg": "parallel.cfg",
    "ulysses": "parallel.ulysses",
    "ring": "parallel.ring",
    "gangs": "parallel.gangs",
    "batch": "parallel.batch",
    "compile": "parallel.compile",
    "shard": "memory.shard",
    "text_encoder": "memory.text_encoder",
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Degrees, gangs and places of the weights; fields as in ParallelConfig and MemoryConfig."""

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    gangs: int = 1
    batch: int = 1
    compile: bool = False
    shard: Sharding = "none"
    text_encoder: Place = "gang"
    nodes: int = 1  # that one gang spans

    @property
    def sequence_ranks(self) -> int:
        """Ranks that share one branch's tokens."""
        return self.ulysses * self.ring

    @property
    def ranks(self) -> int:
        """Ranks of one gang."""
        return self.cfg * self.sequence_ranks

    @property
    def settings(self) -> dict[str, Any]:
        """By the keys of `SETTINGS`."""
        return {key: getattr(self, key) for key in SETTINGS}

    def unlike(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Its own values where they aren't the given ones."""
        return {key: getattr(self, key) for key, value in settings.items() if getattr(self, key) != value}

    def overrides(self, job: JobConfig) -> str:
        """What to add to the job's command."""
        return as_overrides(self.unlike(settings_of(job)))


def settings_of(job: JobConfig) -> dict[str, Any]:
    """The job's own values of what the planner chooses."""
    sections = {"parallel": job.parallel, "memory": job.memory}
    own = {key: getattr(sections[name.split(".")[0]], key) for key, name in SETTINGS.items()}
    return own | {"gangs": job.parallel.gangs_at_least}


def as_overrides(settings: Mapping[str, Any]) -> str:
    """As a command line takes them."""
    return " ".join(f"{SETTINGS[key]}={str(value).lower()}" for key, value in settings.items())


def splits(gpus: int, heads: int, tokens: int) -> Iterator[Setup]:
    """All splits of a clip over at most so many ranks; those of a ring hold the same number of tokens."""
    for cfg, ulysses in product((1, 2), (n for n in range(1, heads + 1) if heads % n == 0)):
        for ring in range(1, min(gpus // (cfg * ulysses), tokens) + 1):
            if ring == 1 or tokens % (ulysses * ring) == 0:
                yield Setup(cfg=cfg, ulysses=ulysses, ring=ring)
