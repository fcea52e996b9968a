"""From a prepared job to its finished output: what is left is found, a Ray cluster joined, the driver run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from cluster.dataset.store import Committed, Store
from cluster.job.acceptance import Acceptance
from cluster.job.joining import reachable
from cluster.job.judge import judge_config
from cluster.job.prepared import PreparedJob
from cluster.job.strategy import strategy_record
from cluster.job.worklist import Worklist, open_worklist
from cluster.observability.progress import JobProgress
from cluster.runtime.drain import Drain
from cluster.runtime.driver import Driver
from cluster.runtime.fleet import ray_cluster
from cluster.workers.row import code_version
from cluster.workers.tasks import Output
from numina.errors import InputError, JobError


def run_job(prepared: PreparedJob, report: Callable[[JobProgress], None] = lambda progress: None) -> JobProgress:
    """Runs or resumes a job; returns when every video is committed or recorded as failed, or when a signal stopped it.

    Raises OutputError when the output belongs to another job, GangError when no gang can stand, StorageError when the
    storage is full or lost, DamageError when a file of the output can't be read, and JobError when input turns out
    to be wrong after the gangs have started, or too many clips come out broken.
    """
    job, progress = prepared.job, JobProgress()
    store = Output.of(prepared).store()
    with Drain(job.cluster.grace) as drain:
        worklist = _open(prepared, store, progress, report, drain)
        if worklist is None:
            progress.draining, progress.total = True, prepared.asked
            return progress
        address = reachable(job.cluster.address) if progress.left and not drain.asked else ""
        store.open_run(prepared.identity(), asked=worklist.asked, info=_run_record(prepared))
        progress.draining = drain.asked
        report(progress)
        if address and not drain.asked:
            with ray_cluster(prepared, address):
                drain.listen()  # Ray took SIGTERM
                try:
                    Driver(prepared, store, worklist, progress, report, drain=drain).run()
                except InputError as error:  # says by its class that nothing was started
                    raise JobError(f"the job stopped after it began: {error}") from error
    return progress


def _run_record(prepared: PreparedJob) -> dict[str, Any]:
    """What this start of a job leaves in the output for readers."""
    job = prepared.job
    record: dict[str, Any] = {
        "code_version": code_version(),
        "parallel": asdict(job.parallel),
        "memory": asdict(job.memory),
        "shard": job.shard,
        "strategies": list(map(strategy_record, job.all_strategies)),
    }
    if job.verifies:
        record["verify"] = {"judge": judge_config(job.verify.judge, job.judge).name, "accept": job.verify.accept}
    return record


def _open(
    prepared: PreparedJob, store: Store, progress: JobProgress, report: Callable[[JobProgress], None], drain: Drain
) -> Worklist | None:
    """What is left to do; None when it is asked to stop meanwhile: a look at a million rows takes minutes.

    What storage says of the rest is forgotten again: it may be a million keys.
    """

    def checked(rows: int) -> None:
        progress.checked = rows
        report(progress)

    committed = store.committed_index()
    given_up = (
        Committed(keys=frozenset(), tasks=frozenset()) if prepared.job.retry_failed else store.given_up(committed)
    )
    settled = frozenset[bytes]()
    if prepared.job.verifies:
        verdicts = store.verdicts_of_attempts(judge_config(prepared.job.verify.judge, prepared.job.judge).name)
        settled = Acceptance.of(prepared.job.verify).settled(verdicts, committed.keys)
    worklist = open_worklist(prepared, committed, given_up, settled, report=checked, stopped=lambda: drain.asked)
    if worklist is not None:
        progress.total, progress.done, progress.failed = worklist.total, worklist.done, worklist.failed
    return worklist
