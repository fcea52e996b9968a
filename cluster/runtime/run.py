"""From a prepared job to its finished output: what is left is found, a Ray cluster joined, the driver run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from cluster.dataset.store import Committed, Store
from cluster.job.acceptance import Acceptance
from cluster.job.joining import reachable
from cluster.job.judge import judge_config
from cluster.job.pinning import hub_commits
from cluster.job.prepared import PreparedJob
from cluster.job.strategy import strategy_record
from cluster.job.worklist import Worklist, open_worklist
from cluster.observability.logs import redact
from cluster.observability.progress import JobProgress
from cluster.prompts.problems import problem_lines
from cluster.runtime.drain import Drain
from cluster.runtime.driver import Driver
from cluster.runtime.fleet import ray_cluster
from cluster.runtime.look import Look
from cluster.storage.destination import check_folder, check_output
from cluster.workers.row import code_version
from cluster.workers.tasks import Output
from numina.errors import InputError, JobError

LOOK_SECONDS = 0.25  # between two reports while rows are looked at

log = logging.getLogger(__name__)


def run_job(prepared: PreparedJob, report: Callable[[JobProgress], None] = lambda progress: None) -> JobProgress:
    """Runs or resumes a job; returns when every video is committed or recorded as failed, or when a signal stopped it.

    The gangs start while the prompt set is still looked at. Raises PromptSetError, before any clip is made, when rows
    can't be used, OutputError when the output belongs to another job, GangError when no gang can stand, StorageError
    when the storage is full or lost, DamageError when a file of the output can't be read, and JobError when input turns
    out to be wrong after clips were begun, or too many clips come out broken.
    """
    job, progress = prepared.job, JobProgress()
    check_folder("output", job.output)
    store = Output.of(prepared).store()
    if store.check_run(prepared.identity()) is None:
        check_output(job.output, single_writer=job.single_writer)
    with Drain(job.cluster.grace) as drain, Look(partial(_left, prepared, store), lambda: drain.asked) as look:
        while not look.finds_work(LOOK_SECONDS):
            progress.checked = look.checked
            report(progress)
        found = look.worklist() if look.over else None
        if look.over and (found is None or not found.left or drain.asked):
            if found is None:
                progress.total = prepared.asked
            else:
                _begin(prepared, store, found, progress)
            progress.draining = drain.asked
            report(progress)
            return progress

        begun = False

        def worklist() -> Worklist | None:
            """Once all is looked at and, with it, the output is opened."""
            nonlocal begun
            progress.checked = look.checked
            found = look.worklist() if look.over else None
            if found is not None:
                _begin(prepared, store, found, progress)
                begun = True
            return found

        with ray_cluster(prepared, reachable(job.cluster.address)):
            drain.listen()  # Ray took SIGTERM
            try:
                Driver(prepared, store, worklist, progress, report, drain=drain).run()
            except InputError as error:  # says by its class that nothing was started
                if begun:
                    raise JobError(f"the job stopped after it began: {error}") from error
                raise
        if not begun:
            progress.total = prepared.asked
    return progress


def _begin(prepared: PreparedJob, store: Store, worklist: Worklist, progress: JobProgress) -> None:
    """Opens the output once all rows were looked at, and says what they are."""
    rows, rejected = worklist.rows, _rejected_name(*prepared.job.part)
    hub = {path: commit for path, commit in hub_commits(prepared.job).items() if commit}
    store.open_run(prepared.identity(), asked=worklist.asked, info=_run_record(prepared, worklist), hub=hub)
    if worklist.rejected:
        store.files.replace(rejected, problem_lines(worklist.rejected))
    elif rejected in store.files.names():
        store.files.remove(rejected)
    progress.total, progress.done, progress.failed = worklist.total, worklist.done, worklist.failed
    progress.skipped = rows.skipped
    if rows.plain:
        log.info("%d rows to be made ask for no count: their clips are plain ones", rows.plain)
    if rows.doubtful:
        log.warning(
            "%d rows to be made are doubtful, targets_doubtful=%s; `numina prompts check` lists them",
            *(rows.doubtful, prepared.job.targets_doubtful),
        )
    if rows.skipped:
        where = redact(f"{prepared.job.output}/{rejected}")
        log.warning("%d rows can't be used and are skipped, see %s", rows.skipped, where)


def _rejected_name(index: int, count: int) -> str:
    """The list of a job's bad rows, or of a shard's."""
    return "REJECTED.jsonl" if count == 1 else f"REJECTED-{index}-of-{count}.jsonl"


def _run_record(prepared: PreparedJob, worklist: Worklist) -> dict[str, Any]:
    """What this start of a job leaves in the output for readers."""
    job = prepared.job
    record: dict[str, Any] = {
        "code_version": code_version(),
        "parallel": asdict(job.parallel),
        "memory": asdict(job.memory),
        "shard": job.shard,
        "strategies": list(map(strategy_record, job.all_strategies)),
        "rows": asdict(worklist.rows),
        "left_out": worklist.left_out,
    }
    if job.verifies:
        record["verify"] = {"judge": judge_config(job.verify.judge, job.judge).name, "accept": job.verify.accept}
    return record


def _left(prepared: PreparedJob, store: Store, **told: Any) -> Worklist | None:
    """What is left to do; `told` as `open_worklist` has it.

    What storage says of the rest is forgotten again: it may be a million keys.
    """
    committed = store.committed_index(plain=prepared.job.verifies)
    given_up = (
        Committed(keys=frozenset(), tasks=frozenset()) if prepared.job.retry_failed else store.given_up(committed)
    )
    settled = frozenset[bytes]()
    if prepared.job.verifies:
        verdicts = store.verdicts_of_attempts(judge_config(prepared.job.verify.judge, prepared.job.judge).name)
        settled = Acceptance.of(prepared.job.verify).settled(verdicts, committed.keys) | committed.plain
    return open_worklist(prepared, committed, given_up, settled, **told)
