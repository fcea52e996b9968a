"""Workers of a Ray that a test starts are forks; those that would import otherwise aren't."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import psutil
import pytest
import ray

from tests.forks import HERE, called, family, words
from tests.slurm.conftest import wait_until

# A job of its own, which waits with its Ray until it is ended.
JOB = """
import os, sys, time, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
worker = ray.remote(lambda: (os.getppid(), "diffusers" in sys.modules))
print(*ray.get(worker.remote()), flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A Ray of one core, the second one of this process: the first leaves a variable behind."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.shutdown()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@ray.remote
def seen(variable: str = "") -> tuple[int, bool, bool, bool, str | None]:
    """A worker's parent, whether it has diffusers, torch and our packages without having asked, and a variable."""
    own = any(name.partition(".")[0] in ("cluster", "pipelines", "numina") for name in sys.modules)
    return os.getppid(), "diffusers" in sys.modules, "torch" in sys.modules, own, os.environ.get(variable)


@pytest.mark.usefixtures("alone")
def test_libraries_come_from_a_fork_and_our_packages_do_not() -> None:
    """Else every rank of the tests would take seconds to start, or run code of another checkout."""
    parent, libraries, torch, own, _ = ray.get(seen.remote())
    assert str(HERE / "server.py") in psutil.Process(parent).cmdline()
    assert (libraries, torch, own) == (True, True, False)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("variable", "forked"), [("HF_HUB_OFFLINE", True), ("TORCH_HOME", False)])
def test_a_worker_of_another_environment_imports_what_reads_it(variable: str, forked: bool) -> None:
    """Libraries read variables when they are imported, and a fork would have read others: one of the hub's gets a fork
    without those that read it, any other one begins as ever."""
    parent, libraries, torch, _, found = ray.get(
        seen.options(runtime_env={"env_vars": {variable: "1"}}).remote(variable)  # type: ignore[attr-defined]
    )
    command = psutil.Process(parent).cmdline()
    assert command[-1].endswith("/bare") if forked else "raylet" in command[0]
    assert (libraries, torch, found) == (False, forked, "1")


@cache
def mounts() -> bool:
    """Whether a process may have disks of its own here."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("before", [(), ("unshare", "-m")], ids=["", "disks of its own"])
def test_a_job_in_another_process_has_forks_too(before: tuple[str, ...]) -> None:
    """They are of its family and end with it. A job that sees other disks has none: forks would see the tests'."""
    if before and not mounts():
        pytest.skip("disks of a process's own need root")
    with subprocess.Popen([*before, sys.executable, "-c", JOB], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        parent, libraries = job.stdout.readline().split()
        workers = called("ray::", family(job.pid))
        assert ("server.py" in " ".join(psutil.Process(int(parent)).cmdline())) == (not before)
        assert libraries == str(not before)
        assert {*psutil.Process(int(parent)).children()} & {*workers}
        ending = [process for process in workers if "Agent" not in "".join(words(process)[:1])]
        job.send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(ending, timeout=60)[1]


def test_a_process_that_ends_between_two_looks() -> None:
    """Processes come and go while a test counts them."""
    living, ending = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    try:
        both = [psutil.Process(living.pid), psutil.Process(ending.pid)]
        wait_until(lambda: called("sleep", both) == both, 30)
        ending.kill()
        wait_until(lambda: both[1].status() == psutil.STATUS_ZOMBIE, 30)
        assert words(both[1]) == []  # not waited for yet
        ending.wait()
        assert (words(both[1]), called("sleep", both)) == ([], both[:1])
    finally:
        living.kill()
        ending.kill()
        living.wait()
