"""A job that names no preset goes on with the one that its output was begun with."""

import json
from pathlib import Path

import pytest

from cluster.job.begun import as_begun
from cluster.job.config import load_job
from cluster.keys import canonical_json

PEAKS = "method.identify.source=peaks"


def begun(output: Path, *overrides: str) -> None:
    """An output as a job with these overrides leaves it before its first clip."""
    job = load_job("testbed", overrides)
    output.mkdir()
    config = json.loads(canonical_json(job.identity("float32")))
    (output / "run.json").write_text(json.dumps({"format": "numina-output/1", "config": config}))


@pytest.mark.parametrize(
    ("before", "now", "preset"),
    [
        (["method.preset=closed"], [], "closed"),  # an earlier version's default
        (["method.preset=closed", "method.guide.add=4"], ["method.guide.add=4"], "closed"),
        ([], [], "fused"),
        ([PEAKS], [PEAKS], "fused"),  # this version's default, with another source
        (["method.preset=paper"], [], "fused"),  # was named: not an earlier default, and refused later
        (["method.preset=closed"], ["method.preset=fused"], "fused"),
        (["method.preset=closed"], ["method.preset=quick"], "quick"),
    ],
)
def test_the_preset_of_a_later_start(tmp_path: Path, before: list[str], now: list[str], preset: str) -> None:
    """Only where the job leaves it open, and the output has an earlier version's default."""
    begun(tmp_path / "out", *before)
    overrides = [*now, f"output={tmp_path / 'out'}"]
    job = as_begun(load_job("testbed", overrides), "testbed", overrides)
    assert job.method.preset == preset
    if before[-len(now) :] == now:
        assert job.method.guide.add == load_job("testbed", [*before]).method.guide.add


def test_a_new_output_has_the_default(tmp_path: Path) -> None:
    """There is nothing to go on with."""
    overrides = [f"output={tmp_path / 'new'}"]
    job = load_job("testbed", overrides)
    assert as_begun(job, "testbed", overrides) is job
