"""NCCL that can't reach anyone, as a wrong interface makes it: doctor and a job say so within a minute, by name."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.prompts.write import make_prompts
from tests.faults.jobs import numbered_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.timeout(400),
]

SECONDS = 60.0  # in which a broken environment is to be told
WRONG = {"NCCL_SOCKET_IFNAME": "=nowhere0"}
GANG = ["parallel.ulysses=2", "model.device=cuda"]


def numina(*words: str, environment: dict[str, str] | None = None) -> tuple[int, str, float]:
    """Exit status, output, and seconds of a command."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    seconds = time.monotonic() - began
    print(f"$ numina {' '.join(words)}\n{done.stdout}\nexit status {done.returncode} after {seconds:.1f} s", flush=True)
    return done.returncode, done.stdout, seconds


def test_doctor_measures_nccl_and_names_a_wrong_interface() -> None:
    status, said, seconds = numina("doctor", "--config", "testbed", *GANG)
    assert "NCCL between" in said
    status, said, seconds = numina("doctor", "--config", "testbed", *GANG, environment=WRONG)
    assert status == 1
    assert "nowhere0" in said
    assert seconds < SECONDS


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray head whose workers have the wrong interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}", "--include-dashboard=false", "--block"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options]
    with (tmp_path / "head").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | WRONG, stdout=log, stderr=subprocess.STDOUT)
    while "Ray runtime started" not in (tmp_path / "head").read_text():
        assert process.poll() is None, (tmp_path / "head").read_text()
        time.sleep(0.2)
    yield address
    process.terminate()
    process.wait(60)


def test_doctor_on_a_cluster_names_the_nodes_wrong_interface(head: str) -> None:
    """What counts is what Ray's workers have, not the driver's environment."""
    status, said, seconds = numina("doctor", "--config", "testbed", "--on-cluster", *GANG, f"cluster.address={head}")
    assert status == 1
    assert "nowhere0" in said
    assert seconds < SECONDS


def test_a_job_ends_before_its_first_clip(tmp_path: Path) -> None:
    """Ranks that can't meet end the job with the reason, instead of being started again and again."""
    make_prompts(numbered_prompts(2), str(tmp_path / "prompts.parquet"))
    places = [f"prompts={tmp_path}/prompts.parquet", f"output={tmp_path}/out", "cluster.address=local"]
    status, said, seconds = numina("run", "--config", "testbed", *places, *GANG, environment=WRONG)
    assert status == 1
    assert not list((tmp_path / "out").glob("videos/*"))
    assert "nowhere0" in said
    assert seconds < SECONDS
