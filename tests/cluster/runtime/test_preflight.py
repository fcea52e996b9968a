"""The preflight: one small clip through all stages on one gang, before any other gang starts, on real Ray."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

import cluster.workers.rank
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.runtime.fleet import Fleet
from cluster.runtime.gang import Gang, GangState
from cluster.runtime.run import run_job
from cluster.runtime.specs import preflight_clip
from cluster.workers.member import Arrival
from cluster.workers.passed import mark_of
from numina.errors import GangError
from tests.faults.quick_job import QuickRank

Job = Callable[..., JobConfig]


def broken(stage: str) -> Any:
    """What a build that can't do it raises."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"no kernel image is available for {stage}")

    return fail


class BrokenDecoder(cluster.workers.rank.Rank):
    """Its build can't decode."""

    def load(self, first: Arrival) -> dict[str, float]:
        took = super().load(first)
        self._ready.model.decode = broken("decode")  # type: ignore[method-assign]
        return took


class BrokenOnce(cluster.workers.rank.Rank):
    """Of a gang's ranks one alone can't denoise."""

    def load(self, first: Arrival) -> dict[str, float]:
        took = super().load(first)
        if self.rank == 1:
            self._ready.model.predict = broken("predict")  # type: ignore[method-assign]
        return took


class Hangs(QuickRank):
    """Its GPU never answers."""

    def preflight(self, first: Arrival) -> dict[str, float]:
        time.sleep(600)
        return {}


def test_a_job_after_its_preflight(joining_job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """The clip isn't one of the job's; other gangs start when it has passed."""
    caplog.set_level(logging.INFO)
    job = joining_job("cluster.preflight=always", "parallel.ulysses=1", "parallel.gangs=2")
    progress = run_job(prepare(job))
    assert (progress.done, progress.failed) == (4, 0)
    lines = [record.getMessage() for record in caplog.records]
    passed = lines.index("the preflight has passed")
    stands = next(i for i, line in enumerate(lines) if line.startswith("gang-0 is ready"))
    assert "preflight " in lines[stands]
    assert not any(line.startswith("gang-1 is ready") for line in lines[: max(passed, stands)])
    assert len(list(Path(job.output).rglob("*.mp4"))) == 4


@pytest.mark.parametrize(
    ("rank", "told"),
    [
        (
            BrokenDecoder,
            "failed in decode: RuntimeError: no kernel image is available for decode",
        ),
        (
            BrokenOnce,
            "failed in identify: RuntimeError: no kernel image is available for predict",
        ),
    ],
)
def test_a_build_that_cannot_work(
    joining_job: Job, monkeypatch: pytest.MonkeyPatch, rank: type[Any], told: str
) -> None:
    """The job ends at once, with the stage and the reason; not a row is there, not even a failed one."""
    monkeypatch.setattr(cluster.workers.rank, "Rank", rank)
    job = joining_job("cluster.preflight=always")
    with pytest.raises(
        GangError, match=f"gang-0 could not start: MachineError: the preflight.s small clip {told}; `numina doctor`"
    ):
        run_job(prepare(job))
    assert not list(Path(job.output).rglob("*.mp4"))
    assert not list(Path(job.output).glob("failures/*"))


def test_a_preflight_that_hangs(joining_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take no longer than a step, however long a start may."""
    monkeypatch.setattr(cluster.workers.rank, "Rank", Hangs)
    job = joining_job("cluster.preflight=always", "cluster.step_timeout=3", "cluster.attempts=1", "parallel.ulysses=1")
    with pytest.raises(GangError, match=r"gang-0's preflight, one small clip, wasn't done after \d+ s"):
        run_job(prepare(job))


def test_it_passes_once_on_a_machine(joining_job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mark lies in the user's cache; another model, or other degrees, have another one."""
    monkeypatch.setattr(cluster.workers.rank, "Rank", InCache)
    prepared = prepare(joining_job("cluster.preflight=always", "parallel.ulysses=1"))
    fleet = Fleet(prepared)
    started: list[Any] = []
    monkeypatch.setattr(fleet, "_start", started.append)
    fleet.start()
    spec = replace(started[0].spec, preflight_always=False)
    for expected in (False, True):
        gang = Gang(str(tmp_path / "cache"), spec)
        answers = [ray.get(reference) for reference in stand(gang)]
        assert answers[0].passed is expected
        assert ("preflight" in gang.seconds) is not expected
        gang.kill()
        gang.free()
    assert len(list((tmp_path / "cache/numina/preflight").iterdir())) == 1
    marks = {mark_of(spec), mark_of(replace(spec, dtype="bfloat16")), mark_of(replace(spec, model_path="testbed"))}
    assert len(marks) == 3


def stand(gang: Gang) -> list[Any]:
    references = gang.start()
    for reference in references:
        gang.heard(reference, ray.get(reference))
    assert gang.state is GangState.STANDING
    return references


class InCache(cluster.workers.rank.Rank):
    """Its user's cache is where the gang's name says."""

    def __init__(self, spec: Any, rank: int, gang: str) -> None:
        os.environ["XDG_CACHE_HOME"] = gang
        super().__init__(spec, rank, "gang")


def test_only_gangs_on_gpus_have_one_unless_it_is_asked_for(tiny_job: Job) -> None:
    """`auto`, the default, costs a CPU job nothing."""
    assert preflight_clip(prepare(tiny_job())) is None
    prepared = prepare(tiny_job("cluster.preflight=always"))
    clip = preflight_clip(prepared)
    assert clip is not None
    assert (clip.steps, clip.num_frames, clip.height) == (4, 5, 64)
    assert preflight_clip(replace(prepared, device="cuda", job=tiny_job("model.dtype=bfloat16"))) is not None
    assert preflight_clip(replace(prepared, device="cuda", job=tiny_job("cluster.preflight=never"))) is None
