"""What becomes of clips and gangs when something fails: another try, a failure record, a fresh gang, the job's end."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray.exceptions import RayTaskError

from cluster.observability.logs import redact
from cluster.runtime.faults import Handling, cause_of, handling_of, is_out_of_memory, reason
from cluster.runtime.flight import Call, Flight, GangTimes
from cluster.runtime.gang import Gang
from numina.errors import ClipError, GangError, JobError
from numina.stage import Stage

if TYPE_CHECKING:
    from cluster.dataset.store import Store
    from cluster.job.tasks import ClipTask
    from cluster.observability.metrics import Metrics
    from cluster.observability.progress import JobProgress
    from cluster.runtime.fleet import Fleet
    from cluster.runtime.queues import Queues
    from cluster.runtime.rounds import Rounds
    from cluster.runtime.supply import Supply

HOPELESS = 20  # clips in a row that fail, none of them for its input, until the job is stopped
BROKEN, BROKEN_OF = 5, 100  # clips that came out broken, of the last so many that were finished, until it is stopped

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Recovery:
    """The driver's answer to errors."""

    queues: Queues
    fleet: Fleet
    times: GangTimes
    rounds: Rounds
    supply: Supply
    store: Store
    progress: JobProgress
    metrics: Metrics
    attempts: int  # tries of a clip at most: `cluster.attempts`
    failed_in_a_row: int = 0
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=BROKEN_OF))  # of clips: whether they were broken

    def handle(self, call: Call, error: Exception) -> None:
        """A call failed. Raises what no clip is blamed for."""
        flight, gang, handling = call.flight, call.gang, handling_of(error)
        if handling is Handling.STOP:
            raise cause_of(error) from error
        if flight is None:
            log.warning("rows could not be merged into a segment; they are read one by one: %s", reason(error))
            return
        raised = isinstance(error, RayTaskError)  # by this call: a lost process fails all its calls at once
        # Input is refused by every rank alike, before any collective. Any other error leaves several ranks out of step.
        alone = gang is not None and gang.spec.ranks == 1 and raised
        well = handling is Handling.REFUSED or (alone and (handling is Handling.GIVE_UP or is_out_of_memory(error)))
        if gang is not None and not well:
            self.lose(gang, flight if raised else None, error)
        elif flight in self.queues.flights:
            if flight.gang is not None:
                flight.gang.call("drop", flight.keys)
            self.note_lost([flight])
            self.fail(flight, error)

    def lose(self, gang: Gang, culprit: Flight | None, error: BaseException) -> None:
        """Hands back the batches of a lost gang, and has it replaced.

        Only one batch is blamed, the one whose call failed first or, where none is known, the one that was computed:
        the others were merely there. None is, where its node was to leave.
        """
        if gang.leaves_at is not None:
            log.warning("%s is gone: %s", gang.name, reason(error), extra={"gang": gang.name})
            self.let_go(gang)
            return
        log.warning("%s is lost and will be replaced: %s", gang.name, reason(error), extra={"gang": gang.name})
        aboard = self.queues.aboard(gang)
        if culprit not in aboard:
            culprit = next((flight for flight in aboard if flight.stage is not Stage.LAYOUT), None)
        self.note_lost(aboard)
        for flight in aboard:
            if flight is culprit:
                self.fail(flight, error)
            else:
                self.queues.forget(flight)
                self.queues.add(flight.tasks)
        self.queues.forget_calls(gang)
        self.times.lost(gang)
        self.fleet.replace(gang)

    def let_go(self, gang: Gang) -> None:
        """Ends a gang that has to go, and hands back its batches, if it has any. Nothing is blamed."""
        self.hand_back(self.queues.aboard(gang))
        self.queues.forget_calls(gang)
        self.times.lost(gang)
        self.fleet.release(gang)

    def hand_back(self, flights: Sequence[Flight]) -> None:
        """Puts batches back into the queue. What their gang hasn't begun it leaves out."""
        self.note_lost(flights)
        for flight in flights:
            log.warning("a batch is handed back in %s", flight.stage, extra={"key": " ".join(flight.keys)})
            if flight.gang is not None:
                flight.gang.call("skip", flight.keys)
            self.queues.forget(flight)
            self.queues.add(flight.tasks)

    def note_lost(self, flights: Iterable[Flight]) -> None:
        """Notes the time of ranks in batches that come to nothing, before they are forgotten."""
        computed = self.queues.at_work().values()
        for flight in flights:
            seconds = flight.rank_seconds + (self.times.since_began(flight) if flight in computed else 0.0)
            self.note_lost_time(flight.tasks, seconds)

    def note_lost_time(self, tasks: Iterable[ClipTask], seconds: float) -> None:
        """Notes what each of these clips took of its ranks in vain: its row or its failure record has it."""
        lost = self.queues.lost_seconds
        for task in tasks:
            lost[task.key] = lost.get(task.key, 0.0) + seconds

    def fail(self, flight: Flight, error: BaseException) -> None:
        """Hands a batch's clips back for another try; after the last one, or where no other try would end otherwise,
        they are recorded and the job goes on. While it stops, what made it stop may have taken the gang: no try is the
        last one."""
        self.queues.forget(flight)
        again = handling_of(error) is Handling.RETRY
        for task in flight.tasks:
            self.queues.failed_tries[task.key] += 1
            tries = self.queues.failed_tries[task.key]
            if again and (tries < self.attempts or self.progress.draining):
                log.warning("try %d failed in %s: %s", tries, flight.stage, reason(error), extra={"key": task.key})
                self.progress.retries += 1
                self.metrics.retried(type(cause_of(error)).__name__)
                self.queues.add([task])
            else:
                self.give_up(task, flight.stage, error)

    def committed(self) -> None:
        """A clip was finished, and its row is there."""
        self.failed_in_a_row = 0
        self.recent.append(False)

    def broken(self, task: ClipTask, error: ClipError) -> None:
        """Records a clip that came out broken: another try would come out alike, and its batch mates are fine.

        Raises JobError where so many of the last clips did that the settings, the weights or a GPU are at fault.
        """
        self.recent.append(True)
        self.give_up(task, error.stage, error)
        if sum(self.recent) >= BROKEN:
            raise JobError(
                f"{sum(self.recent)} of the last {len(self.recent)} clips came out broken, the last one with"
                f" {reason(error)}; the job stops here. Fix the cause, then run the same command with retry_failed=true"
            ) from error

    def give_up(self, task: ClipTask, stage: Stage, error: BaseException) -> None:
        """Records a clip as failed. Raises GangError where so many failed in a row that the job itself is at fault."""
        log.error("clip failed in %s, no attempt left: %s", stage, reason(error), extra={"key": task.key})
        record = {"prompt": task.row.prompt, "row": task.row.index, "stage": stage, "error": redact(reason(error))}
        tries = self.queues.failed_tries.pop(task.key, 1)
        spent = self.queues.lost_seconds.pop(task.key, 0.0)
        own = {"task_digest": task.chain_digest, "tries": tries, "rank_seconds": spent}
        self.store.fail(task.key, record | own)
        for waited in self.rounds.given_up(task):
            self.supply.finished(self.rounds.supplied(waited))
            self.progress.failed += 1
        self.metrics.failed(stage)
        self.failed_in_a_row += handling_of(error) is not Handling.REFUSED
        if self.failed_in_a_row >= HOPELESS:
            raise GangError(
                f"{HOPELESS} clips in a row failed, the last one with {reason(error)}; the job stops here. "
                "Fix the cause, then run the same command with retry_failed=true"
            ) from error
