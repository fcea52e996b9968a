"""Rows without counts on a real Ray: a plain clip under every strategy, no figure about counts, nothing made twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.evaluation.outcomes import outcomes, strategies_of
from cluster.evaluation.summary import compare_outputs
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.observability.status import status_of
from cluster.prompts.write import make_prompts
from cluster.report import build_report
from cluster.runtime.run import run_job
from numina.errors import InputError, OutputError
from tests.cluster.tasks import tasks_of

Job = Callable[..., JobConfig]

COUNTED = {"id": "counted", "prompt": "two red circles moving on a grey background"}
SEA = {"id": "sea", "prompt": "waves on the sea", "targets": []}
CALM = {"id": "calm", "prompt": "a sense of calm with two red circles", "targets": []}  # says so, whatever is read
ALL = [
    "strategies=[baseline,numina,prompt_enhancement,seed_search,numina+verified,numina+prompt_enhancement]",
    *("search.seeds=3", "verify.attempts=2", "parallel.ulysses=1", "generation.steps=3", "parallel.batch=2"),
]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def made(joining_job: Job, quick_model: None, tmp_path: Path) -> Callable[..., JobConfig]:
    """A job that has run over these rows."""

    def make(*rows: dict[str, object], overrides: list[str] = ALL) -> JobConfig:
        path = tmp_path / "mixed.parquet"
        if not path.exists():
            make_prompts(rows, str(path))
        return joining_job(*overrides, f"prompts={path}")

    return make


def test_every_strategy_makes_one_plain_clip(made: Callable[..., JobConfig], tmp_path: Path) -> None:
    """A row and a file for each strategy, nothing identified and nothing judged; a seed search has nothing to search.

    The verified one is accepted at once; the same command again makes nothing, and needs no gang.
    """
    job = made(COUNTED, SEA, CALM)
    outcome = run_job(prepare(job))
    assert (outcome.failed, outcome.left) == (0, 0)
    store = Store(job.output)
    rows = store.rows().to_pylist()
    for id in ("sea", "calm"):
        plain = [row for row in rows if row["id"] == id]
        assert sorted((row["strategy"], row["attempt"]) for row in plain) == [
            ("baseline", 0),
            ("numina", 0),
            ("numina+prompt_enhancement", 0),
            ("prompt_enhancement", 0),
        ]
        for row in plain:
            assert (row["targets"], row["guided"], row["identified"], row["layout_file"]) == ([], False, None, None)
            assert (row["prompt"], row["seed"]) == (plain[0]["prompt"], plain[0]["seed"])
            assert (tmp_path / "out" / row["file_name"]).is_file()
    assert len([row for row in rows if row["id"] == "counted" and row["strategy"] == "baseline"]) == 3
    verdicts = {row["key"]: row for row in store.evaluations("counter").to_pylist()}
    assert {row["id"] for row in rows if row["key"] in verdicts} == {"counted"}
    kept = {own.name: outcomes(own, rows, verdicts) for own in strategies_of(store, rows)}
    assert {
        name: sum(own.accepted is True for own in some if own.plain) for name, some in kept.items()
    } == dict.fromkeys(kept, 2)

    status = status_of(store)
    assert (status.left, status.plain, status.skipped) == (0, 8, 0)
    assert "(8 of prompts without counts), 0 failed, 0 left" in invoke("status", job.output)
    gangs: list[str] = []
    again = run_job(prepare(job), lambda progress: gangs.extend(progress.gangs))
    assert (again.done, again.generated, again.left, gangs) == (outcome.done, 0, 0, [])


def test_figures_leave_plain_clips_out_and_say_so(made: Callable[..., JobConfig], tmp_path: Path) -> None:
    """Evaluation, summary, report and every export of a set with and without counts."""
    job = made(COUNTED, SEA, overrides=["strategies=[baseline,numina]", "parallel.ulysses=1", "generation.steps=3"])
    assert run_job(prepare(job)).generated == 4
    said = invoke("evaluate", job.output)
    assert "2 of 4 clips are of prompts that ask for no count, and in no CountAcc" in said
    assert "waves on the sea" not in said
    store = Store(job.output)
    verdicts = {row["key"]: row for row in store.evaluations("counter").to_pylist()}
    plain = [verdicts[row["key"]] for row in store.rows().to_pylist() if row["id"] == "sea"]
    assert [(own["count_accuracy"], own["detected"], own["problem"]) for own in plain] == [(None, None, None)] * 2
    summary = json.loads((tmp_path / "out/evaluations/summary.json").read_text())
    assert (summary["rows"], summary["plain"]) == (4, 2)
    for own in summary["judges"][0]["strategies"]:
        assert (own["plain"], own["judged"], own["accepted"] + own["rejected"]) == (1, 1, 1)
        assert own["groups"][0]["clips"] == 1

    page = build_report(job.output).read_text()
    assert "<dt>without counts</dt><dd>2</dd>" in page
    invoke("export", job.output, "--to", "hf", "--output", str(tmp_path / "hf"))
    card = (tmp_path / "hf/README.md").read_text()
    assert "4 videos of 2 prompts" in card
    assert "2 videos are of prompts that ask for no count" in card
    assert "| baseline | counter | 1 | 1 |" in card
    columns = pq.read_table(tmp_path / "hf/metadata.parquet").to_pylist()
    assert {(row["id"], row["accepted"]) for row in columns if row["id"] == "sea"} == {("sea", True)}
    one = ("--strategy", "numina", "--output")
    said = invoke("export", job.output, "--to", "countbench", *one, str(tmp_path / "bench"))
    assert "which the benchmark can't score: 1" in said
    assert (tmp_path / "bench/noun_counts.jsonl").read_text() == '{"circles": 2}\n'
    invoke("export", job.output, "--to", "vbench", *one, str(tmp_path / "vbench"))
    assert set(json.loads((tmp_path / "vbench/prompts.json").read_text()).values()) == {
        COUNTED["prompt"],
        SEA["prompt"],
    }
    invoke("export", job.output, "--to", "webdataset", "--output", str(tmp_path / "tars"))


def test_a_set_without_any_count(made: Callable[..., JobConfig], tmp_path: Path) -> None:
    """It is generated, judged, summarized, reported and exported like any other; what can't be said is said so."""
    job = made(SEA, {"id": "sky", "prompt": "clouds over the hills"})
    assert run_job(prepare(job)).failed == 0
    assert status_of(Store(job.output)).left == 0
    rows = Store(job.output).rows().num_rows
    assert f"{rows} of {rows} clips are of prompts that ask for no count" in invoke("evaluate", job.output)
    assert pq.read_table(tmp_path / "out/evaluations/summary.parquet").num_rows == 0
    page = build_report(job.output).read_text()
    assert f"<dt>without counts</dt><dd>{rows}</dd>" in page
    said = invoke("export", job.output, "--to", "hf", "--only", "accepted", "--output", str(tmp_path / "hf"))
    assert f"{rows} clips" in said
    assert "none of which asks for a count" in (tmp_path / "hf/README.md").read_text()
    with pytest.raises(OutputError, match="no clip whose prompt asks for a count"):
        invoke(*f"export {job.output} --to countbench --strategy numina+verified --output {tmp_path}/bench".split())
    with pytest.raises(InputError, match="no clip in which 'counter' counted"):
        compare_outputs(Store(job.output), Store(job.output), "counter")


def test_a_missing_plain_video_is_named_and_scores_nothing(made: Callable[..., JobConfig], tmp_path: Path) -> None:
    """It is no count that was wrong; it isn't accepted either."""
    job = made(SEA, overrides=["strategies=[baseline]", "parallel.ulysses=1"])
    run_job(prepare(job))
    [row] = Store(job.output).rows().to_pylist()
    (tmp_path / "out" / row["file_name"]).unlink()
    invoke("evaluate", job.output)
    [verdict] = Store(job.output).evaluations("counter").to_pylist()
    assert (verdict["problem"], verdict["count_accuracy"]) == ("missing", None)
    [kept] = outcomes(strategies_of(Store(job.output))[0], [row], {row["key"]: verdict})
    assert kept.accepted is False


def test_keys_of_rows_with_counts_stay(tiny_job: Job, tmp_path: Path) -> None:
    """A strategy that rewrites prompts has rows of its own where there is nothing to rewrite, and only there."""
    path = str(tmp_path / "mixed.parquet")
    make_prompts([COUNTED, SEA, COUNTED | {"id": "again", "enhanced_prompt": COUNTED["prompt"]}], path)
    tasks = list(tasks_of(prepare(tiny_job(f"prompts={path}", "strategies=[baseline,prompt_enhancement]"))))
    kinds = {id: [task.strategy for task in tasks if task.row.id == id] for id in ("counted", "sea", "again")}
    assert kinds == {
        "counted": ["baseline", "prompt_enhancement"],
        "sea": ["baseline", "prompt_enhancement"],
        "again": ["baseline"],  # as ever: the same prompt, and so the same video
    }
