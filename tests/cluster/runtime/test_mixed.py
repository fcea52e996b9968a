"""A file of prompts as people have them, from txt to report: counts, none, doubtful ones, bad lines, two languages."""

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.observability.status import status_of
from cluster.report import build_report
from cluster.runtime.run import run_job

Job = Callable[..., JobConfig]
LINES = (
    "three cats and two dogs\r\n\r\nwaves on the sea\r\nmore than three cats\r\n"
    "三只猫和两只狗在草地上\r\nthree cats and two dogs\r\n"
)


def numina(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_from_a_text_file_to_the_report(joining_job: Job, twin: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing blocks the set, and nothing wrong passes in silence."""
    source, prompts, out = tmp_path / "prompts.txt", str(tmp_path / "set.parquet"), str(tmp_path / "out")
    source.write_bytes(b"\xef\xbb\xbf" + LINES.encode() + b"zwei \xff rote kreise\r\n")
    said = numina("prompts", "import", str(source), prompts, "--skip")
    for words in ("5 prompts", "1 doubtful: ", "1 without counts", "skipped 1 bad rows"):
        assert words in said
    [rejected] = [json.loads(line) for line in (tmp_path / "REJECTED.jsonl").read_text().splitlines()]
    assert (rejected["row"], rejected["rule"]) == (7, "isn't UTF-8")
    assert "1 doubtful: " in numina("prompts", "check", prompts)

    given = ["strategies=[baseline,numina]", "parallel.ulysses=1", f"prompts={prompts}", "prompts_bad=skip"]
    model = f"model.path={twin('sentencepiece')}"
    strict = run_job(prepare(joining_job(*given, model, "targets_doubtful=refuse")))
    assert (strict.total, strict.generated, strict.failed, strict.skipped) == (8, 8, 0, 1)
    [rejected] = [json.loads(line) for line in (tmp_path / "out/REJECTED.jsonl").read_text().splitlines()]
    assert "doubtful" in rejected["rule"]
    assert "more than three cats" in rejected["detail"]
    kept = run_job(prepare(joining_job(*given, model)))
    assert (kept.total, kept.generated, kept.failed, kept.skipped) == (10, 2, 0, 0)

    rows = {(row["id"], row["strategy"]): row for row in Store(out).rows().to_pylist()}
    asked = {id: [(own["noun"], own["count"]) for own in rows[id, "numina"]["targets"]] for id, _ in rows}
    assert asked == {
        "001": [("cats", 3), ("dogs", 2)],
        "003": [],
        "004": [],
        "005": [("猫", 3), ("狗", 2)],
        "006": [("cats", 3), ("dogs", 2)],  # the same line again is a video of its own
    }
    for (id, strategy), row in rows.items():
        assert (row["identified"] is not None) == (strategy == "numina" and bool(asked[id]))
    assert rows["001", "numina"]["seed"] != rows["006", "numina"]["seed"]
    status = status_of(Store(out))
    assert (status.done, status.plain, status.left, status.skipped) == (10, 4, 0, 0)
    assert "<dt>without counts</dt><dd>4</dd>" in build_report(out).read_text()
    numina("export", out, "--to", "hf", "--output", str(tmp_path / "hf"))
    assert "4 videos are of prompts that ask for no count" in (tmp_path / "hf/README.md").read_text()
