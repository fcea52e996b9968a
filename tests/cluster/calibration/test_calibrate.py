"""A calibration as a job on a real Ray: rungs, resuming, another budget. Ranks make clips without a model."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.calibration.calibrate import Budget, Calibration, Result
from cluster.calibration.race import PLAIN
from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.observability.progress import JobProgress
from cluster.prompts.write import make_prompts
from numina.errors import ConfigError

Job = Callable[..., JobConfig]
COLOURS, SHAPES = ("red", "green", "blue"), ("circles", "squares", "triangles", "crosses")


def a_job(joining_job: Job, tmp_path: Path) -> JobConfig:
    """Four candidates on twelve prompts; `same` has the job's own settings under another name."""
    prompts = [f"two {colour} {shape} moving on a grey background" for colour in COLOURS for shape in SHAPES]
    make_prompts([{"prompt": prompt} for prompt in prompts], str(tmp_path / "many.parquet"))
    variants = ["variants.same.preset=closed", "variants.late.identify.step=0.6", "variants.s.guide.strength=[1.0,3.0]"]
    job = joining_job("parallel.ulysses=1", "cluster.end_timeout=2", *variants)
    return replace(job, prompts=str(tmp_path / "many.parquet"))


def calibrated(
    job: JobConfig, clips: int, look: Callable[[JobProgress], None] = lambda now: None
) -> tuple[Result, int, list[str]]:
    """What came out, how many clips were made now, and what was told; `look` gets each progress."""
    rungs, told = list[JobProgress](), list[str]()

    def keep(now: JobProgress) -> None:
        if not any(now is own for own in rungs):
            rungs.append(now)
        look(now)

    result = Calibration(job, Budget(clips=clips)).run(keep, told.append)
    return result, sum(now.generated for now in rungs), told


@pytest.mark.usefixtures("quick_model")
def test_a_race_is_resumed_and_goes_on_with_a_larger_budget(joining_job: Job, tmp_path: Path) -> None:
    """Equal candidates are one; the budget holds; nothing is made twice; all that is known is in the output."""
    job = a_job(joining_job, tmp_path)
    first, made, told = calibrated(job, 17)
    assert {own.name for own in first.standings} == {PLAIN, "numina", "late", "s:strength=1.0", "s:strength=3.0"}
    assert first.clips == made <= 17
    assert made >= 15
    assert sum(own.prompts for own in first.standings) == made
    assert told[0].startswith("rung 1: 5 candidates left, on 1 prompts: 5 new clips, 0 are there, budget 17 clips")
    assert first.verdict == "not shown"
    assert first.chosen == "numina"
    assert first.agreement[0].of == "all nouns"
    assert Store.reader(job.output).rows().num_rows == made

    again, nothing, _ = calibrated(job, 17)
    assert nothing == 0
    assert again == first

    smaller, nothing, _ = calibrated(job, 6)
    assert nothing == 0
    assert sum(own.prompts for own in smaller.standings) >= 5

    more, new, _ = calibrated(job, 30)
    assert more.clips == made + new <= 30
    assert new >= 10
    assert (more.stopped, more.failed) == (False, 0)

    other = replace(job, variants={"new": replace(job.method, guide=replace(job.method.guide, strength=0.5))})
    with pytest.raises(ConfigError, match=r"budget is 3 clips, and the output has (\d+) clips of .*; give budget="):
        calibrated(other, 3)
    with pytest.raises(ConfigError, match=r"budget is 1e-09 rank-hours, and one prompt takes \S+ rank-hours with 3"):
        Calibration(other, Budget(hours=1e-9)).run(lambda now: None, told.append)


@pytest.mark.usefixtures("quick_model")
def test_a_signal_at_the_last_clip_of_a_rung_stops_the_race(joining_job: Job, tmp_path: Path) -> None:
    """The rung is done, but the race isn't: no other rung begins, and the next start goes on."""
    job = a_job(joining_job, tmp_path)

    def interrupt(now: JobProgress) -> None:
        if now.total and now.done >= now.total - 1 and not now.draining:
            os.kill(os.getpid(), signal.SIGINT)

    first, made, told = calibrated(job, 17, interrupt)
    assert first.stopped
    assert made <= 5
    assert len([line for line in told if line.startswith("rung")]) == 1
    again, new, _ = calibrated(job, 17)
    assert not again.stopped
    assert again.clips == made + new <= 17


def test_a_budget_below_a_clip_for_each(tiny_job: Job) -> None:
    """Is refused before anything starts."""
    with pytest.raises(ConfigError, match="budget is 1 clips, fewer than the 2 candidates"):
        Calibration(tiny_job(), Budget(clips=1))
