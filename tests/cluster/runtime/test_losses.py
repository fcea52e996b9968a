"""The runtime on a real local Ray, when ranks, gangs and writers are lost: every video once."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

import cluster.runtime.driver
import cluster.runtime.fleet
import cluster.workers.rank
import cluster.workers.tasks
from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.runtime.run import run_job
from cluster.workers.tasks import Receipt
from numina.errors import (
    GangError,
)
from tests.cluster.conftest import processes
from tests.faults.quick_job import ShortOfMemory, SlowToLoad

Job = Callable[..., JobConfig]
PLAIN = ["strategies=[baseline]"]


@pytest.mark.slow
def test_a_killed_rank_costs_time_but_no_row(joining_job: Job) -> None:
    """SIGKILL of one rank in mid-job: a fresh gang takes over, every row is there, nothing failed.

    The batch that was lost with it is tried again clip by clip.
    """
    job = joining_job("generation.steps=30", "samples=2", "parallel.batch=2")
    killed: list[int] = []

    def kill_one_rank(progress: JobProgress) -> None:
        if progress.generated and not killed:
            rank = processes("Rank")[0]
            killed.append(rank.pid)
            rank.kill()

    outcome = run_job(prepare(job), kill_one_rank)
    assert killed
    assert (outcome.done, outcome.failed) == (8, 0)
    assert len(Store(job.output).rows()) == 8
    assert max(row["retries"] for row in Store(job.output).rows().to_pylist()) >= 1


@pytest.mark.slow
def test_a_stopped_gang_of_one_is_noticed_and_replaced(joining_job: Job) -> None:
    """A process that is there and does nothing, which no other rank waits for: its gang is replaced within
    `step_timeout` and a few seconds, its processes are gone, and every row is there."""
    job = joining_job(*PLAIN, "parallel.ulysses=1", "cluster.step_timeout=4", "generation.steps=20")
    stopped: list[int] = []
    times: dict[str, float] = {}

    def stop_one_rank(progress: JobProgress) -> None:
        state = progress.gangs.get("gang-0", "")
        if "denoise" in state and not stopped:
            rank = processes("Rank")[-1]
            stopped.append(rank.pid)
            rank.suspend()
            times["stopped"] = time.monotonic()
        elif stopped and state in ("ending", "placing"):
            times.setdefault("noticed", time.monotonic())
        if stopped and state == "placing":
            assert stopped[0] not in [process.pid for process in processes("Rank")]

    outcome = run_job(prepare(job), stop_one_rank)
    assert (outcome.done, outcome.failed) == (2, 0)
    assert times["noticed"] - times["stopped"] < 4 + 10
    assert sorted(row["retries"] for row in Store(job.output).rows().to_pylist()) == [0, 1]


def test_a_gang_that_dies_while_it_starts_is_started_again(joining_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lost start costs nothing but time; a gang that never stands ends the job, with the reason."""
    monkeypatch.setattr(cluster.workers.rank, "Rank", SlowToLoad)
    job = joining_job(*PLAIN, "parallel.ulysses=1", "limit=1", "cluster.attempts=2")
    starts = 0

    def kill_while_loading(until: int) -> Callable[[JobProgress], None]:
        def kill(progress: JobProgress) -> None:
            nonlocal starts
            if progress.gangs.get("gang-0") == "loading" and starts < until and (ranks := processes("SlowToLoad")):
                starts += 1
                ranks[0].kill()
                ranks[0].wait()

        return kill

    with pytest.raises(GangError, match="gang-0 could not start: ActorDiedError"):
        run_job(prepare(job), kill_while_loading(until=2))
    assert starts == 2
    starts = 0
    outcome = run_job(prepare(job), kill_while_loading(until=1))
    assert (outcome.done, starts) == (1, 1)


def test_a_gang_of_one_survives_a_lack_of_memory(joining_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clip is tried again in the same process: a fresh one would run out of memory again, and out of attempts."""
    monkeypatch.setattr(cluster.workers.rank, "Rank", ShortOfMemory)
    outcome = run_job(prepare(joining_job(*PLAIN, "parallel.ulysses=1", "limit=1", "cluster.attempts=2")))
    assert (outcome.done, outcome.failed) == (1, 0)


@pytest.mark.usefixtures("quick_model")
def test_a_lost_writer_costs_no_clip(joining_job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A writing process that is killed is replaced, and finds the frames in the object store; where writing fails
    with an error the clip is made again. The gang has its next clip meanwhile."""
    tries = tmp_path / "tries"
    tries.touch()

    @ray.remote
    def write(*arguments: Any) -> list[Receipt]:
        number = tries.stat().st_size
        with tries.open("a") as file:
            file.write(".")
        if number == 0:
            os._exit(1)
        if number == 2:
            raise OSError("no space left on device")
        receipts: list[Receipt] = cluster.workers.tasks.write._function(*arguments)
        return receipts

    monkeypatch.setattr(cluster.runtime.driver, "write", write)
    job = joining_job(*PLAIN, "parallel.ulysses=1")
    outcome = run_job(prepare(job))
    assert (outcome.done, outcome.failed) == (2, 0)
    assert tries.stat().st_size == 4
    rows = Store(job.output).rows().to_pylist()
    assert sorted(row["retries"] for row in rows) == [0, 1]
    assert all(row["timings"]["write"] > 0 for row in rows)
