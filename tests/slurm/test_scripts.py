"""slurm/: what a SLURM does with the two scripts; on a real one, with real Rays."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, Slurm, assert_exact, committed, wait_for, wait_for_words, wait_until

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_bash(script: Path) -> None:
    """Both parse, and say how they are submitted."""
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert f"slurm/{script.name} --config" in script.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("status", "requeues"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_only_work_that_is_left_is_requeued_and_once(
    slurm: Slurm, fake: Callable[[int], None], status: int, requeues: int
) -> None:
    """Done, failed clips and wrong input aren't; nor is a job that would be requeued for ever."""
    fake(status)
    (slurm.folder / "wait").touch()
    array = slurm.submit("array.sbatch", options=("--array=0-1",))
    task = f"{array}_0"
    for runs in range(1, requeues + 2):
        wait_for_words(slurm, "given", runs + 1)
        slurm("scancel", "--batch", "--signal=USR2", task)
        wait_for_words(slurm, "heard", runs)
    wait_until(lambda: slurm.field(task, "JobState") in ("COMPLETED", "FAILED"), 100, slurm.logs)
    assert slurm.field(task, "Restarts") == str(requeues)
    assert slurm.field(task, "ExitCode") == f"{status}:0"
    assert slurm.field(f"{array}_1", "JobState") == "RUNNING", "the array's other task is left alone"
    (slurm.folder / "wait").unlink()
    slurm.wait(array)


@pytest.mark.slow
def test_a_cancelled_task_is_not_requeued(slurm: Slurm, fake: Callable[[int], None]) -> None:
    """`scontrol requeue` would bring even a cancelled job back."""
    fake(3)
    (slurm.folder / "wait").touch()
    array = slurm.submit("array.sbatch", options=("--array=0-0",))
    wait_for_words(slurm, "given")
    slurm("scancel", array)
    wait_for_words(slurm, "heard TERM")
    slurm.wait(array)
    assert slurm.field(array, "JobState") == "CANCELLED"
    assert slurm.field(array, "Restarts") == "0"


@pytest.mark.slow
def test_a_time_limit_is_heard_of_before_it_is_there(slurm: Slurm, fake: Callable[[int], None]) -> None:
    """SLURM's warning reaches numina, and what is left is requeued. This numina waits as long as that takes."""
    fake(3)
    (slurm.folder / "wait").touch()
    options = ("--nodes=2", "--cpus-per-task=1", "--time=10", "--signal=B:USR2@60")
    job = slurm.submit("cluster.sbatch", options=options)
    wait_for_words(slurm, "given")
    slurm("scontrol", "update", f"JobId={job}", "EndTime=now+60")  # SLURM looks at it every 30 seconds
    wait_for_words(slurm, "heard USR2")
    (slurm.folder / "wait").unlink()
    wait_until(lambda: slurm.field(job, "Restarts") == "1", 200, slurm.logs)
    slurm("scancel", job)
    slurm.wait(job)


@pytest.mark.slow
def test_a_cluster_is_drained_and_goes_on(slurm: Slurm, job: list[str], own_tmpdir: dict[str, str]) -> None:
    """One Ray over two nodes, a gang on each: amid its work it is drained, requeued, and completes."""
    overrides = ("samples=10", "generation.steps=12", "parallel.gangs=2")
    options = ("--nodes=2", "--cpus-per-task=1")
    submitted = slurm.submit("cluster.sbatch", *job, *overrides, options=options, **own_tmpdir)
    wait_for(slurm, lambda: committed(slurm.folder) >= 3)
    slurm("scancel", "--batch", "--signal=USR2", submitted)
    wait_for(slurm, lambda: slurm.field(submitted, "Restarts") == "1")
    done = committed(slurm.folder)
    slurm.wait(submitted)
    assert slurm.field(submitted, "JobState") == "COMPLETED", slurm.logs()
    assert slurm.field(submitted, "Restarts") == "1"
    assert "SIGUSR2: finishing clips in progress" in slurm.logs()
    assert 3 <= done < 6 * 10
    assert_exact(slurm.folder, samples=10)
