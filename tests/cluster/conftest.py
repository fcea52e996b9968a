"""A small job on the tiny checkpoint, and a hand on its processes."""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

import cluster.runtime.run
import cluster.workers.rank
from cluster.job.config import JobConfig, load_job
from cluster.prompts.write import make_prompts
from tests.faults.quick_job import QuickRank
from tests.forks import called, family

PROMPTS = [
    {"id": "pair", "prompt": "three red circles and two blue squares moving on a grey background", "source": "test"},
    {"id": "single", "prompt": "one green cross drifting on a white background", "seed": 7, "source": "test"},
]
TINY = ["generation.height=64", "generation.width=64", "generation.steps=4", "model.device=cpu"]


@pytest.fixture
def tiny_job(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., JobConfig]:
    """A job over two prompts, with overrides."""
    make_prompts(PROMPTS, str(tmp_path / "prompts.parquet"))

    def job(*overrides: str) -> JobConfig:
        places = [f"prompts={tmp_path}/prompts.parquet", f"output={tmp_path}/out", f"model.path={tiny_checkpoint}"]
        return load_job("demo", [*places, *TINY, *overrides])

    return job


@pytest.fixture(scope="module")
def cluster_address() -> Iterator[str]:
    """A Ray cluster of four cores."""
    head = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    yield head.address
    head.shutdown()


@pytest.fixture(scope="module")
def joined(cluster_address: str) -> Iterator[str]:
    """That cluster, joined until the module's last test: worker processes serve one job after the other, and import
    torch once. Ray loses the actors of a driver that joins the same cluster again: each module has its own."""
    ray.init(address=cluster_address, log_to_driver=False, configure_logging=False)
    yield cluster_address
    ray.shutdown()


@pytest.fixture
def joining_job(
    tiny_job: Callable[..., JobConfig], joined: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., JobConfig]:
    """A job on that cluster, which it neither joins nor leaves."""
    monkeypatch.setattr(cluster.runtime.run, "ray_cluster", lambda *given: nullcontext())
    monkeypatch.setattr(cluster.runtime.run, "reachable", lambda address: address)
    return lambda *overrides: tiny_job(f"cluster.address={joined}", *overrides)


@pytest.fixture
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks make clips without a model. All else of a job is real: for what depends on no clip."""
    monkeypatch.setattr(cluster.workers.rank, "Rank", QuickRank)


def processes(title: str) -> list[psutil.Process]:
    """The living workers of this process's Ray that call themselves `ray::{title}`."""
    return called(f"ray::{title}", family(os.getpid()))
