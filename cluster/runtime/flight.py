"""What is under way: batches of clips, the calls they are waited for, and what each gang did with its time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray import ObjectRef

from cluster.job.tasks import ClipTask
from cluster.runtime.gang import Gang
from cluster.workers.tasks import Spans
from numina.stage import Stage
from pipelines.sampling.clip import Request

if TYPE_CHECKING:
    from numina.correct import Correction


_EPOCH = time.time() - time.monotonic()


def now() -> float:
    """The driver's clock: seconds since the epoch as they were counted when it started. Nobody sets it meanwhile."""
    return _EPOCH + time.monotonic()


_FOLLOWING = {Stage.IDENTIFY: (Stage.LAYOUT, Stage.GUIDE), Stage.LAYOUT: (Stage.GUIDE,)}  # at most

_BY_RANKS = (Stage.IDENTIFY, Stage.GUIDE, Stage.DENOISE)  # stages that a gang's ranks compute


@dataclass(eq=False)
class Flight:
    """A batch of clips of one strategy on its way. Batches part where some counts were right."""

    tasks: list[ClipTask]
    gang: Gang | None = None  # or encoder: the one it was given to last
    stage: Stage = Stage.IDENTIFY
    texts: ObjectRef | None = None  # where prompts are encoded apart
    encode_seconds: float | None = None  # of one clip
    made: ObjectRef | None = None  # what a gang made of it last
    corrections: dict[str, tuple[Correction, float]] = field(default_factory=dict)  # key → with its seconds
    spans: Spans = field(default_factory=list)
    rank_seconds: float = 0.0  # that ranks have computed so far, for each clip
    since: float = 0.0  # when its stage was asked for, in seconds since the epoch

    def part(self) -> Flight:
        """A batch for some of its clips, with its past."""
        return Flight([], encode_seconds=self.encode_seconds, rank_seconds=self.rank_seconds, spans=[*self.spans])

    @property
    def keys(self) -> list[str]:
        return [task.key for task in self.tasks]

    @property
    def requests(self) -> list[Request]:
        return [
            Request(task.key, task.row.prompt, task.row.negative_prompt, task.seed, tuple(task.row.targets))
            for task in self.tasks
        ]


@dataclass(frozen=True, eq=False)
class Call:
    """What a reference is waited for; a compaction where there is no flight."""

    flight: Flight | None
    gang: Gang | None  # None: a task beside the gangs
    is_answer: bool = True


class GangTimes:
    """When each gang computed, by the driver's clock: a gang does its calls one after the other."""

    def __init__(self) -> None:
        self._free_since: dict[Gang, float] = {}  # when its last call ended, in seconds since the epoch
        self._standing_since: dict[str, float] = {}
        self._busy: defaultdict[str, float] = defaultdict(float)  # seconds since then
        self._took: defaultdict[Stage, list[float]] = defaultdict(lambda: [0.0, 0.0])  # of batches: seconds, how many

    def began(self, flight: Flight) -> float:
        """When a batch's stage began: once it was asked for, and what its gang was asked before was done."""
        return max(flight.since, self._free_since.get(flight.gang, 0.0) if flight.gang else 0.0)

    def ended(self, flight: Flight, gang: Gang | None) -> None:
        """Notes the end of a batch's stage, at a gang or beside them, in its spans."""
        end, began = now(), self.began(flight) if gang else flight.since
        place = gang.name if gang else "cpu"
        self._took[flight.stage] = [self._took[flight.stage][0] + end - began, self._took[flight.stage][1] + 1]
        flight.spans.append({"stage": flight.stage, "place": place, "began": began, "seconds": end - began})
        flight.rank_seconds += _each(flight, end - began, gang)
        if gang is not None:
            self._free_since[gang] = end
            self._busy[gang.name] += end - began

    def expected(self, flight: Flight) -> float:
        """Seconds that a batch still needs of its gang, and of the layout in between, by the means so far; 0 for what
        was never seen. What its gang does before isn't counted."""
        spent = max(0.0, now() - self.began(flight)) if flight.since else 0.0
        return max(0.0, self._mean(flight.stage) - spent) + sum(map(self._mean, _FOLLOWING.get(flight.stage, ())))

    def since_began(self, flight: Flight) -> float:
        """Seconds of ranks, for each clip of a batch, since its gang began to compute its stage."""
        return _each(flight, now() - self.began(flight), flight.gang)

    def _mean(self, stage: Stage) -> float:
        seconds, batches = self._took[stage]
        return seconds / batches if batches else 0.0

    def lost(self, gang: Gang) -> None:
        """Forgets a gang."""
        self._free_since.pop(gang, None)
        self._busy.pop(gang.name, None)

    def busy_shares(self, standing: Iterable[str]) -> dict[str, float]:
        """The share of its time, 0 to 1, that each of the standing gangs has computed since it stood."""
        moment = now()
        self._standing_since = {name: self._standing_since.get(name, moment) for name in standing}
        return {name: self._busy[name] / max(moment - since, 1e-9) for name, since in self._standing_since.items()}


def _each(flight: Flight, seconds: float, gang: Gang | None) -> float:
    """What so many seconds of a stage are of ranks, for each clip of a batch."""
    ranks = gang.spec.ranks if gang is not None and flight.stage in _BY_RANKS else 0
    return seconds * ranks / max(1, len(flight.tasks))
