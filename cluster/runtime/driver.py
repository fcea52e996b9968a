"""The driver: walks the prompts, keeps gangs busy, lays out between their phases, commits rows.

    supply ─► gang: identify ─► task: layout, refine, plan ─► gang: finish or guide ─► task: mp4 and commit
       ▲                                                                                        │ where it is verified
       └───────────────────────────── the next attempt ◄── no ── judge ◄────────────────────────┘

The driver holds no state that matters; storage is the source of truth. The same job, started again, continues.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from ray import ObjectRef
from ray.exceptions import RayTaskError

from cluster.dataset.store import Committed, Store
from cluster.job.judge import judge_config
from cluster.job.names import TaskNames
from cluster.job.plan import JobPlan, prepare, prompt_path
from cluster.job.strategy import strategy_record
from cluster.job.tasks import ClipTask
from cluster.job.worklist import Worklist, open_worklist
from cluster.observability.logs import redact
from cluster.observability.metrics import Metrics
from cluster.observability.progress import JobProgress
from cluster.runtime.drain import Drain
from cluster.runtime.faults import CLUSTER_LOST, Verdict, cause_of, is_out_of_memory, judge, reason
from cluster.runtime.fleet import Fleet, ray_cluster
from cluster.runtime.flight import Call, Flight, GangTimes, now
from cluster.runtime.gang import STANDING, Gang
from cluster.runtime.rounds import Rounds
from cluster.runtime.supply import Supply
from cluster.workers.judge import Ruling
from cluster.workers.row import code_version
from cluster.workers.tasks import COMPACT_CPUS, LAYOUT_CPUS, WRITE_CPUS, Draft, Output, Receipt, compact, lay_out, write
from numina.errors import GangError, InputError

if TYPE_CHECKING:
    from numina.correct import Correction

__all__ = ["ClipTask", "Driver", "JobPlan", "JobProgress", "prepare", "prompt_path", "run_job"]

PATIENCE = 1.0  # seconds between two looks at the gangs while nothing happens
COMPACT_EVERY = 1000  # rows of this driver between two compactions
COMPACT_AT_END = 100  # the least that is worth a segment when the job ends
JUDGED_AT_ONCE = 4  # clips that a judge is given in one call
HOPELESS = 20  # clips in a row that fail, none of them for its input, until the job is stopped

log = logging.getLogger(__name__)


def run_job(plan: JobPlan, report: Callable[[JobProgress], None] = lambda progress: None) -> JobProgress:
    """Runs or resumes a job; returns when every video is committed or recorded as failed, or when a signal stopped it.

    Raises OutputError when the output belongs to another job, GangError when no gang can stand, StorageError when the
    storage is full or lost.
    """
    job, progress = plan.job, JobProgress()
    store = Output.of(plan).store()
    with Drain(job.cluster.grace) as drain:
        try:
            worklist = _open(plan, store, progress, report, drain)
        except KeyboardInterrupt:  # a look at a million rows takes minutes
            progress.draining, progress.total = True, plan.asked
            return progress
        info: dict[str, Any] = {
            "code_version": code_version(),
            "parallel": asdict(job.parallel),
            "memory": asdict(job.memory),
        }
        info |= {"shard": job.shard, "strategies": list(map(strategy_record, job.all_strategies))}
        if job.verifies:
            info["verify"] = {"judge": judge_config(job.verify.judge, job.judge).name, "accept": job.verify.accept}
        store.open_run(plan.identity(), asked=worklist.asked, info=info)
        progress.draining = drain.asked
        report(progress)
        if progress.left and not drain.asked:
            with ray_cluster(plan):
                drain.listen()  # Ray took SIGTERM
                Driver(plan, store, worklist, progress, report, drain=drain).run()
    return progress


def _open(
    plan: JobPlan, store: Store, progress: JobProgress, report: Callable[[JobProgress], None], drain: Drain
) -> Worklist:
    """What is left to do. What storage says of the rest is forgotten again: it may be a million keys.

    Raises KeyboardInterrupt when it is asked to stop meanwhile.
    """

    def checked(rows: int) -> None:
        if drain.asked:
            raise KeyboardInterrupt
        progress.checked = rows
        report(progress)

    committed = store.committed_index()
    given_up = Committed(keys=frozenset(), tasks=frozenset()) if plan.job.retry_failed else store.given_up(committed)
    settled = frozenset[bytes]()
    if plan.job.verifies:
        verify = plan.job.verify
        judge_name = judge_config(verify.judge, plan.job.judge).name
        settled = store.settled(judge_name, verify.accept, verify.strengths, committed.keys)
    worklist = open_worklist(plan, committed, given_up, checked, settled)
    progress.total, progress.done, progress.failed = worklist.total, worklist.done, worklist.failed
    return worklist


class Driver:
    """The event loop over one job's batches."""

    def __init__(
        self,
        plan: JobPlan,
        store: Store,
        worklist: Worklist,
        progress: JobProgress,
        report: Callable[[JobProgress], None],
        *,
        fleet: Fleet | None = None,
        drain: Drain | None = None,
        metrics: Metrics | None = None,
    ):
        self.plan = plan
        self.store = store
        self.progress = progress
        self.report = report
        self.fleet = fleet or Fleet(plan)
        self.drain = drain or Drain(plan.job.cluster.grace)
        self.metrics = metrics or Metrics(plan.job.output)
        self.rounds = Rounds(TaskNames(plan))
        self.pending: deque[ClipTask] = deque()  # taken from the supply, or handed back
        self.unjudged: deque[ClipTask] = deque()  # of verified samples: committed, to be judged
        self.attempts: Counter[str] = Counter()  # key → tries that failed
        self.flights: list[Flight] = []  # in the order of their gang's calls
        self.waiting: dict[ObjectRef, Call] = {}
        self.uncompacted: list[str] = []  # keys
        self.failed_in_a_row = 0
        self.times = GangTimes()
        self._stood = False  # whether any gang has stood
        self._done_before = progress.done
        self._told = 0.0  # when the metrics' gauges were set last
        cluster, parallel = plan.job.cluster, plan.job.parallel
        self._window = 1 + (parallel.batch - 1) * len(plan.trials)
        in_flight = parallel.gangs * (cluster.clips_in_flight + 1) * parallel.batch
        # Another driver at work goes through the prompts in another order.
        shuffle = int(store.owner[:8], 16) if store.others() else None
        tasks = worklist.tasks(shuffle=shuffle)
        self._ahead = max(in_flight, self._window)
        self.supply = Supply(tasks, store, ahead=self._ahead)

    def run(self) -> None:
        """Generates and commits all tasks, or, once it is asked to stop, what is under way."""
        try:
            with self.supply:
                self.fleet.start()
                self._output = self.fleet.put(Output.of(self.plan))
                while not self._is_over():
                    self._watch()
                    self._encode_ahead()
                    self._fill_gangs()
                    self._fill_judges()
                    self._show()
                    ready = self.fleet.wait([*self.waiting, *self.fleet.waiting], PATIENCE)
                    for reference in ready:
                        if reference in self.waiting:
                            self._handle(reference)
                        else:
                            self.fleet.handle(reference)
                self._show()
                if not self.progress.draining:
                    self.store.compact(self.uncompacted, at_least=COMPACT_AT_END)
        except CLUSTER_LOST as error:
            raise GangError(f"the Ray cluster is lost ({reason(error)}); the same command continues") from error
        finally:
            self.fleet.end()

    def _is_over(self) -> bool:
        if not self.drain.asked:
            return self.supply.over and not self.pending and not self.unjudged and not self.flights
        if not self.progress.draining:
            self._begin_to_drain()
        return self.drain.over or not self.flights

    def _begin_to_drain(self) -> None:
        """From here on nothing new is begun."""
        log.warning("%s: finishing clips in progress, within %.0f s", self.drain.signal, self.drain.grace)
        self.progress.draining = True
        self.supply.close()
        self.pending.clear()
        self.unjudged.clear()
        for flight in [flight for flight in self.flights if flight.stage in ("encode", "encoded")]:
            self._forget(flight)

    def _watch(self) -> None:
        """Looks after what no reference tells: gangs that are silent, clips that take too long."""
        for gang, error in self.fleet.watch():
            self._lose(gang, None, error)
        limit = self.plan.job.cluster.clip_timeout
        for gang, flight in self._at_work().items():
            if now() - self.times.began(flight) > limit:
                late = GangError(f"a batch was in {flight.stage} for more than cluster.clip_timeout={limit:g} s")
                self._lose(gang, flight, late)

    # --- where batches go ---

    def _encode_ahead(self) -> None:
        """Keeps encoded batches ready, so that no gang waits for a text; and no more than gangs take soon."""
        if not self.plan.encodes_apart or self.progress.draining:
            return
        room = (self.plan.job.cluster.clips_in_flight + 1) * len(self.fleet.gangs)
        ahead = sum(flight.stage in ("encode", "encoded") for flight in self.flights)
        while ahead < room and (encoder := self._least_busy(self.fleet.encoders.values())):
            batch = self._next_batch()
            if not batch:
                return
            flight = Flight(batch)
            self._make(flight, encoder, "encode", "encode", flight.requests)
            ahead += 1

    def _fill_gangs(self) -> None:
        """Keeps `clips_in_flight` batches in every gang, so that none waits for a layout."""
        limit = self.plan.job.cluster.clips_in_flight
        while not self.progress.draining and (gang := self._least_busy(self.fleet.gangs.values(), limit)):
            flight = self._next_flight()
            if flight is None:
                return
            method = self.plan.method_of(flight.tasks[0])
            if method is None:
                self._make(flight, gang, "denoise", "plain", flight.requests, flight.texts)
            else:
                self._make(flight, gang, "identify", "identify", flight.requests, method, flight.texts)

    def _fill_judges(self) -> None:
        """Keeps judges busy with what was committed and is to be verified."""
        if self.progress.draining:
            return
        limit = self.plan.job.cluster.clips_in_flight
        while self.unjudged and (judging := self._least_busy(self.fleet.judges.values(), limit)):
            flight = Flight([self.unjudged.popleft() for _ in range(min(JUDGED_AT_ONCE, len(self.unjudged)))])
            self._make(flight, judging, "judge", "rule", list(map(self.rounds.chain, flight.tasks)))

    def _least_busy(self, gangs: Iterable[Gang], limit: int | None = None) -> Gang | None:
        """The standing gang with the fewest batches, below `limit`; frames that aren't written yet count against it
        too, or they would fill the object store."""
        aboard, unwritten = Counter[Gang](), Counter[Gang]()
        for flight in self.flights:
            if flight.gang is not None:
                (unwritten if flight.stage == "write" else aboard)[flight.gang] += 1
        free = [
            gang
            for gang in gangs
            if gang.stage == STANDING and (limit is None or (aboard[gang] < limit and unwritten[gang] <= limit))
        ]
        return min(free, key=lambda gang: aboard[gang], default=None)

    def _next_flight(self) -> Flight | None:
        """A batch for a gang: one whose texts are there, where they are made apart."""
        if self.plan.encodes_apart:
            return next((flight for flight in self.flights if flight.stage == "encoded"), None)
        batch = self._next_batch()
        return Flight(batch) if batch else None

    def _next_batch(self) -> list[ClipTask]:
        """The next tasks of one strategy, or none. What failed before goes alone, so that it can spoil nothing but
        itself."""
        while len(self.pending) < self._window and len(self.unjudged) < self._ahead and (task := self.supply.next()):
            self._enter(task)
        if not self.pending:
            return []
        first = self.pending.popleft()
        size = 1 if self.attempts.get(first.key) else self.plan.job.parallel.batch
        window = list(islice(self.pending, (size - 1) * len(self.plan.trials)))
        kind = first.strategy, first.strength
        alike = [task for task in window if (task.strategy, task.strength) == kind and not self.attempts.get(task.key)]
        batch = [first, *alike[: size - 1]]
        chosen = {task.key for task in batch}
        for _ in window:
            self.pending.popleft()
        self.pending.extendleft(reversed([task for task in window if task.key not in chosen]))
        return batch

    def _make(self, flight: Flight, gang: Gang, stage: str, method: str, *arguments: Any) -> None:
        """Has a gang work on a batch, and waits for all its ranks, not for the one alone that answers."""
        if flight in self.flights:
            self.flights.remove(flight)
        self.flights.append(flight)
        flight.gang, flight.stage, flight.since = gang, stage, now()
        flight.made, receipts = gang.make(method, *arguments)
        for index, receipt in enumerate(receipts):
            self.waiting[receipt] = Call(flight, gang, is_answer=index == 0)

    def _run_beside(self, flight: Flight, stage: str, task: Any, cpus: float, *arguments: Any) -> None:
        """Has a task go on with a batch."""
        flight.stage, flight.since = stage, now()
        self.waiting[self.fleet.beside(task, cpus, flight.made, *arguments)] = Call(flight, None)

    def _compact(self) -> None:
        """Has a task gather the rows that were committed since the last time."""
        keys, self.uncompacted = self.uncompacted, []
        self.waiting[self.fleet.beside(compact, COMPACT_CPUS, keys, self._output)] = Call(None, None)

    def _at_work(self) -> dict[Gang, Flight]:
        """What each gang computes: the first of its batches that isn't elsewhere."""
        first: dict[Gang, Flight] = {}
        for flight in self.flights:
            if flight.gang is not None and flight.stage not in ("layout", "write"):
                first.setdefault(flight.gang, flight)
        return first

    # --- what comes of it ---

    def _handle(self, reference: ObjectRef) -> None:
        call = self.waiting.pop(reference)
        try:
            answer = self.fleet.answer(reference)
        except Exception as error:
            self._handle_error(call, error)
            return
        if call.is_answer and call.flight is not None:
            self.times.ended(call.flight, call.gang)
            self._go_on(call.flight, answer)

    def _go_on(self, flight: Flight, answer: Any) -> None:
        """From a stage's end to the next one."""
        if flight.stage == "encode":
            flight.stage, flight.gang = "encoded", None
            flight.texts, flight.encode_seconds = flight.made, answer
        elif flight.stage == "identify":
            method = self.plan.method_of(flight.tasks[0])
            self._run_beside(flight, "layout", lay_out, LAYOUT_CPUS, flight.tasks, method)
        elif flight.stage == "layout":
            self._second_phase(flight, answer)
        elif flight.stage == "write":
            self.flights.remove(flight)
            self._count(answer)
        elif flight.stage == "judge":
            self.flights.remove(flight)
            for task, ruling in zip(flight.tasks, answer, strict=True):
                self._rule(task, ruling)
        else:
            drafts = [self._draft(flight, task) for task in flight.tasks]
            self._run_beside(flight, "write", write, WRITE_CPUS, drafts, self._output, now())

    def _second_phase(self, flight: Flight, answers: Sequence[tuple[Correction, float] | InputError]) -> None:
        """The clips whose counts were right go on, the others start again: the batch parts."""
        assert flight.gang is not None, "it holds the batch's state"
        self.flights.remove(flight)
        right, wrong = (Flight([], encode_seconds=flight.encode_seconds, spans=[*flight.spans]) for _ in range(2))
        for task, answer in zip(flight.tasks, answers, strict=True):
            if isinstance(answer, InputError):
                self._give_up(task, "identify", answer)
                continue
            part = right if answer[0].plan is None else wrong
            part.tasks.append(task)
            part.corrections[task.key] = answer
        if right.tasks:
            self._make(right, flight.gang, "finish", "finish", right.keys)
        if wrong.tasks:
            plans = self.fleet.put([correction.plan for correction, _ in wrong.corrections.values()])
            self._make(wrong, flight.gang, "guide", "guide", wrong.keys, plans)

    def _draft(self, flight: Flight, task: ClipTask) -> Draft:
        correction, layout_seconds = flight.corrections.get(task.key, (None, None))
        elsewhere = {"encode": flight.encode_seconds, "layout": layout_seconds}
        return Draft(
            task=task,
            correction=correction,
            timings={stage: seconds for stage, seconds in elsewhere.items() if seconds is not None},
            spans=flight.spans,
            retries=self.attempts[task.key],
        )

    def _count(self, receipts: Sequence[Receipt]) -> None:
        """Rows were committed."""
        self.failed_in_a_row = 0
        for receipt in receipts:
            self.attempts.pop(receipt.key, None)
            self.uncompacted.append(receipt.key)
            self.progress.generated += 1
            self.progress.guided += bool(receipt.row["guided"])
            self.metrics.committed(receipt.row)
            for waited in self.rounds.committed(receipt.key):
                self._enter(waited)
        if len(self.uncompacted) >= COMPACT_EVERY:
            self._compact()

    def _rule(self, task: ClipTask, ruling: Ruling) -> None:
        """A verified sample was judged: it is settled, or its next attempt is due."""
        self.metrics.judged(ruling.accepted)
        if following := self.rounds.next_attempt(task, ruling):
            self._enter(following)
            return
        self.progress.completed += 1
        self.progress.accepted += ruling.accepted
        self.progress.rejected += not ruling.accepted
        self.supply.finished(self.rounds.supplied(task))

    # --- what goes wrong ---

    def _handle_error(self, call: Call, error: Exception) -> None:
        """Raises what no clip is blamed for."""
        flight, gang, verdict = call.flight, call.gang, judge(error)
        if verdict is Verdict.STOP:
            raise cause_of(error) from error
        if flight is None:
            log.warning("rows could not be merged into a segment; they are read one by one: %s", reason(error))
            return
        raised = isinstance(error, RayTaskError)  # by this call: a lost process fails all its calls at once
        # Input is refused by every rank alike, before any collective. Any other error leaves several ranks out of step.
        alone = gang is not None and gang.spec.ranks == 1 and raised
        well = verdict is Verdict.REFUSED or (alone and (verdict is Verdict.GIVE_UP or is_out_of_memory(error)))
        if gang is not None and not well:
            self._lose(gang, flight if raised else None, error)
        elif flight in self.flights:
            if flight.gang is not None:
                flight.gang.call("drop", flight.keys)
            self._fail(flight, error)

    def _lose(self, gang: Gang, culprit: Flight | None, error: BaseException) -> None:
        """Hands back what a lost gang was at, and has it replaced.

        Only one batch is blamed, the one whose call failed first or, where none is known, the one that was computed:
        the others were merely there.
        """
        log.warning("%s is lost and will be replaced: %s", gang.name, reason(error), extra={"gang": gang.name})
        aboard = [flight for flight in self.flights if flight.gang is gang and flight.stage != "write"]
        if culprit not in aboard:
            culprit = next((flight for flight in aboard if flight.stage != "layout"), None)
        for flight in aboard:
            if flight is culprit:
                self._fail(flight, error)
            else:
                self._forget(flight)
                self._hand_back(flight.tasks)
        self.waiting = {reference: call for reference, call in self.waiting.items() if call.gang is not gang}
        self.times.lost(gang)
        self.fleet.replace(gang)

    def _forget(self, flight: Flight) -> None:
        self.flights.remove(flight)
        self.waiting = {reference: call for reference, call in self.waiting.items() if call.flight is not flight}

    def _fail(self, flight: Flight, error: BaseException) -> None:
        """Hands a batch's clips back for another try; after the last one, or where no other try would end otherwise,
        they are recorded and the job goes on."""
        self._forget(flight)
        again = judge(error) is Verdict.RETRY
        for task in flight.tasks:
            self.attempts[task.key] += 1
            if again and self.attempts[task.key] < self.plan.job.cluster.attempts:
                log.warning(
                    "try %d failed in %s: %s",
                    self.attempts[task.key],
                    flight.stage,
                    reason(error),
                    extra={"key": task.key},
                )
                self.progress.retries += 1
                self.metrics.retried(type(cause_of(error)).__name__)
                self._hand_back([task])
            else:
                self._give_up(task, flight.stage, error)

    def _enter(self, task: ClipTask) -> None:
        """A task into its queue; what is there and needs no judge is done."""
        entered = self.rounds.enter(task)
        if entered is None:
            return
        if entered.there and not entered.verified:
            self.progress.completed += 1
            self.supply.finished(entered.key)
        else:
            self._hand_back([entered])

    def _hand_back(self, tasks: Sequence[ClipTask]) -> None:
        if not self.progress.draining:
            for task in tasks:
                (self.unjudged if task.there else self.pending).append(task)

    def _give_up(self, task: ClipTask, stage: str, error: BaseException) -> None:
        log.error("clip failed in %s, no attempt left: %s", stage, reason(error), extra={"key": task.key})
        record = {"prompt": task.row.prompt, "row": task.row.index, "stage": stage, "error": redact(reason(error))}
        tries = self.attempts.pop(task.key, 1)
        self.store.fail(task.key, record | {"task_digest": task.chain_digest, "tries": tries})
        for waited in self.rounds.given_up(task):
            self.supply.finished(self.rounds.supplied(waited))
            self.progress.failed += 1
        self.metrics.failed(stage)
        self.failed_in_a_row += judge(error) is not Verdict.REFUSED
        if self.failed_in_a_row >= HOPELESS:
            raise GangError(
                f"{HOPELESS} clips in a row failed, the last one with {reason(error)}; the job stops here. "
                "Fix the cause, then run the same command with retry_failed=true"
            ) from error

    # --- what is shown ---

    def _show(self) -> None:
        progress, moment = self.progress, time.monotonic()
        stages: dict[Gang, list[str]] = {gang: [] for gang in self.fleet.all}
        for flight in self.flights:
            if flight.stage != "write" and flight.gang in stages:
                stages[flight.gang].append(flight.stage)
        progress.gangs = {
            gang.name: (" + ".join(doing) or "idle") if gang.stage == STANDING else gang.stage
            for gang, doing in stages.items()
        }
        progress.done = self._done_before + progress.completed + self.supply.elsewhere
        self.report(progress)
        if moment - self._told >= 1.0:
            self._told = moment
            self._tell_metrics()

    def _tell_metrics(self) -> None:
        standing = [gang.name for gang in self.fleet.all if gang.stage == STANDING]
        if standing and not self._stood:
            self._stood, self.progress.began = True, time.monotonic()
        queued = Counter(flight.stage for flight in self.flights) | Counter(pending=len(self.pending))
        self.metrics.now(states=self.progress.gangs, busy=self.times.busy_shares(standing), queued=queued)
