"""The driver's loop: walks the prompts, keeps gangs busy, lays out between their phases, commits rows.

    supply ─► gang: identify ─► task: layout, refine, plan ─► gang: finish or guide ─► task: mp4 and commit
       ▲                                                                                        │ where it is verified
       └───────────────────────────── the next attempt ◄── no ── judge ◄────────────────────────┘

The driver holds no state that matters: storage is the source of truth, and the same command resumes the job. What waits
and what is under way is in `queues`, what becomes of failures in `recovery`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from ray import ObjectRef

from cluster.dataset.store import Store
from cluster.job.acceptance import Ruling
from cluster.job.judge import judge_config
from cluster.job.names import TaskNames
from cluster.job.prepared import PreparedJob
from cluster.job.tasks import ClipTask
from cluster.job.worklist import Worklist
from cluster.observability.metrics import Metrics
from cluster.observability.progress import JobProgress
from cluster.runtime.drain import Drain
from cluster.runtime.elastic import Elastic
from cluster.runtime.faults import CLUSTER_LOST, reason
from cluster.runtime.fleet import Fleet
from cluster.runtime.flight import Flight, GangTimes, now
from cluster.runtime.gang import GangState
from cluster.runtime.queues import Held, Queues
from cluster.runtime.recovery import Recovery
from cluster.runtime.rounds import Rounds
from cluster.runtime.supply import Supply
from cluster.workers.tasks import COMPACT_CPUS, LAYOUT_CPUS, WRITE_CPUS, Draft, Output, Receipt, compact, lay_out, write
from numina.errors import ClipError, GangError, InputError
from numina.stage import Stage

if TYPE_CHECKING:
    from numina.correct import Correction

PATIENCE = 1.0  # seconds between two looks at the gangs while nothing happens
COMPACT_EVERY = 1000  # rows of this driver between two compactions
COMPACT_AT_END = 100  # the least that is worth a segment when the job ends
JUDGED_AT_ONCE = 4  # clips that a judge is given in one call

log = logging.getLogger(__name__)


class Driver:
    """The event loop over one job's batches.

    `worklist` gives None while the prompt set is still looked at, meanwhile gangs start, and raises what is wrong with
    the set.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        store: Store,
        worklist: Callable[[], Worklist | None],
        progress: JobProgress,
        report: Callable[[JobProgress], None],
        *,
        fleet: Fleet | None = None,
        drain: Drain | None = None,
        metrics: Metrics | None = None,
    ):
        job = prepared.job
        self.prepared = prepared
        self.store = store
        self.progress = progress
        self.report = report
        self.fleet = fleet or Fleet(prepared)
        self.drain = drain or Drain(job.cluster.grace)
        self.metrics = metrics or Metrics(job.output)
        self.rounds = Rounds(TaskNames(prepared))
        self.times = GangTimes()
        self.queues = Queues(batch=job.parallel.batch, trials=len(prepared.trials))
        self._worklist: Callable[[], Worklist | None] | None = worklist  # until it gave one
        self.supply = Supply(None, store, ahead=self._ahead)
        self.recovery = Recovery(
            queues=self.queues,
            fleet=self.fleet,
            times=self.times,
            rounds=self.rounds,
            supply=self.supply,
            store=store,
            progress=progress,
            metrics=self.metrics,
            attempts=job.cluster.attempts,
        )
        self.elastic = Elastic(self.fleet, self.recovery, job.parallel)
        self.uncompacted: list[str] = []  # keys
        self.judged: list[str] = []  # keys of rows whose verdicts are in no segment yet
        self._judge = judge_config(job.verify.judge, job.judge).name if job.verifies else None
        self._stood = False  # whether any gang has stood
        self._done_before = 0  # videos done when the work began
        self._told = 0.0  # when the metrics' gauges were set last

    def run(self) -> None:
        """Generates and commits all tasks, or, once it is asked to stop, what is under way."""
        try:
            with self.supply:
                self.fleet.start()
                self._output = self.fleet.put(Output.of(self.prepared))
                while not self._is_over():
                    self._watch()
                    self._begin()
                    self._encode_ahead()
                    self._fill_gangs()
                    self._fill_judges()
                    if self.queues.held:
                        self.queues.start_held(self.fleet.cores_beside)
                    self._show()
                    waiting = self.queues.waiting
                    for reference in self.fleet.wait([*waiting, *self.fleet.waiting], PATIENCE):
                        if reference in self.queues.waiting:
                            self._handle(reference)
                        else:
                            self.fleet.handle(reference)
                self._show()
                if not self.progress.draining:
                    self.store.compact(self.uncompacted, at_least=COMPACT_AT_END)
                    if self._judge is not None:
                        self.store.compact_evaluations(self._judge, self.judged, at_least=COMPACT_AT_END)
        except CLUSTER_LOST as error:
            raise GangError(f"the Ray cluster is lost ({reason(error)}); the same command continues") from error
        finally:
            self.fleet.end()

    def _is_over(self) -> bool:
        if not self.drain.asked:
            return self.supply.over and self.queues.empty
        if not self.progress.draining:
            log.warning("%s: finishing clips in progress, within %.0f s", self.drain.signal, self.drain.grace)
            self.progress.draining = True
            self.supply.close()
            self.queues.close()
        return self.drain.over or not self.queues.flights

    def _begin(self) -> None:
        """Gives out tasks once the whole set was looked at."""
        worklist = self._worklist() if self._worklist is not None else None
        if worklist is None:
            return
        self._worklist, self._done_before = None, self.progress.done
        if self._stood:
            self.progress.began = time.monotonic()
        # Another driver at work goes through the prompts in another order.
        shuffle = int(self.store.owner[:8], 16) if self.store.others() else None
        self.supply.begin(worklist.tasks(shuffle=shuffle))

    def _watch(self) -> None:
        """Looks after what no reference tells: nodes that come and go, gangs that are silent, clips that take too
        long."""
        self.elastic.look(self._batches_left, grows=not self.progress.draining)
        self.supply.ahead = self._ahead
        for gang, error in self.fleet.watch():
            self.recovery.lose(gang, None, error)
        limit = self.prepared.job.cluster.clip_timeout
        for gang, flight in self.queues.at_work().items():
            if now() - self.times.began(flight) > limit:
                late = GangError(f"a batch was in {flight.stage} for more than cluster.clip_timeout={limit:g} s")
                self.recovery.lose(gang, flight, late)

    @property
    def _ahead(self) -> int:
        """Tasks that the gangs there are may soon take."""
        own = self.prepared.job
        in_flight = max(1, len(self.fleet.gangs)) * (own.cluster.clips_in_flight + 1) * own.parallel.batch
        return max(in_flight, self.queues.window)

    @property
    def _batches_left(self) -> int:
        """At most: a video has one clip at a time, and until all rows are looked at, none may be done."""
        known = self._worklist is None
        videos = self.progress.left if known else ceil(self.prepared.asked / self.prepared.job.part[1])
        return ceil(videos / self.prepared.job.parallel.batch)

    # --- where batches go ---

    def _encode_ahead(self) -> None:
        """Keeps encoded batches ready, so that no gang waits for a text; and no more than gangs take soon."""
        if not self.prepared.encodes_apart or self.progress.draining:
            return
        room = (self.prepared.job.cluster.clips_in_flight + 1) * len(self.fleet.gangs) - len(self.queues.encoded)
        ahead = sum(flight.stage is Stage.ENCODE for flight in self.queues.flights)
        while ahead < room and (encoder := self.queues.least_busy(self.fleet.encoders.values())):
            flight = self._next_flight()
            if flight is None:
                return
            self.queues.send(flight, encoder, Stage.ENCODE, "encode", flight.requests)
            ahead += 1

    def _fill_gangs(self) -> None:
        """Keeps `clips_in_flight` batches in every gang, so that none waits for a layout."""
        limit = self.prepared.job.cluster.clips_in_flight
        while not self.progress.draining and (gang := self.queues.least_busy(self.fleet.gangs.values(), limit)):
            if self.prepared.encodes_apart:
                flight = self.queues.encoded.popleft() if self.queues.encoded else None
            else:
                flight = self._next_flight()
            if flight is None:
                return
            method = self.prepared.method_of(flight.tasks[0])
            if method is None:
                self.queues.send(flight, gang, Stage.DENOISE, "plain", flight.requests, flight.texts)
            else:
                self.queues.send(flight, gang, Stage.IDENTIFY, "identify", flight.requests, method, flight.texts)

    def _fill_judges(self) -> None:
        """Keeps judges busy with committed clips that are to be verified."""
        limit = self.prepared.job.cluster.clips_in_flight
        while self.queues.unjudged and (judge := self.queues.least_busy(self.fleet.judges.values(), limit)):
            flight = Flight(self.queues.next_unjudged(JUDGED_AT_ONCE))
            self.queues.send(flight, judge, Stage.JUDGE, "rule", list(map(self.rounds.chain, flight.tasks)))

    def _next_flight(self) -> Flight | None:
        """The next tasks of one strategy; those that the supply has ready join the queue first."""
        queues = self.queues
        while (
            len(queues.pending) < queues.window and len(queues.unjudged) < self._ahead and (task := self.supply.next())
        ):
            self._enter(task)
        batch = queues.next_batch()
        return Flight(batch) if batch else None

    def _enter(self, task: ClipTask) -> None:
        """A task into its queue; one that is there and needs no judge is done. One that asks for no count is accepted
        as it is."""
        entered = self.rounds.enter(task)
        if entered is None:
            return
        if entered.there and not (entered.verified and entered.row.targets):
            self.progress.completed += 1
            self.progress.accepted += entered.verified
            self.supply.finished(self.rounds.supplied(entered))
        else:
            self.queues.add([entered])

    # --- from stage to stage ---

    def _handle(self, reference: ObjectRef) -> None:
        call = self.queues.waiting.pop(reference)
        try:
            answer = self.fleet.answer(reference)
        except Exception as error:
            self.recovery.handle(call, error)
            return
        if call.is_answer and call.flight is not None:
            self.times.ended(call.flight, call.gang)
            self._go_on(call.flight, answer)

    def _go_on(self, flight: Flight, answer: Any) -> None:
        """From a stage's end to the next one."""
        match flight.stage:
            case Stage.ENCODE:
                self.queues.keep_encoded(flight, flight.made, answer)
            case Stage.IDENTIFY:
                method = self.prepared.method_of(flight.tasks[0])
                layout = partial(self.fleet.beside, lay_out, LAYOUT_CPUS, flight.made, flight.tasks, method)
                self.queues.send_beside(flight, Stage.LAYOUT, layout)
            case Stage.LAYOUT:
                self._second_phase(flight, answer)
            case Stage.DENOISE | Stage.GUIDE:
                drafts = [self._draft(flight, task) for task in flight.tasks]
                rows = partial(self.fleet.beside, write, WRITE_CPUS, flight.made, drafts, self._output, now())
                self.queues.send_beside(flight, Stage.WRITE, rows)
            case Stage.WRITE:
                self.queues.flights.remove(flight)
                self._count(flight, answer)
            case Stage.JUDGE:
                self.queues.flights.remove(flight)
                for task, ruling in zip(flight.tasks, answer, strict=True):
                    self._rule(task, ruling)
            case _:
                raise AssertionError(f"no gang has a stage {flight.stage} of its own")

    def _second_phase(
        self, flight: Flight, answers: Sequence[tuple[Correction, float] | InputError | ClipError]
    ) -> None:
        """The clips whose counts were right go on, the others start again: the batch parts."""
        assert flight.gang is not None, "it holds the batch's state"
        self.queues.flights.remove(flight)
        right, wrong = (flight.part() for _ in range(2))
        for task, answer in zip(flight.tasks, answers, strict=True):
            if isinstance(answer, ClipError):
                flight.gang.call("drop", [task.key])  # all of its ranks hold the clip, and only one has looked
                self.recovery.note_lost_time([task], flight.rank_seconds)
                self.recovery.broken(task, answer)
                continue
            if isinstance(answer, InputError):
                self.recovery.note_lost_time([task], flight.rank_seconds)
                self.recovery.give_up(task, Stage.IDENTIFY, answer)
                continue
            part = right if answer[0].plan is None else wrong
            part.tasks.append(task)
            part.corrections[task.key] = answer
        if right.tasks:
            self.queues.send(right, flight.gang, Stage.DENOISE, "finish", right.keys)
        if wrong.tasks:
            plans = self.fleet.put([correction.plan for correction, _ in wrong.corrections.values()])
            self.queues.send(wrong, flight.gang, Stage.GUIDE, "guide", wrong.keys, plans)

    def _draft(self, flight: Flight, task: ClipTask) -> Draft:
        correction, layout_seconds = flight.corrections.get(task.key, (None, None))
        elsewhere = {Stage.ENCODE: flight.encode_seconds, Stage.LAYOUT: layout_seconds}
        return Draft(
            task=task,
            correction=correction,
            timings={stage: seconds for stage, seconds in elsewhere.items() if seconds is not None},
            spans=flight.spans,
            retries=self.queues.failed_tries[task.key],
            lost_seconds=self.queues.lost_seconds.get(task.key, 0.0),
        )

    def _count(self, flight: Flight, answers: Sequence[Receipt | InputError | ClipError]) -> None:
        """A batch was written: rows were committed, and clips that came out broken or can't be written weren't."""
        for task, receipt in zip(flight.tasks, answers, strict=True):
            if not isinstance(receipt, Receipt):
                self.recovery.note_lost_time([task], flight.rank_seconds)
            if isinstance(receipt, ClipError) and receipt.stage is not Stage.WRITE:
                self.recovery.broken(task, receipt)
                continue
            if not isinstance(receipt, Receipt):
                self.recovery.give_up(task, Stage.WRITE, receipt)
                continue
            self.recovery.committed()
            self.queues.failed_tries.pop(receipt.key, None)
            self.queues.lost_seconds.pop(receipt.key, None)
            self.uncompacted.append(receipt.key)
            self.progress.generated += 1
            self.progress.guided += bool(receipt.row["guided"])
            self.metrics.committed(receipt.row)
            for waited in self.rounds.committed(receipt.key):
                self._enter(waited)
        if len(self.uncompacted) >= COMPACT_EVERY:
            self._compact(self.uncompacted, None)
            self.uncompacted = []

    def _compact(self, keys: list[str], judge: str | None) -> None:
        """Has the commits of these rows, or a judge's verdicts on them, gathered beside all else."""
        start = partial(self.fleet.beside, compact, COMPACT_CPUS, keys, self._output, judge)
        self.queues.held.append(Held(None, start))

    def _rule(self, task: ClipTask, ruling: Ruling) -> None:
        """A verified sample was judged: it is settled, or its next attempt is due."""
        self.metrics.judged(ruling.decision.accepted)
        self.judged += self.rounds.chain(task).keys[task.attempt : ruling.attempt + 1]
        if len(self.judged) >= COMPACT_EVERY:
            self._compact(self.judged, self._judge)
            self.judged = []
        if following := self.rounds.next_attempt(task, ruling):
            self._enter(following)
            return
        self.progress.completed += 1
        self.progress.accepted += ruling.decision.accepted
        self.progress.rejected += not ruling.decision.accepted
        self.supply.finished(self.rounds.supplied(task))

    # --- what is shown ---

    def _show(self) -> None:
        progress, moment = self.progress, time.monotonic()
        progress.gangs = self.queues.states(self.fleet.all)
        progress.done = self._done_before + progress.completed + self.supply.elsewhere
        self.report(progress)
        if moment - self._told >= 1.0:
            self._told = moment
            self._tell_metrics()

    def _tell_metrics(self) -> None:
        standing = [gang.name for gang in self.fleet.all if gang.state is GangState.STANDING]
        if standing and not self._stood:
            self._stood, self.progress.began = True, time.monotonic()
        busy = self.times.busy_shares(standing)
        self.metrics.now(states=self.progress.gangs, busy=busy, queued=self.queues.sizes())
