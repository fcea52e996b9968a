"""Which clips wait for what, and which are under way where.

    pending ─► (encoded) ─► flights: at a gang, or with a task beside the gangs ─► unjudged ─► flights: at a judge

Nothing here decides what comes next, and nothing here fails: see `driver` and `recovery`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ray import ObjectRef

from cluster.runtime.flight import Call, Flight, now
from cluster.runtime.gang import Gang, GangState
from numina.stage import BESIDE_GANGS, Stage

if TYPE_CHECKING:
    from cluster.job.tasks import ClipTask


@dataclass(frozen=True, eq=False)
class Held:
    """A task beside the gangs that waits for a core; a compaction where there is no flight."""

    flight: Flight | None
    start: Callable[[], ObjectRef]


class Queues:
    """The clips that a driver has begun, or may begin, and the references that it waits for."""

    def __init__(self, *, batch: int, trials: int) -> None:
        self.pending: deque[ClipTask] = deque()  # taken from the supply, or handed back
        self.encoded: deque[Flight] = deque()  # whose texts are there, where they are made apart: for any gang
        self.unjudged: deque[ClipTask] = deque()  # of verified samples: committed, to be judged
        self.flights: list[Flight] = []  # under way, in the order of their gang's calls
        self.waiting: dict[ObjectRef, Call] = {}
        self.held: list[Held] = []
        self.failed_tries: Counter[str] = Counter()  # key → tries that failed
        self.lost_seconds: dict[str, float] = {}  # key → seconds of ranks that tries took in vain
        self._batch = batch
        self._trials = trials  # tasks of one row and sample, neighbours in the supply
        self._closed = False

    @property
    def window(self) -> int:
        """How many pending tasks a full batch of one strategy is chosen from."""
        return 1 + (self._batch - 1) * self._trials

    @property
    def empty(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not (self.pending or self.encoded or self.unjudged or self.flights)

    def close(self) -> None:
        """Forgets what no gang has begun; from here on nothing is added."""
        self._closed = True
        for queue in (self.pending, self.encoded, self.unjudged):
            queue.clear()
        for flight in [flight for flight in self.flights if flight.stage is Stage.ENCODE]:
            self.forget(flight)

    def add(self, tasks: Iterable[ClipTask]) -> None:
        """Tasks to the end of their queue."""
        if not self._closed:
            for task in tasks:
                (self.unjudged if task.there else self.pending).append(task)

    def next_batch(self) -> list[ClipTask]:
        """The next pending tasks of one strategy, all with counts or all without, or none. A task that failed before
        goes alone, so that it can spoil nothing but itself."""
        if not self.pending:
            return []
        first = self.pending.popleft()
        size = 1 if self.failed_tries.get(first.key) else self._batch
        window = list(islice(self.pending, (size - 1) * self._trials))
        alike = [task for task in window if _kind(task) == _kind(first) and not self.failed_tries.get(task.key)]
        batch = [first, *alike[: size - 1]]
        chosen = {task.key for task in batch}
        for _ in window:
            self.pending.popleft()
        self.pending.extendleft(reversed([task for task in window if task.key not in chosen]))
        return batch

    def next_unjudged(self, most: int) -> list[ClipTask]:
        """The next committed clips for a judge."""
        return [self.unjudged.popleft() for _ in range(min(most, len(self.unjudged)))]

    def send(self, flight: Flight, gang: Gang, stage: Stage, method: str, *arguments: Any) -> None:
        """Has a gang work on a batch, and waits for all its ranks, not for the one alone that answers."""
        if flight in self.flights:
            self.flights.remove(flight)
        self.flights.append(flight)
        flight.gang, flight.stage, flight.since = gang, stage, now()
        flight.made, receipts = gang.make(method, *arguments)
        for index, receipt in enumerate(receipts):
            self.waiting[receipt] = Call(flight, gang, is_answer=index == 0)

    def send_beside(self, flight: Flight, stage: Stage, start: Callable[[], ObjectRef]) -> None:
        """A task beside the gangs goes on with a batch, once there is a core for it."""
        flight.stage, flight.since = stage, now()
        self.held.append(Held(flight, start))

    def start_held(self, cores: int | None) -> None:
        """Starts tasks beside the gangs, no more than one per core, layouts first: gangs wait for them. None: all.

        What has no core waits here and not in Ray, whose autoscaler would start a node for it.
        """
        free = len(self.held) if cores is None else cores - sum(call.gang is None for call in self.waiting.values())
        order = sorted(self.held, key=lambda held: held.flight is None or held.flight.stage is not Stage.LAYOUT)
        for held in order[: max(0, free)]:
            self.held.remove(held)
            self.waiting[held.start()] = Call(held.flight, None)

    def keep_encoded(self, flight: Flight, texts: ObjectRef | None, seconds: float) -> None:
        """A batch whose texts are there waits for a gang."""
        self.flights.remove(flight)
        flight.gang, flight.texts, flight.encode_seconds = None, texts, seconds
        self.encoded.append(flight)

    def forget(self, flight: Flight) -> None:
        """A batch is under way no longer, and none of its calls is waited for."""
        self.flights.remove(flight)
        self.waiting = {reference: call for reference, call in self.waiting.items() if call.flight is not flight}
        self.held = [held for held in self.held if held.flight is not flight]

    def forget_calls(self, gang: Gang) -> None:
        """No call of a gang is waited for."""
        self.waiting = {reference: call for reference, call in self.waiting.items() if call.gang is not gang}

    def aboard(self, gang: Gang) -> list[Flight]:
        """The batches that would be lost with a gang: not those whose frames have left it."""
        return [flight for flight in self.flights if flight.gang is gang and flight.stage is not Stage.WRITE]

    def at_work(self) -> dict[Gang, Flight]:
        """What each gang computes: the first of its batches that isn't elsewhere."""
        first: dict[Gang, Flight] = {}
        for flight in self.flights:
            if flight.gang is not None and flight.stage not in BESIDE_GANGS:
                first.setdefault(flight.gang, flight)
        return first

    def least_busy(self, gangs: Iterable[Gang], limit: int | None = None) -> Gang | None:
        """The standing gang with the fewest batches, below `limit`; frames that aren't written yet count against it
        too, or they would fill the object store."""
        aboard, unwritten = Counter[Gang](), Counter[Gang]()
        for flight in self.flights:
            if flight.gang is not None:
                (unwritten if flight.stage is Stage.WRITE else aboard)[flight.gang] += 1
        free = [
            gang
            for gang in gangs
            if gang.state is GangState.STANDING
            and gang.leaves_at is None
            and (limit is None or (aboard[gang] < limit and unwritten[gang] <= limit))
        ]
        return min(free, key=lambda gang: aboard[gang], default=None)

    def states(self, gangs: Sequence[Gang]) -> dict[str, str]:
        """What each gang does, by its name: the stages of its batches, or its own state while it doesn't stand."""
        stages: dict[Gang, list[str]] = {gang: [] for gang in gangs}
        for flight in self.flights:
            if flight.stage is not Stage.WRITE and flight.gang in stages:
                stages[flight.gang].append(flight.stage)
        return {
            gang.name: (" + ".join(doing) or ("idle" if gang.leaves_at is None else "leaving"))
            if gang.state is GangState.STANDING
            else gang.doing
            for gang, doing in stages.items()
        }

    def sizes(self) -> Counter[str]:
        """Batches under way by their stage; encoded batches and pending tasks that wait."""
        waiting = {"encoded": len(self.encoded), "pending": len(self.pending)}
        return Counter[str](flight.stage for flight in self.flights) + Counter(waiting)


def _kind(task: ClipTask) -> tuple[str, float, bool]:
    """Clips of one kind can share a batch: those that ask for counts are guided, the others are plain."""
    return task.strategy, task.strength, bool(task.row.targets)
