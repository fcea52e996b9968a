"""slurm/array.sbatch: shares of the prompts, by the array's ids; on a real SLURM, with real Rays."""

from collections.abc import Callable

import pytest

from tests.slurm.conftest import Slurm, assert_exact, committed, wait_for, wait_for_words


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
