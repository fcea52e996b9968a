"""The command line: every verb on a real, tiny job; errors say what to do and set the exit status."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.job import JobConfig
from cluster.promptset import make_prompts
from cluster.store import Store
from numina.errors import InputError
from tests.cluster.conftest import TINY

Job = Callable[..., JobConfig]


def numina(*arguments: str) -> str:
    """A verb's output; its errors are raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def arguments(job: JobConfig) -> list[str]:
    return [f"prompts={job.prompts}", f"output={job.output}", f"model.path={job.model.path}", *TINY]


def test_plan_says_what_a_job_takes(tiny_job: Job) -> None:
    """Gangs, ranks, tokens and videos, without starting anything."""
    output = numina("plan", "--config", "demo", *arguments(tiny_job()))
    assert "1 × 2 ranks" in output
    assert "80 per clip, 40 per rank" in output
    assert "not measured for this model" in output
    assert not Path(tiny_job().output).exists()


def test_generate_writes_one_mp4(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One prompt, one file, and what was identified."""
    places = [f"model.path={tiny_checkpoint}", *TINY]
    output = numina("generate", "two red circles", "--output", str(tmp_path / "clip.mp4"), "--seed", "3", *places)
    assert (tmp_path / "clip.mp4").stat().st_size > 1000
    assert "17 frames, identified counts" in output
    plain = numina("generate", "two red circles", "--plain", "-o", str(tmp_path / "plain.mp4"), *places)
    assert "without NUMINA" in plain


def test_run_status_evaluate_report(tiny_job: Job, tmp_path: Path) -> None:
    """The life of a dataset by its verbs; a second run has nothing to do, one with variants makes their rows only."""
    given, output = [*arguments(tiny_job()), "parallel.ulysses=1", "method.guide.add=6"], str(tmp_path / "out")
    assert "4 of 4 videos" in numina("run", "--config", "demo", *given)
    assert "nothing to do" in numina("run", "--config", "demo", *given)
    assert "4 done, 0 failed, 0 left of 4" in numina("status", output)

    variants = ["variants.grid.guide.add=[6,12]", "parallel.batch=2"]  # 6 is numina itself
    ran = numina("run", "--config", "demo", *given, *variants)
    assert "6 of 6 videos" in ran
    assert "2 generated now" in ran
    assert "6 done, 0 failed, 0 left of 6" in numina("status", output)
    rows = Store(output).rows().to_pylist()
    strategies = {"baseline", "numina", "grid:add=12"}
    assert {(row["id"], row["strategy"]) for row in rows} == set(product(("pair", "single"), strategies))
    assert len({row["config_hash"] for row in rows}) == 3

    table = numina("evaluate", output)
    assert all(f"CountAcc {strategy}: " in table for strategy in strategies)
    assert "report.html" in numina("report", output)
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(strategy in page for strategy in strategies)


def test_prompts_make_and_check(tmp_path: Path) -> None:
    """A made set checks; its targets can be written out; making it again is refused."""
    made, filled = str(tmp_path / "made.parquet"), str(tmp_path / "filled.parquet")
    assert "12 prompts" in numina("prompts", "make", made, "-n", "12")
    output = numina("prompts", "check", made, "--write", filled)
    assert output.count("background") == 12
    assert "12 rows" in output
    with pytest.raises(InputError, match="exists"):
        numina("prompts", "make", made)


def test_models_check(tiny_checkpoint: Path) -> None:
    """What a folder is, and the degrees it runs at."""
    assert "3 blocks, 4 heads of 16" in numina("models", "check", str(tiny_checkpoint))


def test_failures_set_the_exit_status(tiny_job: Job, tmp_path: Path) -> None:
    """A job with a video that can't be made ends with status 1 and says where the reason is."""
    row = {"prompt": f"{'red ' * 30}circles", "targets": [{"noun": "circles", "count": 3}]}  # cut off after 24 tokens
    make_prompts([row], str(tmp_path / "long.parquet"))
    long = [*arguments(tiny_job()), f"prompts={tmp_path}/long.parquet", "parallel.ulysses=1", "strategies=[numina]"]
    result = CliRunner().invoke(app, ["run", "--config", "demo", *long])
    assert result.exit_code == 1
    assert "0 of 1 videos" in result.output
    assert "/failures" in result.output


def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback: the value, the rule, the remedy."""
    from cluster.cli import main

    monkeypatch.setattr("sys.argv", ["numina", "plan", "--config", "demo", "generation.steps=0"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err.strip() == "error: generation.steps is 0; at least one step is needed"
