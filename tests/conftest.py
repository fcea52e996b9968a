"""Fixtures shared by all tests: tiny random checkpoints in the models' own folder layouts."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

# Threads that share out tensors this small wait for one another, up to fifty times as long on a busy machine. This is
# before torch's import, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray ends task processes beyond one per core that were idle for a second, which is soon over on a busy machine, and the
# next task waits until another one has imported all.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")

import torch
from hypothesis import settings

from tests.forks import forked_workers

# Imports and collection make what lives as long as the process: walking through it again and again takes half of their
# CPU time.
gc.disable()

# No claim is about speed, and several processes share two cores.
settings.register_profile("numina", deadline=None)
settings.load_profile("numina")


# Files of minutes begin first, the longest ones at the very first, so that none is left alone at the end.
LONG = (
    "slurm/test_scripts.py",
    "slurm/test_notice.py",
    "faults/test_jobs.py",
    "runtime/test_job_submit.py",
    "runtime/test_verified.py",
    "slurm/test_array.py",  # not beside the others of SLURM: each starts several Rays
    "pipelines/testbed/test_train.py",
    "faults/test_ordinary_user.py",
    "runtime",
    "test_readme.py",
    "doctor",
    "job",
    "cli",
    "calibration",
    "test_without_pandas.py",
    "faults/test_s3_trouble.py",
    "pipelines/testbed/test_weights.py",
    "pipelines/video/test_decode.py",
    "pipelines/parallel/test_shard.py",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file without a slow test needn't be imported where these alone are asked for."""
    asked, slow = config.option.markexpr == "slow", "mark.slow"
    return True if asked and collection_path.suffix == ".py" and slow not in collection_path.read_text() else None


def pytest_collection_finish() -> None:
    """From now on garbage is collected, and what was imported is left out."""
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, in that order; all else stays in its own."""
    places = [Path(__file__).parent / name for name in ("", "cluster")]

    def rank(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONG) if any(item.path.is_relative_to(p / name) for p in places)), 99)

    items.sort(key=rank)


def pytest_configure(config: pytest.Config) -> None:
    """Ray's workers needn't import what others did before them: one server for all processes of the tests."""
    if not hasattr(config, "workerinput"):
        servers = ExitStack()
        servers.enter_context(forked_workers())
        config.add_cleanup(servers.close)


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """The process's logging as it was: verbs set it up, and another test counts warnings."""
    root, hook = logging.getLogger(), sys.excepthook
    level, handlers = root.level, root.handlers[:]
    yield
    root.handlers, root.level, sys.excepthook = handlers, level, hook
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint, by its name in `tests.twins`; each is built once."""

    @cache
    def build(name: str) -> Path:
        from tests.twins import build_twin

        return build_twin(name, tmp_path_factory.mktemp("twin") / name)

    return build


@pytest.fixture(scope="session")
def tiny_checkpoint(twin: Callable[[str], Path]) -> Path:
    """A random Wan2.1 checkpoint of the embedded model's classes: 3 blocks, 4 heads of 16; loads in under a second."""
    return twin("wan2.1-1.3b")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before the test counts in it, and nothing of it stays."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
