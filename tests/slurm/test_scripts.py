"""slurm/: what a SLURM does with the two scripts; on a real one, with real Rays."""

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.dataset.store import Store
from cluster.prompts.write import make_prompts
from tests.cluster.conftest import TINY
from tests.slurm.conftest import ROOT, Slurm, wait_until

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
COUNTS, COLOURS = ("two", "three", "four"), ("red", "blue")
IDS = [f"{count}-{colour}" for count in COUNTS for colour in COLOURS]

# A `numina` that says what it was given and, where it is told to, waits for a signal.
FAKE = """#!/bin/bash
echo "given: $*"
trap 'echo heard USR2; exit {status}' USR2
trap 'echo heard TERM; exit {status}' TERM
while [[ -e wait ]]; do sleep 0.1; done
exit {status}
"""


@pytest.fixture
def job(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """What goes to `numina run`: clips of six prompts, whole seconds of work on one rank."""
    prompts = [
        {"id": f"{c}-{colour}", "prompt": f"{c} {colour} circles on a grey background"}
        for c in COUNTS
        for colour in COLOURS
    ]
    make_prompts(prompts, str(tmp_path / "prompts.parquet"))
    places = ["prompts=prompts.parquet", "output=dataset", f"model.path={tiny_checkpoint}"]
    return ["--config", "demo", *places, *TINY, "strategies=[baseline]", "parallel.ulysses=1"]


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[int], None]:
    """Puts a `numina` that ends with a status into the .venv of the folder of submission."""

    def put(status: int) -> None:
        command = tmp_path / ".venv/bin/numina"
        command.parent.mkdir(parents=True)
        command.write_text(FAKE.format(status=status))
        command.chmod(0o755)

    return put


def committed(folder: Path) -> int:
    return len(list((folder / "dataset/commits").rglob("*.parquet")))


def wait_for(slurm: Slurm, condition: Callable[[], object]) -> None:
    """Until something has come true of a job that runs; not for ever, and not where no job is left."""
    wait_until(lambda: condition() or not slurm.jobs(), 400, slurm.logs)
    assert condition(), slurm.logs()


def wait_for_words(slurm: Slurm, words: str, times: int = 1) -> None:
    """Until the jobs have printed something so many times."""
    wait_for(slurm, lambda: slurm.logs().count(words) >= times)


def assert_exact(folder: Path, samples: int) -> None:
    """Every sample of every prompt is there once."""
    rows = Store(str(folder / "dataset"), single_writer=True).rows().to_pylist()
    assert Counter(row["id"] for row in rows) == dict.fromkeys(IDS, samples)
    assert len({row["key"] for row in rows}) == len(rows) == samples * len(IDS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_bash(script: Path) -> None:
    """Both parse, and say how they are submitted."""
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert f"slurm/{script.name} --config" in script.read_text()


@pytest.mark.slow
def test_shares_are_told_from_the_array(slurm: Slurm, fake: Callable[[int], None]) -> None:
    """Ids that begin anywhere and have a step; what stands after the script goes to numina."""
    fake(0)
    array = slurm.submit("array.sbatch", "--config", "demo", "limit=3", options=("--array=3-7:2",))
    slurm.wait(array)
    given = [(slurm.folder / f"numina-{array}_{task}.log").read_text() for task in (3, 5, 7)]
    for index, log in enumerate(given):
        assert f"shard={index}/3 --config demo limit=3" in log
    assert slurm.field(f"{array}_7", "JobState") == "COMPLETED"


@pytest.mark.slow
def test_an_irregular_array_is_refused(slurm: Slurm, fake: Callable[[int], None]) -> None:
    """Shares that can't be told would leave prompts out."""
    fake(0)
    array = slurm.submit("array.sbatch", options=("--array=0,1,5",))
    slurm.wait(array)
    assert slurm.field(f"{array}_5", "ExitCode") == "2:0"
    assert "give one range, e.g. --array=0-2" in slurm.logs()
    assert "given" not in slurm.logs()


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
def test_an_array_makes_every_row_once(slurm: Slurm, job: list[str]) -> None:
    """Three tasks, three Rays, one output; one task is requeued in mid-work, one is drained and requeues itself."""
    array = slurm.submit("array.sbatch", *job, "samples=12", options=("--array=0-2", "--cpus-per-task=1"))
    wait_for_words(slurm, "gang-0 is ready", 3)
    wait_for(slurm, lambda: committed(slurm.folder) >= 3)
    slurm("scontrol", "requeue", f"{array}_0")
    slurm("scancel", "--batch", "--signal=USR2", f"{array}_1")
    slurm.wait(array)
    assert [slurm.field(f"{array}_{task}", "JobState") for task in range(3)] == ["COMPLETED"] * 3
    assert [slurm.field(f"{array}_{task}", "Restarts") for task in range(3)] == ["1", "1", "0"]
    assert_exact(slurm.folder, samples=12)


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
def test_a_cluster_is_drained_and_goes_on(slurm: Slurm, job: list[str]) -> None:
    """One Ray over two nodes, a gang on each: amid its work it is drained, requeued, and completes."""
    before = set(Path("/tmp").glob("numina.*"))
    overrides = ("samples=10", "generation.steps=12", "parallel.gangs=2")
    submitted = slurm.submit("cluster.sbatch", *job, *overrides, options=("--nodes=2", "--cpus-per-task=1"))
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
    assert set(Path("/tmp").glob("numina.*")) <= before, "what Ray left behind, on either node"
