"""`make install`: with an NVIDIA GPU it brings the extra `gpu` from its own lock, without one PyTorch's CPU build."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def commands(folder: Path, *, gpu: bool) -> str:
    """What `make install` would run where `nvidia-smi` finds a GPU, or none."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nexit {0 if gpu else 9}\n")
    tool.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "--directory", str(ROOT), "install"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_gpu_brings_its_extra(tmp_path: Path) -> None:
    """Its lock, and no index of CPU builds."""
    with_gpu, without = commands(tmp_path, gpu=True), commands(tmp_path, gpu=False)
    assert "-r requirements.lock -r requirements-gpu.lock" in with_gpu
    assert "whl/cpu" not in with_gpu
    assert "requirements-gpu.lock" not in without
    assert "whl/cpu" in without


def test_the_lock_pins_what_the_extra_asks_for() -> None:
    """Each of its packages in a version that it allows, and nothing that the other lock has."""
    pins = {}
    for name in ("requirements", "requirements-gpu"):
        lines = (ROOT / f"{name}.lock").read_text().splitlines()
        pins[name] = dict(line.lower().replace("_", "-").split("==") for line in lines)
    assert not pins["requirements"].keys() & pins["requirements-gpu"].keys()
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    for asked in map(Requirement, extra):
        assert asked.specifier.contains(pins["requirements-gpu"][asked.name])
    assert any(name.startswith("nvidia-cudnn") for name in pins["requirements-gpu"])
