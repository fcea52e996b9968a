"""Workers of a Ray that a test starts are forks; those that would import otherwise aren't."""

import os
import sys
from collections.abc import Iterator

import psutil
import pytest
import ray

from tests.forks import HERE


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A Ray of one core, the second one of this process: the first leaves a variable behind."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.shutdown()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@ray.remote
def seen() -> tuple[int, bool, bool, str | None]:
    """A worker's parent, whether it has diffusers and our packages without having asked, and a variable."""
    own = any(name.partition(".")[0] in ("cluster", "pipelines", "numina") for name in sys.modules)
    return os.getppid(), "diffusers" in sys.modules, own, os.environ.get("HF_HUB_OFFLINE")


@pytest.mark.usefixtures("alone")
def test_libraries_come_from_a_fork_and_our_packages_do_not() -> None:
    """Else every rank of the tests would take seconds to start, or run code of another checkout."""
    parent, libraries, own, _ = ray.get(seen.remote())
    assert str(HERE / "server.py") in psutil.Process(parent).cmdline()
    assert (libraries, own) == (True, False)


@pytest.mark.usefixtures("alone")
def test_a_worker_of_another_environment_begins_as_ever() -> None:
    """Libraries read variables when they are imported, and a fork would have read others."""
    parent, libraries, _, offline = ray.get(
        seen.options(runtime_env={"env_vars": {"HF_HUB_OFFLINE": "1"}}).remote()  # type: ignore[attr-defined]
    )
    assert "raylet" in psutil.Process(parent).name()
    assert (libraries, offline) == (False, "1")
