"""The driver: walks the prompts, keeps gangs busy, lays out between their phases, commits rows.

    pending ─► gang: identify ─► Ray task: layout, refine, plan ─► gang: finish or guide ─► commit

Nothing here can't be lost: storage is the truth, and the same job started again goes on where it ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster.gang import Gang, GangSpec
from cluster.job import ALGORITHM_VERSION, JobConfig, config_hash
from cluster.promptset import PromptRow, extra_columns, read_prompts
from cluster.rows import row_key, sample_seed
from cluster.store import Store
from numina.errors import GangError, InputError
from pipelines.base import ModelFacts
from pipelines.cache import cache_label, check_cache
from pipelines.clip import Clip, Identified, Request
from pipelines.parallel import check_divides
from pipelines.registry import inspect_model, resolve_device, resolve_dtype
from pipelines.testbed import WEIGHTS

if TYPE_CHECKING:
    from numina.config import MethodConfig
    from numina.correct import Correction

LAYOUT_CPUS = 0.5  # a layout task is short; two of them share a core


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """One video to be made: a prompt, a sample of it, a strategy. Its key says whether it is there already."""

    key: str
    row: PromptRow
    sample: int
    seed: int
    strategy: str


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """A job whose input was checked: nothing of it can fail for a reason that could have been known before."""

    job: JobConfig
    model: ModelFacts
    device: str
    dtype: str
    rows: Sequence[PromptRow]

    def tasks(self) -> Iterator[ClipTask]:
        """All videos of the job, in the order of the prompt set; what would be the same video is asked for once."""
        known: set[str] = set()
        configs = {strategy: self.job.row_config(strategy, self.dtype) for strategy in self.job.all_strategies}
        for row in self.rows:
            for sample in range(self.job.samples):
                seed = sample_seed(row.seed, row.id, row.prompt, sample, self.job.seed)
                for strategy, config in configs.items():
                    key = row_key(
                        prompt=row.prompt,
                        negative_prompt=row.negative_prompt,
                        targets=row.targets,
                        seed=seed,
                        config=config,
                        model_revision=self.model.revision,
                        algorithm_version=ALGORITHM_VERSION,
                    )
                    if key not in known:
                        known.add(key)
                        yield ClipTask(key=key, row=row, sample=sample, seed=seed, strategy=strategy)

    def identity(self) -> dict[str, Any]:
        """What run.json holds: all that must be the same for a later run into the same output."""
        return {
            "model": {"name": self.model.name, "revision": self.model.revision},
            "algorithm_version": ALGORITHM_VERSION,
            "seed": self.job.seed,
            **self.job.identity(self.dtype),
        }


def prepare(job: JobConfig) -> JobPlan:
    """Checks model, shapes, degrees and every prompt. Raises an InputError before any GPU is taken."""
    model = inspect_model(job.model.path)
    check_divides(job.parallel.ulysses, heads=model.heads, grid=model.grid(job.generation))
    together = {"ranks": job.parallel.ulysses, "batch": job.parallel.batch}
    check_cache("generation.cache", job.generation.cache, **together)
    for method in filter(None, job.methods.values()):
        check_cache("method.identify.cache", method.identify.cache, **together)
    device = job.model.device
    if device == "auto" and job.cluster.address != "local":
        device = "cuda"  # the driver may stand on a head node without a GPU
    elif job.cluster.address == "local":
        device = resolve_device(device)
    rows = list(read_prompts(prompt_path(job.prompts), max_count=job.max_count, limit=job.limit))
    return JobPlan(job=job, model=model, device=device, dtype=resolve_dtype(job.model.dtype, device), rows=rows)


def prompt_path(prompts: str) -> str:
    """Where a prompt set lies; `testbed:demo` is the one shipped with the embedded model."""
    return str(WEIGHTS.parent / "demo.parquet") if prompts == "testbed:demo" else prompts


@dataclass
class JobProgress:
    """What a terminal shows of a running job."""

    total: int  # videos that the job asks for
    done: int = 0  # committed, before or by this run
    generated: int = 0  # by this run
    failed: int = 0
    guided: int = 0
    gangs: dict[str, str] = field(default_factory=dict)  # gang → what it does


def run_job(plan: JobPlan, report: Callable[[JobProgress], None] = lambda progress: None) -> JobProgress:
    """Runs or resumes a job; returns when every video is committed or recorded as failed.

    Raises OutputError when the output belongs to another job, GangError when no gang can stand, StorageError when the
    storage is full or lost.
    """
    job = plan.job
    store = Store(job.output, single_writer=job.single_writer, extra_columns=extra_columns(prompt_path(job.prompts)))
    tasks = list(plan.tasks())
    info = {"code_version": code_version(), "parallel": asdict(job.parallel)}
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
    job = plan.job
    options: dict[str, Any] = {}
    if job.cluster.address == "local":
        ranks = job.parallel.ulysses * job.parallel.gangs
        # One core more than the ranks take: layouts are short, and ranks sleep where they wait for one.
        options = {"num_cpus": ranks * job.cluster.cpus_per_rank + 1, "include_dashboard": False}
    ray.init(address=job.cluster.address, log_to_driver=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


@ray.remote(num_cpus=LAYOUT_CPUS)
def lay_out(
    identified: Sequence[Identified | InputError], tasks: Sequence[ClipTask], method: MethodConfig
) -> list[tuple[Correction, float] | InputError]:
    """Layout, refinement and plan of a batch's clips, on any CPU of the cluster; and the seconds each took."""
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


@dataclass
class _Flight:
    """A batch of clips of one strategy on its way through a gang. Batches part where some counts were right."""

    tasks: list[ClipTask]
    gang: Gang
    stage: str = "identify"
    corrections: dict[str, tuple[Correction, float]] = field(default_factory=dict)  # key → with its seconds

    @property
    def keys(self) -> list[str]:
        return [task.key for task in self.tasks]


class Driver:
    """The event loop over one job's gangs."""

    def __init__(self, plan: JobPlan, store: Store, progress: JobProgress, report: Callable[[JobProgress], None]):
        self.plan = plan
        self.store = store
        self.progress = progress
        self.report = report
        self.pending: deque[ClipTask] = deque()
        self.attempts: dict[str, int] = {}
        self.flights: list[_Flight] = []
        self.waiting: dict[ObjectRef, tuple[_Flight, bool]] = {}  # reference → its batch, and whether it is the answer
        self.gangs: list[Gang] = []
        self.spec = GangSpec(
            model_path=plan.job.model.path,
            dtype=plan.dtype,
            device=plan.device,
            generation=plan.job.generation,
            parallel=plan.job.parallel,
            cpus_per_rank=plan.job.cluster.cpus_per_rank,
        )

    def run(self, tasks: Sequence[ClipTask]) -> None:
        """Generates and commits all tasks."""
        self.pending.extend(tasks)
        try:
            self._start_gangs([f"gang-{number}" for number in range(self.plan.job.parallel.gangs)])
            while self.pending or self.flights:
                self._fill_gangs()
                self._show()
                ready, _ = ray.wait(list(self.waiting), num_returns=1, timeout=5.0)
                for reference in ready:
                    if reference in self.waiting:  # a lost gang takes its other references with it
                        self._handle(reference)
        finally:
            for gang in self.gangs:
                gang.end()

    # --- gangs ---

    def _start_gangs(self, names: Sequence[str]) -> None:
        """Starts gangs side by side: loading a model takes minutes. Raises GangError when one can't stand."""
        timeout = self.plan.job.cluster.start_timeout
        self.progress.gangs |= dict.fromkeys(names, "starting")
        self.report(self.progress)
        starting = []
        for name in names:
            self.gangs.append(Gang(name, self.spec))
            starting.append((self.gangs[-1], self.gangs[-1].start(timeout)))
        for gang, references in starting:
            try:
                ray.get(references, timeout=timeout)
            except RayError as error:
                raise GangError(f"{gang.name} could not start: {_reason(error)}") from error

    def _fill_gangs(self) -> None:
        """Keeps `clips_in_flight` batches in every gang, so that none waits for a layout."""
        for gang in self.gangs:
            flying = sum(flight.gang is gang for flight in self.flights)
            while self.pending and flying < self.plan.job.cluster.clips_in_flight:
                self._begin(gang, self._next_batch())
                flying += 1

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

    def _lose_gang(self, culprit: _Flight, error: RayError) -> None:
        """Ends a gang that lost a rank, hands its clips back, and puts a fresh one in its place.

        Only the batch whose call failed first is blamed: the others were merely there.
        """
        gang = culprit.gang
        gang.end()
        self.gangs.remove(gang)
        for flight in [flight for flight in self.flights if flight.gang is gang]:
            if flight is culprit:
                self._fail(flight, error)
            else:
                self._forget(flight)
                self.pending.extend(flight.tasks)
        if self.pending or self.flights:
            self._start_gangs([gang.name])

    # --- one batch ---

    def _begin(self, gang: Gang, tasks: list[ClipTask]) -> None:
        flight = _Flight(tasks, gang)
        self.flights.append(flight)
        requests = [
            Request(task.key, task.row.prompt, task.row.negative_prompt, task.seed, tuple(task.row.targets))
            for task in tasks
        ]
        method = self.plan.job.methods[tasks[0].strategy]
        if method is None:
            flight.stage = "denoise"
            self._wait(flight, gang.call("plain", requests))
        else:
            self._wait(flight, gang.call("identify", requests, method))

    def _wait(self, flight: _Flight, references: Sequence[ObjectRef]) -> None:
        """Waits for all ranks: one that fails alone would leave the others in a collective for ever."""
        for index, reference in enumerate(references):
            self.waiting[reference] = (flight, index == 0)

    def _handle(self, reference: ObjectRef) -> None:
        flight, is_answer = self.waiting.pop(reference)
        try:
            answer = ray.get(reference)
        except RayError as error:
            if _is_input_error(error):  # every rank refused it alike, before any collective: the gang is well
                self._fail(flight, error, for_good=True)
            elif flight.stage == "layout":
                flight.gang.call("drop", flight.keys)
                self._fail(flight, error)
            else:
                self._lose_gang(flight, error)
            return
        if not is_answer:
            return
        if flight.stage == "identify":
            flight.stage = "layout"
            method = self.plan.job.methods[flight.tasks[0].strategy]
            self._wait(flight, [lay_out.remote(reference, flight.tasks, method)])
        elif flight.stage == "layout":
            self._second_phase(flight, answer)
        else:
            self.flights.remove(flight)
            for task, clip in zip(flight.tasks, answer, strict=True):
                self._commit(flight, task, clip)

    def _second_phase(self, flight: _Flight, answers: Sequence[tuple[Correction, float] | InputError]) -> None:
        """The clips whose counts were right go on, the others start again: the batch parts."""
        self.flights.remove(flight)
        right, wrong = _Flight([], flight.gang, "finish"), _Flight([], flight.gang, "guide")
        for task, answer in zip(flight.tasks, answers, strict=True):
            if isinstance(answer, InputError):
                self._give_up(task, "identify", answer)
                continue
            part = right if answer[0].plan is None else wrong
            part.tasks.append(task)
            part.corrections[task.key] = answer
        if right.tasks:
            self.flights.append(right)
            self._wait(right, right.gang.call("finish", right.keys))
        if wrong.tasks:
            self.flights.append(wrong)
            plans = ray.put([correction.plan for correction, _ in wrong.corrections.values()])
            self._wait(wrong, wrong.gang.call("guide", wrong.keys, plans))

    def _forget(self, flight: _Flight) -> None:
        self.flights.remove(flight)
        for reference in [reference for reference, (other, _) in self.waiting.items() if other is flight]:
            del self.waiting[reference]

    def _fail(self, flight: _Flight, error: RayError, *, for_good: bool = False) -> None:
        """Hands a batch's clips back for another try; after the last one they are recorded and the job goes on."""
        self._forget(flight)
        for task in flight.tasks:
            self.attempts[task.key] = self.attempts.get(task.key, 0) + 1
            if for_good or self.attempts[task.key] >= self.plan.job.cluster.attempts:
                self._give_up(task, flight.stage, error)
            else:
                self.pending.append(task)

    def _give_up(self, task: ClipTask, stage: str, error: BaseException) -> None:
        record = {"prompt": task.row.prompt, "row": task.row.index, "stage": stage, "error": _reason(error)}
        self.store.fail(task.key, record)
        self.progress.failed += 1

    def _commit(self, flight: _Flight, task: ClipTask, clip: Clip) -> None:
        correction, seconds = flight.corrections.get(task.key, (None, 0.0))
        file_name, digest = self.store.put_video(task.key, clip.mp4)
        row = self._row(task, clip, correction, seconds) | {"file_name": file_name, "video_sha256": digest}
        if correction is not None:
            row["layout_file"] = self.store.put_layout(task.key, layout_arrays(task, correction))
        self.store.commit(row)
        self.progress.done += 1
        self.progress.generated += 1
        self.progress.guided += bool(row["guided"])

    def _row(self, task: ClipTask, clip: Clip, correction: Correction | None, layout_seconds: float) -> dict[str, Any]:
        """The row's columns, without the names of its files."""
        job, generation, timings = self.plan.job, self.plan.job.generation, dict(clip.timings)
        method = job.methods[task.strategy]
        if correction is not None:
            timings["layout"] = layout_seconds
        busy = sum(seconds for stage, seconds in timings.items() if stage != "layout")
        refinement = correction.refinement if correction else None
        return {
            "key": task.key,
            "id": task.row.id,
            "prompt": task.row.prompt,
            "negative_prompt": task.row.negative_prompt,
            "targets": task.row.targets,
            "strategy": task.strategy,
            "sample": task.sample,
            "seed": task.seed,
            "model": self.plan.model.name,
            "model_revision": self.plan.model.revision,
            "code_version": code_version(),
            "config_hash": config_hash(job.row_config(task.strategy, self.plan.dtype)),
            "width": generation.width,
            "height": generation.height,
            "num_frames": generation.num_frames,
            "fps": generation.fps,
            "steps": generation.steps,
            "guidance_scale": generation.guidance_scale,
            "engine": job.parallel.resolved_engine,
            "ulysses": job.parallel.ulysses,
            "ring": 1,
            "cfg": 1,
            "cache": cache_label(method.identify.cache if method else None, generation.cache),
            "identified": identified_counts(task, correction) if correction else None,
            "guided": refinement is not None,
            "shortfall": list(refinement.shortfall) if refinement else None,
            "timings": timings,
            "gpu_seconds": busy * job.parallel.ulysses if self.plan.device == "cuda" else None,
            "retries": self.attempts.get(task.key, 0),
            "peak_memory_bytes": clip.peak_memory_bytes,
            "extra": task.row.extra,
        }

    def _show(self) -> None:
        for gang in self.gangs:
            stages = [flight.stage for flight in self.flights if flight.gang is gang]
            self.progress.gangs[gang.name] = " + ".join(stages) or "idle"
        self.report(self.progress)


def layout_arrays(task: ClipTask, correction: Correction) -> dict[str, np.ndarray]:
    """What a layout file holds: `labels` and, where corrected, `refined` int16 and `regions` int8 [nouns, F, H, W]."""
    arrays: dict[str, np.ndarray] = {
        "nouns": np.array([target.noun for target in task.row.targets]),
        "labels": correction.identified.labels,
    }
    if correction.refinement is not None:
        arrays["refined"] = correction.refinement.layout.labels
        arrays["regions"] = correction.refinement.regions
    return arrays


def identified_counts(task: ClipTask, correction: Correction) -> list[dict[str, Any]]:
    """The row column `identified`: per noun its count in every latent frame and in the clip."""
    per_frame, per_clip = correction.identified.counts(), correction.identified.clip_counts()
    return [
        {"noun": target.noun, "frames": frames.tolist(), "count": int(count)}
        for target, frames, count in zip(task.row.targets, per_frame, per_clip, strict=True)
    ]


def code_version() -> str:
    """The installed version of numina."""
    return version("numina-video")


def _is_input_error(error: RayError) -> bool:
    return isinstance(error, RayTaskError) and isinstance(error.cause, InputError)


def _reason(error: BaseException) -> str:
    """The cause that a Ray error carries, without the remote traceback."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {cause}"[:2000]
