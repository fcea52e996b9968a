"""The driver: walks the prompts, keeps gangs busy, lays out between their phases, commits rows.

    supply ─► gang: identify ─► task: layout, refine, plan ─► gang: finish or guide ─► task: mp4 and commit

Nothing here can't be lost: storage is the truth, and the same job started again goes on where it ended.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayTaskError

from cluster.drain import Drain
from cluster.faults import CLUSTER_LOST, Verdict, cause_of, judge, reason
from cluster.fleet import Fleet, reserved_cpus
from cluster.gang import STANDING, Gang
from cluster.logs import redact
from cluster.metrics import Metrics, endpoints
from cluster.plan import ClipTask, JobPlan, code_version, prepare, prompt_path
from cluster.progress import JobProgress
from cluster.stages import COMPACT_CPUS, LAYOUT_CPUS, WRITE_CPUS, Draft, Output, Receipt, Spans, compact, lay_out, write
from cluster.store import Committed, Store
from cluster.supply import Supply
from cluster.worklist import Worklist, open_worklist
from numina.errors import GangError, InputError
from pipelines.clip import Request

if TYPE_CHECKING:
    from numina.correct import Correction

__all__ = ["ClipTask", "Driver", "JobPlan", "JobProgress", "prepare", "prompt_path", "run_job"]

PATIENCE = 1.0  # seconds between two looks at the gangs while nothing happens
COMPACT_EVERY = 1000  # rows of this driver between two compactions
COMPACT_AT_END = 100  # the least that is worth a segment when the job ends
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
        worklist = _open(plan, store, progress, report)
        info = {"code_version": code_version(), "parallel": asdict(job.parallel), "memory": asdict(job.memory)}
        store.open_run(plan.identity(), asked=worklist.asked, info=info | {"shard": job.shard})
        progress.draining = drain.asked
        report(progress)
        if progress.left and not drain.asked:
            with ray_cluster(plan):
                drain.listen()  # Ray took SIGTERM
                Driver(plan, store, worklist, progress, report, drain=drain).run()
    return progress


def _open(plan: JobPlan, store: Store, progress: JobProgress, report: Callable[[JobProgress], None]) -> Worklist:
    """What is left to do. What storage says of the rest is forgotten again: it may be a million keys."""

    def checked(rows: int) -> None:
        progress.checked = rows
        report(progress)

    committed = store.committed_index()
    given_up = Committed(keys=frozenset(), tasks=frozenset()) if plan.job.retry_failed else store.given_up(committed)
    worklist = open_worklist(plan, committed, given_up, checked)
    progress.total, progress.done, progress.failed = worklist.total, worklist.done, worklist.failed
    return worklist


@contextmanager
def ray_cluster(plan: JobPlan) -> Iterator[None]:
    """Joins the job's Ray cluster; a local one is started for the job and ended with it."""
    address = plan.job.cluster.address
    options: dict[str, Any] = {}
    if address == "local":
        # One core more than the ranks take, at least: what runs beside them is short, and ranks sleep where they wait.
        cores = max(reserved_cpus(plan) + 1, len(os.sched_getaffinity(0)))
        options = {"num_cpus": cores, "include_dashboard": False}
        if plan.job.cluster.metrics_port:
            options["_metrics_export_port"] = plan.job.cluster.metrics_port
    ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
    log.info("metrics at %s", ", ".join(endpoints()))
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(eq=False)
class _Flight:
    """A batch of clips of one strategy on its way. Batches part where some counts were right."""

    tasks: list[ClipTask]
    gang: Gang | None = None  # or encoder: the one it was given to last
    stage: str = "identify"
    texts: ObjectRef | None = None  # where prompts are encoded apart
    encode_seconds: float | None = None  # of one clip
    made: ObjectRef | None = None  # what a gang made of it last
    corrections: dict[str, tuple[Correction, float]] = field(default_factory=dict)  # key → with its seconds
    spans: Spans = field(default_factory=list)
    since: float = 0.0  # when its stage was asked for, in seconds since the epoch

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
class _Call:
    """What a reference is waited for; a compaction where there is no flight."""

    flight: _Flight | None
    gang: Gang | None  # None: a task beside the gangs
    is_answer: bool = True


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
        self.pending: deque[ClipTask] = deque()  # taken from the supply, or handed back
        self.attempts: Counter[str] = Counter()  # key → tries that failed
        self.flights: list[_Flight] = []  # in the order of their gang's calls
        self.waiting: dict[ObjectRef, _Call] = {}
        self.uncompacted: list[str] = []  # keys
        self.failed_in_a_row = 0
        self.busy: defaultdict[str, float] = defaultdict(float)  # gang → seconds it computed
        self.free_since: dict[Gang, float] = {}  # when a gang's last call ended, in seconds since the epoch
        self.stood_since: dict[str, float] = {}  # gang → since when it has been standing
        self._stood = False  # whether any gang has stood
        self._done_before = progress.done
        self._told = 0.0  # when the metrics' gauges were set last
        cluster, parallel = plan.job.cluster, plan.job.parallel
        self._window = 1 + (parallel.batch - 1) * len(plan.job.all_strategies)
        in_flight = parallel.gangs * (cluster.clips_in_flight + 1) * parallel.batch
        # Another driver at work goes through the prompts in another order.
        shuffle = int(store.owner[:8], 16) if store.others() else None
        tasks = worklist.tasks(shuffle=shuffle)
        self.supply = Supply(tasks, store, ahead=max(in_flight, self._window))

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
            raise GangError(f"the Ray cluster is lost ({reason(error)}); the same command goes on") from error
        finally:
            self.fleet.end()

    def _is_over(self) -> bool:
        if not self.drain.asked:
            return self.supply.over and not self.pending and not self.flights
        if not self.progress.draining:
            self._begin_to_drain()
        return self.drain.over or not self.flights

    def _begin_to_drain(self) -> None:
        """From here on nothing new is begun."""
        log.warning("%s: what is under way is finished, within %.0f s", self.drain.signal, self.drain.grace)
        self.progress.draining = True
        self.supply.close()
        self.pending.clear()
        for flight in [flight for flight in self.flights if flight.stage in ("encode", "encoded")]:
            self._forget(flight)

    def _watch(self) -> None:
        """Looks after what no reference tells: gangs that are silent, clips that take too long."""
        for gang, error in self.fleet.watch():
            self._lose(gang, None, error)
        limit, now = self.plan.job.cluster.clip_timeout, time.time()
        for gang, flight in self._at_work().items():
            if now - self._began(flight) > limit:
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
            flight = _Flight(batch)
            self._make(flight, encoder, "encode", "encode", flight.requests)
            ahead += 1

    def _fill_gangs(self) -> None:
        """Keeps `clips_in_flight` batches in every gang, so that none waits for a layout."""
        limit = self.plan.job.cluster.clips_in_flight
        while not self.progress.draining and (gang := self._least_busy(self.fleet.gangs.values(), limit)):
            flight = self._next_flight()
            if flight is None:
                return
            method = self.plan.job.methods[flight.tasks[0].strategy]
            if method is None:
                self._make(flight, gang, "denoise", "plain", flight.requests, flight.texts)
            else:
                self._make(flight, gang, "identify", "identify", flight.requests, method, flight.texts)

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

    def _next_flight(self) -> _Flight | None:
        """A batch for a gang: one whose texts are there, where they are made apart."""
        if self.plan.encodes_apart:
            return next((flight for flight in self.flights if flight.stage == "encoded"), None)
        batch = self._next_batch()
        return _Flight(batch) if batch else None

    def _next_batch(self) -> list[ClipTask]:
        """The next tasks of one strategy, or none. What failed before goes alone, so that it can spoil nothing but
        itself."""
        while len(self.pending) < self._window and (task := self.supply.next()):
            self.pending.append(task)
        if not self.pending:
            return []
        first = self.pending.popleft()
        size = 1 if self.attempts.get(first.key) else self.plan.job.parallel.batch
        window = list(islice(self.pending, (size - 1) * len(self.plan.job.all_strategies)))
        alike = [task for task in window if task.strategy == first.strategy and not self.attempts.get(task.key)]
        batch = [first, *alike[: size - 1]]
        chosen = {task.key for task in batch}
        for _ in window:
            self.pending.popleft()
        self.pending.extendleft(reversed([task for task in window if task.key not in chosen]))
        return batch

    def _make(self, flight: _Flight, gang: Gang, stage: str, method: str, *arguments: Any) -> None:
        """Has a gang work on a batch, and waits for all its ranks, not for the one alone that answers."""
        if flight in self.flights:
            self.flights.remove(flight)
        self.flights.append(flight)
        flight.gang, flight.stage, flight.since = gang, stage, time.time()
        flight.made, receipts = gang.make(method, *arguments)
        for index, receipt in enumerate(receipts):
            self.waiting[receipt] = _Call(flight, gang, is_answer=index == 0)

    def _run_beside(self, flight: _Flight, stage: str, task: Any, cpus: float, *arguments: Any) -> None:
        """Has a task go on with a batch."""
        flight.stage, flight.since = stage, time.time()
        self.waiting[self.fleet.beside(task, cpus, flight.made, *arguments)] = _Call(flight, None)

    def _compact(self) -> None:
        """Has a task gather the rows that were committed since the last time."""
        keys, self.uncompacted = self.uncompacted, []
        self.waiting[self.fleet.beside(compact, COMPACT_CPUS, keys, self._output)] = _Call(None, None)

    def _at_work(self) -> dict[Gang, _Flight]:
        """What each gang computes: the first of its batches that isn't elsewhere."""
        first: dict[Gang, _Flight] = {}
        for flight in self.flights:
            if flight.gang is not None and flight.stage not in ("layout", "write"):
                first.setdefault(flight.gang, flight)
        return first

    def _began(self, flight: _Flight) -> float:
        """When a gang came to a batch's stage: once it was asked for, and what it was asked before was done."""
        return max(flight.since, self.free_since.get(flight.gang, 0.0) if flight.gang else 0.0)

    # --- what comes of it ---

    def _handle(self, reference: ObjectRef) -> None:
        call = self.waiting.pop(reference)
        try:
            answer = self.fleet.answer(reference)
        except Exception as error:
            self._handle_error(call, error)
            return
        if call.is_answer and call.flight is not None:
            self._note_span(call.flight, call.gang)
            self._go_on(call.flight, answer)

    def _note_span(self, flight: _Flight, gang: Gang | None) -> None:
        """A stage is done: when it began, how long it took, and that its gang was busy with it."""
        now, began = time.time(), self._began(flight) if gang else flight.since
        place = gang.name if gang else "cpu"
        flight.spans.append({"stage": flight.stage, "place": place, "began": began, "seconds": now - began})
        if gang is not None:
            self.free_since[gang] = now
            self.busy[gang.name] += now - began

    def _go_on(self, flight: _Flight, answer: Any) -> None:
        """From a stage's end to the next one."""
        if flight.stage == "encode":
            flight.stage, flight.gang = "encoded", None
            flight.texts, flight.encode_seconds = flight.made, answer
        elif flight.stage == "identify":
            method = self.plan.job.methods[flight.tasks[0].strategy]
            self._run_beside(flight, "layout", lay_out, LAYOUT_CPUS, flight.tasks, method)
        elif flight.stage == "layout":
            self._second_phase(flight, answer)
        elif flight.stage == "write":
            self.flights.remove(flight)
            self._count(answer)
        else:
            drafts = [self._draft(flight, task) for task in flight.tasks]
            self._run_beside(flight, "write", write, WRITE_CPUS, drafts, self._output, time.time())

    def _second_phase(self, flight: _Flight, answers: Sequence[tuple[Correction, float] | InputError]) -> None:
        """The clips whose counts were right go on, the others start again: the batch parts."""
        assert flight.gang is not None, "it holds the batch's state"
        self.flights.remove(flight)
        right, wrong = (_Flight([], encode_seconds=flight.encode_seconds, spans=[*flight.spans]) for _ in range(2))
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

    def _draft(self, flight: _Flight, task: ClipTask) -> Draft:
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
            self.supply.finished(receipt.key)
            self.attempts.pop(receipt.key, None)
            self.uncompacted.append(receipt.key)
            self.progress.generated += 1
            self.progress.guided += bool(receipt.row["guided"])
            self.metrics.committed(receipt.row)
        if len(self.uncompacted) >= COMPACT_EVERY:
            self._compact()

    # --- what goes wrong ---

    def _handle_error(self, call: _Call, error: Exception) -> None:
        """Raises what no clip is blamed for."""
        flight, gang, verdict = call.flight, call.gang, judge(error)
        if verdict is Verdict.STOP:
            raise cause_of(error) from error
        if flight is None:
            log.warning("rows could not be gathered into a segment, and are read one by one: %s", reason(error))
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

    def _lose(self, gang: Gang, culprit: _Flight | None, error: BaseException) -> None:
        """Hands back what a lost gang was at, and has it replaced.

        Only one batch is blamed, the one whose call failed first or, where none is known, the one that was computed:
        the others were merely there.
        """
        log.warning("%s is lost, and replaced: %s", gang.name, reason(error), extra={"gang": gang.name})
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
        self.free_since.pop(gang, None)
        self.busy.pop(gang.name, None)
        self.fleet.replace(gang)

    def _forget(self, flight: _Flight) -> None:
        self.flights.remove(flight)
        self.waiting = {reference: call for reference, call in self.waiting.items() if call.flight is not flight}

    def _fail(self, flight: _Flight, error: BaseException) -> None:
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

    def _hand_back(self, tasks: Sequence[ClipTask]) -> None:
        if not self.progress.draining:
            self.pending.extend(tasks)

    def _give_up(self, task: ClipTask, stage: str, error: BaseException) -> None:
        log.error("given up in %s: %s", stage, reason(error), extra={"key": task.key})
        record = {"prompt": task.row.prompt, "row": task.row.index, "stage": stage, "error": redact(reason(error))}
        self.store.fail(task.key, record | {"task_digest": task.digest, "tries": self.attempts.pop(task.key, 1)})
        self.supply.finished(task.key)
        self.progress.failed += 1
        self.metrics.failed(stage)
        self.failed_in_a_row += judge(error) is not Verdict.REFUSED
        if self.failed_in_a_row >= HOPELESS:
            raise GangError(
                f"{HOPELESS} clips in a row failed, the last one with {reason(error)}; the job stops here. "
                "Mend that, then give the same command with retry_failed=true"
            ) from error

    # --- what is shown ---

    def _show(self) -> None:
        progress, now = self.progress, time.time()
        stages: dict[Gang, list[str]] = {gang: [] for gang in self.fleet.all}
        for flight in self.flights:
            if flight.stage != "write" and flight.gang in stages:
                stages[flight.gang].append(flight.stage)
        progress.gangs = {
            gang.name: (" + ".join(doing) or "idle") if gang.stage == STANDING else gang.stage
            for gang, doing in stages.items()
        }
        progress.done = self._done_before + progress.generated + self.supply.elsewhere
        self.report(progress)
        if now - self._told >= 1.0:
            self._told = now
            self._tell_metrics(stages, now)

    def _tell_metrics(self, stages: Mapping[Gang, Sequence[str]], now: float) -> None:
        standing = [gang.name for gang in stages if gang.stage == STANDING]
        self.stood_since = {name: self.stood_since.get(name, now) for name in standing}
        if standing and not self._stood:
            self._stood, self.progress.began = True, time.monotonic()
        busy = {name: self.busy[name] / max(now - since, 1e-9) for name, since in self.stood_since.items()}
        queued = Counter(flight.stage for flight in self.flights)
        self.metrics.now(states=self.progress.gangs, busy=busy, queued=queued | {"pending": len(self.pending)})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out."""
    return isinstance(cause_of(error), torch.OutOfMemoryError)
