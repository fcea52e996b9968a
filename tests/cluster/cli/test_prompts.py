"""`numina prompts check` in a terminal: ten rows are shown as they are, a million as a summary."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from numina.errors import PromptSetError

BOUND = "more than three birds on a wire"


def check(path: Path, *options: str) -> list[str]:
    result = CliRunner().invoke(app, ["prompts", "check", str(path), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def a_set(path: Path, prompts: list[str], **columns: Any) -> Path:
    pq.write_table(pa.table({"prompt": prompts, **columns}), path)
    return path


def test_a_small_set_is_shown_row_by_row(tmp_path: Path) -> None:
    """Each row with its targets or why they may be wrong; then how many there are of each kind."""
    lines = check(a_set(tmp_path / "set.parquet", ["three cats on a sofa", "50 sheep and two dogs", "the sea"]))
    assert lines == [
        *([line for line in lines if line.startswith("0: 3 cats")]),
        "1: 2 dogs [doubtful: a count of zero or over the maximum (50 sheep)]  50 sheep and two dogs",
        "2: no count  the sea",
        f"{tmp_path}/set.parquet: 3 rows",
        "  1 with counts",
        "  1 doubtful: 1 × a count of zero or over the maximum",
        "  1 without counts: plain videos",
    ]


def test_of_a_large_set_only_doubtful_rows_are_shown(tmp_path: Path) -> None:
    """As many as are asked for, and how many more there are."""
    prompts = ["50 sheep on a hill" if row % 10 == 0 else "three cats on a hill" for row in range(1000)]
    path = a_set(tmp_path / "set.parquet", prompts, id=[str(row) for row in range(1000)])
    lines = check(path, "--show", "5", "--near-duplicates", "ignore")
    assert [line.split(":")[0] for line in lines[:5]] == ["0", "10", "20", "30", "40"]
    assert lines[5].startswith("and 95 more doubtful rows: --show prints more")
    doubtful = "  100 doubtful: 100 × a count of zero or over the maximum"
    assert lines[6:] == [f"{path}: 1,000 rows", "  900 with counts", doubtful]
    assert check(path, "--show", "0", "--near-duplicates", "ignore")[1:] == lines[6:]
    assert len(check(path, "--show", "1000")) == 1004, "near-duplicates have a line, too"


def test_the_reasons_are_kept(tmp_path: Path) -> None:
    """In a column of the written set, by their codes; the written set is as doubtful as it was."""
    path, out = a_set(tmp_path / "set.parquet", [BOUND, "three cats", "50 sheep"]), tmp_path / "out.parquet"
    summary = [line for line in check(path, "--write", str(out)) if line.startswith("  ")]
    assert [
        [reason.partition(":")[0] for reason in own] for own in pq.read_table(out)["targets_doubts"].to_pylist()
    ] == [
        ["bound"],
        [],
        ["maximum"],
    ]
    assert [line for line in check(out) if line.startswith("  ")] == summary
    check(out, "--write", str(tmp_path / "again.parquet"))
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(out))


def test_whether_articles_count(tmp_path: Path) -> None:
    """`--targets-from numerals` leaves "a dog" out."""
    path = a_set(tmp_path / "set.parquet", ["a dog and two cats"])
    assert check(path)[0].startswith("0: 1 dog, 2 cats")
    assert check(path, "--targets-from", "numerals")[0].startswith("0: 2 cats")


def test_bad_rows_are_left_out_and_listed(tmp_path: Path) -> None:
    """By default the set is refused, and told what `--skip` would leave out and where all problems can be had."""
    path = a_set(tmp_path / "set.parquet", ["three cats", "", "two dogs", " "], id=["a", "b", "c d", "e"])
    refused = CliRunner().invoke(app, ["prompts", "check", str(path), "--write", str(tmp_path / "out.parquet")])
    assert isinstance(refused.exception, PromptSetError)
    assert "3 bad rows can be left out, with --skip" in str(refused.exception)
    assert "2 × prompt is empty, 1 × id must be 1 to 128" in str(refused.exception)
    assert "--rejected FILE" in str(refused.exception)
    assert "3 bad" in refused.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set.parquet"]
    CliRunner().invoke(app, ["prompts", "check", str(path), "--rejected", str(tmp_path / "all.jsonl")])
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 3
    lines = check(path, "--write", str(tmp_path / "out.parquet"), "--skip")
    assert lines[-2].startswith("skipped 3 bad rows: 2 × prompt is empty")
    assert lines[-2].endswith(f"all problems are in {tmp_path}/REJECTED.jsonl")
    records = [json.loads(line) for line in (tmp_path / "REJECTED.jsonl").read_text().splitlines()]
    assert [(record["row"], record["column"]) for record in records] == [(1, "prompt"), (2, "id"), (3, "prompt")]
    assert check(tmp_path / "out.parquet")[-1] == "  1 with counts"


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_a_file_of_another_form_names_the_import(tmp_path: Path, name: str) -> None:
    """The command that converts it."""
    (tmp_path / name).write_text("two dogs\n")
    refused = CliRunner().invoke(app, ["prompts", "check", str(tmp_path / name)])
    assert f"numina prompts import {tmp_path / name}" in str(refused.exception)
