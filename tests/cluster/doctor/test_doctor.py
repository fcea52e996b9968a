"""`numina doctor`: what a job on this machine needs, by real checks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cluster.cli.app import app
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
    assert {line["state"] for name, line in found.items() if name not in ("locale", "memory")} == {"ok"}
    assert not {"GPUs", "xfuser", "torchao", "FlashAttention-3", "deepspeed", "hub"} & found.keys()
    assert found["prompts"]["found"].startswith("2 rows")
    assert f"{tmp_path}: create-if-absent works" in found["output"]["found"]
    assert found["between ranks"]["found"].startswith("gloo between 2 CPU ranks: all-reduce of ")
    assert "runs a task" in found["Ray"]["found"]
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
    """A machine without a GPU, or without the hub, is told so, with exit status 0; the table has a line per check."""
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for name in ("torch", "python", "GPUs", "xfuser", "Ray", "mp4", "clock"):
        assert f"\n{name} " in result.output
