"""slurm/: nodes that are to leave. A notice is heard, clips in progress end, and the job is queued again."""

import subprocess
from collections.abc import Callable

import pytest

from cluster.dataset.store import Store
from tests.slurm.conftest import Slurm, assert_exact, committed, wait_for, wait_for_words

pytestmark = pytest.mark.slow


@pytest.fixture
def once(own_tmpdir: dict[str, str]) -> dict[str, str]:
    """What jobs are submitted with: they are requeued for a preemption alone."""
    return {"NUMINA_REQUEUES": "0", **own_tmpdir}


def preempt(slurm: Slurm) -> None:
    """A job that is more urgent takes both nodes for a moment: in 25 s, or as soon as they are free."""
    slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "true")


def steps_of(slurm: Slurm, job: str, number: int) -> list[list[str]]:
    """The id and the node of a job's steps beside its script, once there are so many."""

    def steps() -> list[list[str]]:
        lines = slurm("squeue", "--noheader", "--steps", "--jobs", job, "--format=%i %N").splitlines()
        return [line.split() for line in lines if ".batch" not in line]

    wait_for(slurm, lambda: len(steps()) == number)
    return steps()


def signal_steps(slurm: Slurm, where: str) -> None:
    """SIGUSR2 to a step or to all of a job's. With two slurmd on a host, scancel says that one of them lacks it."""
    subprocess.run(["scancel", "--signal=USR2", where], env=slurm.environment, check=False, capture_output=True)


def test_a_task_is_told_of_its_preemption(slurm: Slurm, fake: Callable[[int], None], once: dict[str, str]) -> None:
    """SLURM tells steps alone. numina hears of it, ends what it does, and the task is queued again: not for the last
    time."""
    fake(3)
    (slurm.folder / "wait").touch()
    array = slurm.submit("array.sbatch", options=("--array=0-0",), **once)
    for runs in (1, 2):
        wait_for_words(slurm, "given", runs)
        steps_of(slurm, array, 1)
        preempt(slurm)
        wait_for_words(slurm, "heard USR2", runs)
    wait_for_words(slurm, "given", 3)
    (slurm.folder / "wait").unlink()
    slurm.wait()
    assert slurm.field(f"{array}_0", "Restarts") == "2"
    assert "heard TERM" not in slurm.logs()


def test_a_signal_to_all_steps_asks_as_one_to_the_script(
    slurm: Slurm, fake: Callable[[int], None], once: dict[str, str]
) -> None:
    """`scancel --signal=USR2` without `--batch`. It counts as a requeue of the job's own."""
    fake(3)
    (slurm.folder / "wait").touch()
    submitted = slurm.submit("array.sbatch", options=("--array=0-0",), **once)
    wait_for_words(slurm, "given")
    steps_of(slurm, submitted, 1)
    signal_steps(slurm, submitted)
    slurm.wait(submitted)
    assert "heard USR2" in slurm.logs()
    assert "not requeued again (NUMINA_REQUEUES=0)" in slurm.logs()


def test_a_cluster_is_preempted_and_then_loses_a_node(slurm: Slurm, job: list[str], once: dict[str, str]) -> None:
    """One Ray over two nodes, a gang on each. SLURM wants both nodes, and the job's steps get SIGTERM; in the next run
    one node gets notice, and its gang ends. No clip is lost, blamed or made twice."""
    overrides = ("samples=12", "generation.steps=12", "parallel.gangs=2")
    submitted = slurm.submit("cluster.sbatch", *job, *overrides, options=("--nodes=2", "--cpus-per-task=1"), **once)
    wait_for_words(slurm, "is ready", 2)
    wait_for(slurm, lambda: committed(slurm.folder) >= 3)
    steps_of(slurm, submitted, 2)
    preempt(slurm)
    wait_for(slurm, lambda: slurm.field(submitted, "Restarts") == "1")
    done = committed(slurm.folder)
    assert "SIGUSR2: finishing clips in progress" in slurm.logs()
    wait_for_words(slurm, "is ready", 4)
    [worker] = [step for step, node in steps_of(slurm, submitted, 2) if node == "two"]
    signal_steps(slurm, worker)
    wait_for_words(slurm, "begins nothing new: its node is to leave in 1")
    slurm.wait()
    assert slurm.field(submitted, "JobState") == "COMPLETED", slurm.logs()
    assert " is lost" not in slurm.logs()
    assert " is gone" not in slurm.logs()
    assert 3 <= done < 6 * 12
    assert_exact(slurm.folder, samples=12)
    rows = Store(str(slurm.folder / "dataset"), single_writer=True).rows().to_pylist()
    assert not any(row["retries"] or row["lost_seconds"] for row in rows)
