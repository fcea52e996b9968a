"""Fixtures shared by all tests: tiny random checkpoints in the models' own folder layouts."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

# Threads that share out tensors this small wait for one another, up to fifty times as long on a busy machine. This is
# before torch's import, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

# No claim is about speed, and two processes share two cores.
settings.register_profile("numina", deadline=None)
settings.load_profile("numina")


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
