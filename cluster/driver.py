"""The driver: walks the prompts, keeps gangs busy, lays out between their phases, commits rows.

    pending ─► gang: identify ─► Ray task: layout, refine, plan ─► gang: finish or guide ─► Ray task: mp4 ─► commit

Nothing here can't be lost: storage is the truth, and the same job started again goes on where it ended.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster.fleet import Fleet, is_input_error, reason
from cluster.gang import STANDING, Gang
from cluster.plan import ClipTask, JobPlan, code_version, layout_arrays, prepare, prompt_path
from cluster.progress import JobProgress
from cluster.promptset import extra_columns
from cluster.store import Store
from numina.errors import InputError
from pipelines.base import GenerationConfig
from pipelines.clip import Clip, Identified, Request

if TYPE_CHECKING:
    from numina.config import MethodConfig
    from numina.correct import Correction

__all__ = ["ClipTask", "Driver", "JobPlan", "JobProgress", "prepare", "prompt_path", "run_job"]

LAYOUT_CPUS = 0.5  # a layout task is short; two of them share a core
WRITE_CPUS = 1.0
PATIENCE = 1.0  # seconds between two looks at the gangs while nothing happens

log = logging.getLogger(__name__)


def run_job(plan: JobPlan, report: Callable[[JobProgress], None] = lambda progress: None) -> JobProgress:
    """Runs or resumes a job; returns when every video is committed or recorded as failed.

    Raises OutputError when the output belongs to another job, GangError when no gang can stand, StorageError when the
    storage is full or lost.
    """
    job = plan.job
    store = Store(job.output, single_writer=job.single_writer, extra_columns=extra_columns(prompt_path(job.prompts)))
    tasks = list(plan.tasks())
    info = {"code_version": code_version(), "parallel": asdict(job.parallel), "memory": asdict(job.memory)}
    store.open_run(plan.identity(), asked=len(tasks), info=info)
    committed = store.committed()
    given_up = set() if job.retry_failed else {key for key in store.failures() if key not in committed}
    pending = [task for task in tasks if task.key not in committed and task.key not in given_up]
    progress = JobProgress(
        total=len(tasks),
        done=sum(task.key in committed for task in tasks),
        failed=sum(task.key in given_up for task in tasks),
    )
    report(progress)
    if pending:
        with ray_cluster(plan):
            Driver(plan, store, progress, report).run(pending)
    return progress


@contextmanager
def ray_cluster(plan: JobPlan) -> Iterator[None]:
    """Joins the job's Ray cluster; a local one is started for the job and ended with it."""
    address = plan.job.cluster.address
    options: dict[str, Any] = {}
    if address == "local":
        # One core more than the ranks take, at least: what runs beside them is short, and ranks sleep where they wait.
        cores = max(reserved_cpus(plan) + 1, os.cpu_count() or 1)
        options = {"num_cpus": cores, "include_dashboard": False}
    ray.init(address=address, log_to_driver=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


def reserved_cpus(plan: JobPlan) -> int:
    """CPU cores that gangs and encoders take."""
    cluster, parallel = plan.job.cluster, plan.job.parallel
    encoders = cluster.encoders * cluster.encoder_cpus if plan.encodes_apart else 0
    return parallel.gangs * parallel.ranks * cluster.cpus_per_rank + encoders


# --- tasks beside the gangs, on any CPU of the cluster ---


@ray.remote
def lay_out(
    identified: Sequence[Identified | InputError], tasks: Sequence[ClipTask], method: MethodConfig
) -> list[tuple[Correction, float] | InputError]:
    """Layout, refinement and plan of a batch's clips; and the seconds each took."""
    from numina.correct import correct  # scikit-learn takes a second to import, and only layout tasks need it

    answers: list[tuple[Correction, float] | InputError] = []
    for seen, task in zip(identified, tasks, strict=True):
        if isinstance(seen, InputError):
            answers.append(seen)
            continue
        began = time.perf_counter()
        correction = correct(seen.capture, task.row.targets, seen.spans, method)
        answers.append((correction, time.perf_counter() - began))
    return answers


@ray.remote
def write(clips: Sequence[Clip], generation: GenerationConfig) -> list[Clip]:
    """The clips' mp4s. Frames come here from the gang's node, and go no farther."""
    from pipelines.video import write_clips  # PyAV, in tasks only

    return write_clips(clips, generation, keep_frames=False)


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
    """What a reference is waited for."""

    flight: _Flight
    gang: Gang | None  # None: a task beside the gangs
    is_answer: bool = True


class Driver:
    """The event loop over one job's batches."""

    def __init__(self, plan: JobPlan, store: Store, progress: JobProgress, report: Callable[[JobProgress], None]):
        self.plan = plan
        self.store = store
        self.progress = progress
        self.report = report
        self.fleet = Fleet(plan)
        self.pending: deque[ClipTask] = deque()
        self.attempts: Counter[str] = Counter()  # key → tries that failed
        self.flights: list[_Flight] = []  # in the order of their gang's calls
        self.waiting: dict[ObjectRef, _Call] = {}

    def run(self, tasks: Sequence[ClipTask]) -> None:
        """Generates and commits all tasks."""
        self.pending.extend(tasks)
        try:
            self.fleet.start()
            while self.pending or self.flights:
                for gang, error in self.fleet.watch():
                    self._lose(gang, None, error)
                self._encode_ahead()
                self._fill_gangs()
                self._show()
                ready, _ = ray.wait([*self.waiting, *self.fleet.waiting], num_returns=1, timeout=PATIENCE)
                for reference in ready:
                    if reference in self.waiting:
                        self._handle(reference)
                    else:
                        self.fleet.handle(reference)
        finally:
            self.fleet.end()

    # --- where batches go ---

    def _encode_ahead(self) -> None:
        """Keeps encoded batches ready, so that no gang waits for a text; and no more than gangs take soon."""
        if not self.plan.encodes_apart:
            return
        room = (self.plan.job.cluster.clips_in_flight + 1) * len(self.fleet.gangs)
        ahead = sum(flight.stage in ("encode", "encoded") for flight in self.flights)
        while self.pending and ahead < room and (encoder := self._least_busy(self.fleet.encoders.values())):
            flight = _Flight(self._next_batch())
            self._make(flight, encoder, "encode", "encode", flight.requests)
            ahead += 1

    def _fill_gangs(self) -> None:
        """Keeps `clips_in_flight` batches in every gang, so that none waits for a layout."""
        limit = self.plan.job.cluster.clips_in_flight
        while gang := self._least_busy(self.fleet.gangs.values(), limit):
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
        load = {gang: [flight.stage for flight in self.flights if flight.gang is gang] for gang in gangs}
        free = [
            (len(stages) - unwritten, gang)
            for gang, stages in load.items()
            if gang.stage == STANDING
            and (unwritten := stages.count("write")) <= (limit or len(stages))
            and (limit is None or len(stages) - unwritten < limit)
        ]
        return min(free, key=lambda busy: busy[0])[1] if free else None

    def _next_flight(self) -> _Flight | None:
        """A batch for a gang: one whose texts are there, where they are made apart."""
        if self.plan.encodes_apart:
            return next((flight for flight in self.flights if flight.stage == "encoded"), None)
        return _Flight(self._next_batch()) if self.pending else None

    def _next_batch(self) -> list[ClipTask]:
        """The next tasks of one strategy. What failed before goes alone, so that it can spoil nothing but itself."""
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
        flight.gang, flight.stage = gang, stage
        flight.made, receipts = gang.make(method, *arguments)
        for index, receipt in enumerate(receipts):
            self.waiting[receipt] = _Call(flight, gang, is_answer=index == 0)

    def _run_beside(self, flight: _Flight, stage: str, task: Any, cpus: float, *arguments: Any) -> None:
        """Has a Ray task go on with a batch. It reserves no core where gangs took them all, or it would never run."""
        spare = ray.cluster_resources().get("CPU", 0) - reserved_cpus(self.plan)
        flight.stage = stage
        reference = task.options(num_cpus=cpus if spare >= 1 else 0).remote(flight.made, *arguments)
        self.waiting[reference] = _Call(flight, None)

    # --- what comes of it ---

    def _handle(self, reference: ObjectRef) -> None:
        call = self.waiting.pop(reference)
        try:
            answer = ray.get(reference)
        except RayError as error:
            self._handle_error(call, error)
            return
        if call.is_answer:
            self._go_on(call.flight, answer)

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
            for task, clip in zip(flight.tasks, answer, strict=True):
                self._commit(flight, task, clip)
        else:
            self._run_beside(flight, "write", write, WRITE_CPUS, self.plan.job.generation)

    def _second_phase(self, flight: _Flight, answers: Sequence[tuple[Correction, float] | InputError]) -> None:
        """The clips whose counts were right go on, the others start again: the batch parts."""
        assert flight.gang is not None, "it holds the batch's state"
        self.flights.remove(flight)
        right, wrong = (_Flight([], encode_seconds=flight.encode_seconds) for _ in range(2))
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
            plans = ray.put([correction.plan for correction, _ in wrong.corrections.values()])
            self._make(wrong, flight.gang, "guide", "guide", wrong.keys, plans)

    def _handle_error(self, call: _Call, error: RayError) -> None:
        flight, gang = call.flight, call.gang
        refused = is_input_error(error)  # by every rank alike, before any collective: the gang is well
        no_memory = isinstance(error, RayTaskError) and isinstance(error.cause, torch.OutOfMemoryError)
        if gang is not None and not refused and not (no_memory and gang.spec.ranks == 1):
            self._lose(gang, flight, error)  # also where memory ran out: the ranks may be out of step
            return
        if flight in self.flights:
            if flight.gang is not None:
                flight.gang.call("drop", flight.keys)
            self._fail(flight, error, for_good=refused)

    def _lose(self, gang: Gang, culprit: _Flight | None, error: BaseException) -> None:
        """Hands back what a lost gang was at, and has it replaced.

        Only one batch is blamed, the one whose call failed first or, where none is known, the one that was computed:
        the others were merely there.
        """
        log.warning("%s is lost, and replaced: %s", gang.name, reason(error))
        aboard = [flight for flight in self.flights if flight.gang is gang and flight.stage != "write"]
        if culprit not in aboard:
            culprit = next((flight for flight in aboard if flight.stage != "layout"), None)
        for flight in aboard:
            if flight is culprit:
                self._fail(flight, error)
            else:
                self._forget(flight)
                self.pending.extend(flight.tasks)
        self.waiting = {reference: call for reference, call in self.waiting.items() if call.gang is not gang}
        self.fleet.replace(gang)

    def _forget(self, flight: _Flight) -> None:
        self.flights.remove(flight)
        self.waiting = {reference: call for reference, call in self.waiting.items() if call.flight is not flight}

    def _fail(self, flight: _Flight, error: BaseException, *, for_good: bool = False) -> None:
        """Hands a batch's clips back for another try; after the last one they are recorded and the job goes on."""
        self._forget(flight)
        for task in flight.tasks:
            self.attempts[task.key] += 1
            if for_good or self.attempts[task.key] >= self.plan.job.cluster.attempts:
                self._give_up(task, flight.stage, error)
            else:
                self.pending.append(task)

    def _give_up(self, task: ClipTask, stage: str, error: BaseException) -> None:
        record = {"prompt": task.row.prompt, "row": task.row.index, "stage": stage, "error": reason(error)}
        self.store.fail(task.key, record)
        self.progress.failed += 1

    def _commit(self, flight: _Flight, task: ClipTask, clip: Clip) -> None:
        correction, layout_seconds = flight.corrections.get(task.key, (None, None))
        elsewhere = {"encode": flight.encode_seconds, "layout": layout_seconds}
        timings = clip.timings | {stage: seconds for stage, seconds in elsewhere.items() if seconds is not None}
        file_name, digest = self.store.put_video(task.key, clip.mp4)
        row = self.plan.row(task, replace(clip, timings=timings), correction, retries=self.attempts[task.key])
        row |= {"file_name": file_name, "video_sha256": digest}
        if correction is not None:
            row["layout_file"] = self.store.put_layout(task.key, layout_arrays(task, correction))
        self.store.commit(row)
        self.progress.done += 1
        self.progress.generated += 1
        self.progress.guided += bool(row["guided"])

    def _show(self) -> None:
        self.progress.gangs = {}
        for gang in self.fleet.all:
            stages = [flight.stage for flight in self.flights if flight.gang is gang and flight.stage != "write"]
            doing = " + ".join(stages) or "idle"
            self.progress.gangs[gang.name] = doing if gang.stage == STANDING else gang.stage
        self.report(self.progress)
