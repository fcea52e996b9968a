"""Which clips a gang is given together, and what a failed batch costs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError

from cluster.dataset.store import Store
from cluster.evaluation.outcomes import rank_seconds
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.prompts.write import make_prompts
from cluster.runtime.driver import Driver
from cluster.runtime.flight import Call, Flight
from cluster.workers.row import row_of
from numina.errors import ClipError, GangError, JobError
from numina.stage import Stage
from pipelines.sampling.clip import Clip
from tests.cluster.tasks import tasks_of

Job = Callable[..., JobConfig]


def numbered(job: Job, number: int, *overrides: str) -> Driver:
    """A driver, not running, over `number` prompts; `ids` says which tasks a batch has."""
    path = str(Path(job().output).parent / f"{number}.parquet")
    make_prompts([{"id": str(index), "prompt": "two red circles"} for index in range(number)], path)
    prepared = prepare(job(f"prompts={path}", *overrides))
    driver = Driver(prepared, Store(prepared.job.output), lambda: None, JobProgress(), lambda progress: None)
    driver.queues.pending.extend(tasks_of(prepared))
    return driver


def batches(driver: Driver) -> list[str]:
    """All batches that a gang would be given, as their strategy and ids."""
    found = []
    while driver.queues.pending:
        batch = driver.queues.next_batch()
        [strategy] = {task.strategy for task in batch}
        found.append(f"{strategy} {' '.join(task.row.id or '' for task in batch)}")
    return found


def test_a_batch_is_of_one_strategy(tiny_job: Job) -> None:
    """Prompts stay in their order, strategies take turns, and the last batches hold what is left."""
    expected = ["baseline 0 1 2", "numina 0 1 2", "baseline 3 4", "numina 3 4"]
    assert batches(numbered(tiny_job, 5, "parallel.batch=3")) == expected
    assert batches(numbered(tiny_job, 2)) == ["baseline 0", "numina 0", "baseline 1", "numina 1"]


def test_a_failed_batch_is_tried_again_clip_by_clip(tiny_job: Job) -> None:
    """Whatever failed once goes alone, after what didn't; after the last attempt it is recorded, and only it."""
    driver = numbered(tiny_job, 5, "parallel.batch=2", "strategies=[baseline]", "cluster.attempts=3")

    def fail_next() -> None:
        flight = Flight(driver.queues.next_batch(), gang=None, stage=Stage.DENOISE)
        driver.queues.flights.append(flight)
        driver.recovery.fail(flight, GangError("lost"))

    fail_next()
    assert [task.row.id for task in driver.queues.pending] == ["2", "3", "4", "0", "1"]
    waiting = list(driver.queues.pending)
    assert batches(driver) == ["baseline 2 3", "baseline 4", "baseline 0", "baseline 1"]
    driver.queues.pending.extend(
        sorted(waiting, key=lambda task: task.row.id != "2")
    )  # 2 3 4 0 1: a failed one in the window
    driver.queues.pending.rotate(2)
    assert batches(driver) == ["baseline 0", "baseline 1", "baseline 2 3", "baseline 4"]
    driver.queues.pending.extend(waiting[3:])
    for _ in range(3):
        fail_next()
    assert [task.row.id for task in driver.queues.pending] == ["1"]
    [records] = driver.store.failures().values()
    assert (records[0]["row"], records[0]["stage"]) == (0, "denoise")
    assert "lost" in records[0]["error"]
    assert driver.progress.failed == 1


class FakeGang:
    """A gang without processes."""

    name, leaves_at = "gang-0", None

    def __init__(self, ranks: int):
        self.spec = SimpleNamespace(ranks=ranks)

    def call(self, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize(("ranks", "replaced"), [(1, False), (2, True)])
def test_what_a_failed_call_costs(tiny_job: Job, monkeypatch: pytest.MonkeyPatch, ranks: int, replaced: bool) -> None:
    """Where one of several ranks ran out of memory they may be out of step: the gang is replaced. The batch that failed
    is blamed, another one in the gang goes back, and one that is being written stays."""
    driver = numbered(tiny_job, 3, "strategies=[baseline]")
    lost: list[Any] = []
    monkeypatch.setattr(driver.fleet, "replace", lost.append)
    gang: Any = FakeGang(ranks)
    stages = (Stage.WRITE, Stage.DENOISE, Stage.DENOISE)
    written, failed, queued = [Flight(driver.queues.next_batch(), gang, stage) for stage in stages]
    driver.queues.flights = [written, failed, queued]
    driver.recovery.handle(Call(failed, gang), RayTaskError("plain", "", torch.OutOfMemoryError("97 GiB")))
    assert lost == [gang] * replaced
    assert driver.queues.flights == ([written] if replaced else [written, queued])
    assert sorted(task.row.id for task in driver.queues.pending) == (["1", "2"] if replaced else ["1"])
    assert [driver.queues.failed_tries[flight.keys[0]] for flight in (written, failed, queued)] == [0, 1, 0]


def test_a_share_of_broken_clips_stops_the_job(tiny_job: Job) -> None:
    """5 of the last 100 finished: the reason is the clips' own, and each is recorded."""
    driver = numbered(tiny_job, 120, "strategies=[baseline]")
    error = ClipError("the decoded clip shows one flat colour", Stage.DECODE)
    tasks = iter(driver.queues.pending)

    def finish(*broken: bool) -> None:
        for one in broken:
            if one:
                driver.recovery.broken(next(tasks), error)
            else:
                driver.recovery.committed()

    finish(*[True] * 4, *[False] * 96)
    finish(*[False] * 50, *[True] * 4, *[False] * 90)  # the first four are out of sight
    with pytest.raises(
        JobError, match=r"5 of the last 100 clips came out broken, the last one with ClipError: .* flat"
    ):
        finish(True)
    assert len(driver.store.failures()) == 9
    driver.recovery.recent.clear()
    with pytest.raises(JobError, match="5 of the last 5 clips"):
        finish(*[True] * 5)


def test_the_same_video_is_asked_for_once(tiny_job: Job) -> None:
    """A variant with numina's settings, or a seed that two rows' samples share: two tasks of one key would collide."""
    path = str(Path(tiny_job().output).parent / "near.parquet")
    make_prompts([{"id": str(seed), "prompt": "two red circles", "seed": seed} for seed in (3, 4)], path)
    given = ["samples=2", "strategies=[numina]", "method.guide.add=6", "variants.grid.guide.add=[5,6]"]
    prepared = prepare(tiny_job(f"prompts={path}", *given))
    tasks = list(tasks_of(prepared))
    assert [(task.row.id, task.seed) for task in tasks[::2]] == [("3", 3), ("3", 4), ("4", 5)]
    assert [task.strategy for task in tasks] == ["numina", "grid:add=5"] * 3
    assert len({task.key for task in tasks}) == 6


def test_rank_seconds_are_those_of_all_ranks(tiny_job: Job) -> None:
    """What a gang's ranks did, on GPUs and on CPUs; neither layouts nor mp4s nor texts that were made elsewhere. What a
    strategy's clips cost is the same."""
    seconds = {"encode": 1.0, "identify": 2.0, "layout": 4.0, "guide": 8.0, "decode": 16.0, "write": 32.0}
    clip = Clip(np.zeros((0, 64, 64, 3), np.uint8), b"", seconds)
    for place, busy in (("gang", 27.0), ("apart", 26.0)):
        prepared = prepare(tiny_job("parallel.cfg=2", f"memory.text_encoder={place}"))
        row = row_of(replace(prepared, device="cuda"), next(tasks_of(prepared)), clip, None, retries=0)
        assert row["gpu_seconds"] == row["rank_seconds"] == rank_seconds(row) == busy * 4
        assert (row["engine"], row["cfg"], row["ulysses"], row["ring"]) == ("xfuser", 2, 2, 1)
        row = row_of(prepared, next(tasks_of(prepared)), clip, None, retries=0)  # on CPUs
        assert (row["gpu_seconds"], rank_seconds(row)) == (None, busy * 4)
