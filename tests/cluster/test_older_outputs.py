"""An output that an earlier version wrote is resumed, reported, summed up and exported by this one.

`tests/outputs/VERSION` holds one of each version that was released, made by that version with

    numina run --config demo limit=2 strategies=[baseline,numina+verified] verify.attempts=2 verify.accept=1.0 \
        generation.steps=6 parallel.ulysses=1 output=out
    numina evaluate out
"""

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.job.config import load_job
from cluster.job.prepared import prepare
from cluster.observability.status import status_of
from cluster.rows import ROW_SCHEMA
from cluster.runtime.run import run_job
from numina.errors import OutputError

OUTPUTS, CONFIGS = Path(__file__).parents[1] / "outputs", Path(__file__).parents[2] / "configs"
VERSIONS = sorted(folder.name for folder in OUTPUTS.iterdir())
MADE_BY = ["limit=2", "strategies=[baseline,numina+verified]", "verify.attempts=2", "verify.accept=1.0"]
MADE_BY += ["generation.steps=6", "parallel.ulysses=1"]


@pytest.fixture(params=VERSIONS)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A copy of an output that the version of the parameter wrote."""
    return str(shutil.copytree(OUTPUTS / request.param, tmp_path / "out"))


def test_there_is_an_output_of_each_version() -> None:
    """So that the tests below look at something."""
    assert "0.1.0" in VERSIONS


def test_an_older_output_has_nothing_left_to_do(older: str) -> None:
    """Keys, digests and verdicts mean what they meant: no clip is made again, no sample is judged again."""
    outcome = run_job(prepare(load_job("demo", [*MADE_BY, f"output={older}"])))
    assert (outcome.total, outcome.done, outcome.left, outcome.generated, outcome.failed) == (4, 4, 0, 0, 0)


def test_an_older_output_keeps_the_preset_that_was_the_default(older: str, tmp_path: Path) -> None:
    """A job that names no preset goes on with the one of its output; one that names another is refused."""
    demo = OmegaConf.load(CONFIGS / "demo.yaml")
    del demo["method"]
    OmegaConf.save(demo, tmp_path / "own.yaml")
    command = ["run", "--config", str(tmp_path / "own.yaml"), *MADE_BY, f"output={older}"]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, "nothing to do" in done.output) == (0, True), done.output
    with pytest.raises(OutputError, match=r"method\.identify\.source: \"peaks\" there, \"fused\" now"):
        CliRunner().invoke(app, [*command, "method.preset=fused"], catch_exceptions=False)


def test_rows_of_older_outputs_have_all_columns(older: str) -> None:
    """Those that the version didn't know are null."""
    rows = Store.reader(older).rows()
    assert rows.schema.names[: len(ROW_SCHEMA.names)] == ROW_SCHEMA.names
    assert len(rows) == 5
    assert rows["prompt"].null_count == 0
    for name in ("gpu_name", "torch_version", "attention_kernel", "confidences", "left_alone", "lost_seconds"):
        assert rows[name].null_count == len(rows)
    status = status_of(Store.reader(older))
    assert (status.done, status.completed, status.asked, status.left) == (5, 4, 4, 0)


@pytest.mark.parametrize(
    ("verb", "result"),
    [
        (["evaluate", "OUT"], "evaluations/summary.json"),
        (["report", "OUT"], "report.html"),
        (["export", "OUT", "--to", "hf", "--output", "OUT/hf"], "hf/README.md"),
        (["trace", "OUT", "--output", "OUT/trace.json"], "trace.json"),
        (["gc", "OUT"], "run.json"),
        (["status", "OUT"], "run.json"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_verb_reads_an_older_output(older: str, verb: list[str], result: str) -> None:
    """And its verdicts are taken as they are: none is made again."""
    verdicts = Store(older).evaluations("counter")  # with the seconds that each took
    done = CliRunner().invoke(app, [word.replace("OUT", older) for word in verb], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert Path(older, result).stat().st_size > 100
    assert Store(older).evaluations("counter").equals(verdicts)
    assert len(Store.reader(older).rows()) == 5
