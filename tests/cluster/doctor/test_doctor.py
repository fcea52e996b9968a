"""`numina doctor`: what a job on this machine needs, by real checks."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.doctor.check import State, examine
from cluster.doctor.checks import CHECKS
from cluster.doctor.needs import Needs
from cluster.job.config import JobConfig
from tests.cluster.conftest import TINY

Job = Callable[..., JobConfig]


def doctor(*arguments: str, status: int) -> dict[str, dict[str, Any]]:
    """Lines of the table by their checks."""
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return {line["name"]: line for line in json.loads(result.output)}


def test_a_job_on_cpus_is_asked_for_nothing_of_gpus(tiny_job: Job, tmp_path: Path) -> None:
    """All that it needs is here; what it needn't isn't looked at; nothing is left behind."""
    job = tiny_job()
    before = sorted(tmp_path.rglob("*"))
    given = [f"prompts={job.prompts}", f"output={tmp_path}/new/out", f"model.path={job.model.path}", *TINY]
    found = doctor("--config", "demo", *given, status=0)
    busy = ("locale", "memory", "Ray")  # a machine of other tests may have little memory, and start Ray slowly
    assert {line["state"] for name, line in found.items() if name not in busy} == {"ok"}
    assert not {"GPUs", "xfuser", "torchao", "FlashAttention-3", "deepspeed", "hub"} & found.keys()
    assert found["prompts"]["found"].startswith("2 rows")
    assert f"{tmp_path}: create-if-absent works" in found["output"]["found"]
    assert found["between ranks"]["found"].startswith("gloo between 2 CPU ranks: all-reduce of ")
    assert re.search("runs a task|gave no answer", found["Ray"]["found"])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_job_on_gpus_fails_by_all_that_is_missing(tiny_job: Job, tmp_path: Path) -> None:
    """Each line with its remedy, none a traceback."""
    places = [f"output={tmp_path}/file/out", f"prompts={tmp_path}/none.parquet", "model.path=/nowhere/wan"]
    (tmp_path / "file").touch()
    found = doctor("--config", "wan14b", *places, "cluster.address=127.0.0.1:1", status=1)
    failing = {name for name, line in found.items() if line["state"] == "fails"}
    assert failing == {"GPUs", "xfuser", "prompts", "output", "Ray", "model"}
    assert "pip install 'numina-video[gpu]'" in found["xfuser"]["remedy"]
    assert "nothing answers at 127.0.0.1:1" in found["Ray"]["found"]
    assert not any("Traceback" in line["found"] or "itself failed" in line["found"] for line in found.values())


def test_without_a_job_nothing_that_is_optional_fails() -> None:
    """A machine without a GPU, or without the hub, is no fault: exit status 0; the table has a line per check."""
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for name in ("torch", "python", "GPUs", "xfuser", "Ray", "mp4", "clock"):
        assert f"\n{name} " in result.output


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """A cluster of two nodes; the second promises a GPU."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2, num_gpus=1)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the promised GPU is really there")
def test_every_node_of_a_cluster(two_nodes: str, tiny_job: Job, tmp_path: Path) -> None:
    """Each is asked, with what Ray counts on it; what isn't alike is shown with its nodes."""
    job = tiny_job()
    given = [f"prompts={job.prompts}", f"output={job.output}", f"model.path={job.model.path}", *TINY[:3]]
    there = ["doctor", "--on-cluster", "--config", "demo", *given, f"cluster.address={two_nodes}", "model.device=cuda"]
    result = CliRunner().invoke(app, [*there, "--json"], catch_exceptions=False)
    assert result.exit_code == 1, result.output
    lines = json.loads(result.output)
    nodes = {line["node"] for line in lines} - {None}
    assert len(nodes) == 2
    states = {node: {line["name"]: line["state"] for line in lines if line["node"] == node} for node in nodes}
    assert sorted(own["GPUs"] for own in states.values()) == ["fails", "ok"]
    assert sorted(own["xfuser"] for own in states.values()) == ["fails", "warning"]
    assert [own["output"] for own in states.values()] == ["ok", "ok"]
    [cluster] = [line for line in lines if line["name"] == "cluster"]
    assert cluster["found"].startswith("2 nodes with 1 GPUs and 4 CPUs; 1 gangs of 2 ranks want 2 GPUs")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".numina")]
    shown = CliRunner().invoke(app, there, catch_exceptions=False).output
    assert "2 nodes: checks that aren't ok on all of them" in shown
    assert "a run will fail:" in shown


def test_an_output_that_a_node_does_not_share(tmp_path: Path) -> None:
    """By a file that the driver has put there."""
    (tmp_path / "mark").touch()
    needs = Needs(output=str(tmp_path), output_mark=f"{tmp_path}/mark")
    [line] = examine({"output": CHECKS["output"]}, needs)
    assert line.state is State.OK
    (tmp_path / "mark").unlink()
    [line] = examine({"output": CHECKS["output"]}, needs)
    assert line.state is State.FAILS
    assert "give a folder that all nodes share" in line.remedy


def test_other_code_on_a_node() -> None:
    """Refused before a gang does."""
    [line] = examine({"python": CHECKS["python"]}, Needs(code="0" * 16))
    assert line.state is State.FAILS
    assert line.remedy == "install the same version of numina on all nodes"
