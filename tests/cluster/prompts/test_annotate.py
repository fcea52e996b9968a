"""`numina prompts annotate`: targets by rules or by a language model, checked, kept as they come, told apart."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.prompts.check import check_prompts
from cluster.prompts.write import look_over, make_prompts
from numina.errors import NuminaError
from numina.prompts.targets import parse_targets
from pipelines.rewriting.asking import read_answer
from tests.cluster.prompts.endpoint import KEY, Endpoint

PROMPTS = ["three cats on a sofa", "five dogs", "two owls", "the sea", "four birds", "six kites"]
GIVEN = {"prompt": "a row of boats", "targets": [{"noun": "boats", "count": 7}]}


def annotate(prompts: str, output: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["prompts", "annotate", prompts, str(output), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output).to_pylist()


def targets(row: dict[str, Any], column: str = "targets") -> list[tuple[str, int]] | None:
    return None if row[column] is None else [(own["noun"], own["count"]) for own in row[column]]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """Six prompts, one that has targets, with a column of their own."""
    make_prompts([*({"prompt": prompt, "source": "own"} for prompt in PROMPTS), GIVEN], str(tmp_path / "set.parquet"))
    return str(tmp_path / "set.parquet")


def asked(messages: list[dict[str, str]]) -> str:
    return messages[1]["content"].removeprefix("Prompt: ")


ANSWERS: dict[str, list[str]] = {  # what the model says of each prompt, at the first and the second time of asking
    PROMPTS[0]: ['{"targets": [{"noun": "cats", "count": 3}, {"noun": "sofa", "count": 1}]}'],
    PROMPTS[1]: ['<think>\nfive?\n</think>```json\n{"targets": [{"noun": "dogs", "count": 4}]}\n```'],
    PROMPTS[2]: [
        '{"targets": [{"noun": "parrots", "count": 2}]}',
        'They are: {"targets": [{"noun": "owls", "count": 2}]}',
    ],
    PROMPTS[3]: ['{"targets": []}'],
    PROMPTS[4]: ['{"targets": [{"noun": "birds", "count": 400}]}', '{"targets": [{"noun": "birds", "count": "4"}]}'],
    PROMPTS[5]: ["I see six kites.", "Six, as I said."],
}


def scripted(messages: list[dict[str, str]]) -> str:
    return ANSWERS[asked(messages)][len(messages) // 2 - 1]


def test_by_rules(prompts: str, tmp_path: Path) -> None:
    """All rows and columns of the set; given targets stay; the same again is fine."""
    for _ in range(2):
        assert "7 prompts; 6 by rules, 1 by given" in annotate(prompts, tmp_path / "out.parquet")
    rows = rows_of(tmp_path / "out.parquet")
    assert [row["targets_by"] for row in rows] == ["rules"] * 6 + ["given"]
    read = [[(own.noun, own.count) for own in parse_targets(prompt)] for prompt in PROMPTS]
    assert [targets(row) for row in rows] == [*read, [("boats", 7)]]
    assert [row["source"] for row in rows] == ["own"] * 6 + [None]
    assert {targets(row, "targets_rules") is None for row in rows} == {True}
    assert check_prompts(str(tmp_path / "out.parquet"), 20) == (7, [])


def test_by_an_endpoint(prompts: str, tmp_path: Path, endpoint: Callable[..., Endpoint]) -> None:
    """Right answers are taken, wrong ones asked again once, then the rules' reading stands with a doubt."""
    server = endpoint(scripted)
    options = ["--with", "llm", "--url", server.url, "--model", "tiny"]
    told = annotate(prompts, tmp_path / "out.parquet", *options)
    assert "4 by llm" in told
    assert "2 by rules" in told
    rows = rows_of(tmp_path / "out.parquet")
    assert [row["targets_by"] for row in rows] == ["llm"] * 4 + ["rules"] * 2 + ["given"]
    assert [targets(row) for row in rows] == [
        [("cats", 3), ("sofa", 1)],
        [("dogs", 4)],
        [("owls", 2)],
        [],
        [("birds", 4)],
        [("kites", 6)],
        [("boats", 7)],
    ]
    assert targets(rows[1], "targets_rules") == [("dogs", 5)]
    assert [targets(row, "targets_rules") for row in rows[2:]] == [None] * 5
    for row, reason in zip(rows[4:6], ["no whole number from 1 to 20", "isn't JSON"], strict=True):
        assert row["targets_doubts"][-1].startswith("answer: ")
        assert reason in row["targets_doubts"][-1]
    assert [row["targets_doubts"] for row in (*rows[:4], rows[6])] == [[]] * 5
    assert len(server.asked) == 9  # three of them twice; the given row isn't asked about
    assert server.keys == {f"Bearer {KEY}"}
    again = annotate(prompts, tmp_path / "out.parquet", *options)
    assert "4 by llm" in again
    assert len(server.asked) == 9
    assert KEY not in again + (tmp_path / "out.parquet.answers.jsonl").read_text()
    checked = look_over(str(tmp_path / "out.parquet"))
    assert (checked.summary.doubtful, checked.problems) == (2, [])


def test_targets_that_rules_filled_in_are_read_anew(
    prompts: str, tmp_path: Path, endpoint: Callable[..., Endpoint]
) -> None:
    """A set that was checked or imported has targets in all rows; those of people stay, those of rules don't."""
    look_over(prompts, str(tmp_path / "checked.parquet"))
    options = ["--with", "llm", "--url", endpoint(scripted).url, "--model", "tiny"]
    annotate(str(tmp_path / "checked.parquet"), tmp_path / "one.parquet", *options)
    annotate(prompts, tmp_path / "two.parquet", *options)
    assert rows_of(tmp_path / "one.parquet") == rows_of(tmp_path / "two.parquet")


def test_an_endpoint_that_dies_midway(
    prompts: str, tmp_path: Path, endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it answered is kept, no set is written, and the same command asks only for the rest."""
    monkeypatch.setattr("pipelines.rewriting.llm.RETRIES", 0)
    answered = threading.Semaphore(2)
    first = endpoint(lambda messages: scripted(messages) if answered.acquire(blocking=False) else 503)
    options = ["--with", "llm", "--model", "tiny", "--at-once", "1"]
    with pytest.raises(NuminaError, match=r"doesn't answer.*the same command continues"):
        annotate(prompts, tmp_path / "out.parquet", *options, "--url", first.url)
    assert not (tmp_path / "out.parquet").exists()
    kept = tmp_path / "out.parquet.answers.jsonl"
    assert len(kept.read_text().splitlines()) == 2
    second = endpoint(scripted)
    annotate(prompts, tmp_path / "out.parquet", *options, "--url", second.url)
    assert PROMPTS[0] not in [asked(body["messages"]) for body in second.asked]
    assert len(kept.read_text().splitlines()) == 6


def test_a_local_models_gibberish_is_not_taken(prompts: str, tmp_path: Path, random_model: Path) -> None:
    """It is really asked; what it says is no reading, and the rules' stands with a doubt."""
    told = annotate(prompts, tmp_path / "out.parquet", "--with", "local", "--model", str(random_model))
    assert "6 by rules" in told
    rows = rows_of(tmp_path / "out.parquet")
    assert all(row["targets_doubts"][-1].startswith("answer: ") for row in rows[:6])
    kept = [json.loads(line) for line in (tmp_path / "out.parquet.answers.jsonl").read_text().splitlines()]
    assert {line["targets"] for line in kept} == {None}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("three", "isn't JSON"),
        ('{"nouns": 1}', "list of targets"),
        ('{"targets": [{"noun": "cats"}]}', "no whole number"),
        ('{"targets": [{"noun": "cats", "count": true}]}', "no whole number"),
        ('{"targets": [{"noun": "cats", "count": 2.5}]}', "no whole number"),
        ('{"targets": [{"noun": "cats", "count": 0}]}', "from 1 to 20"),
        ('{"targets": [{"noun": "", "count": 1}]}', "has no noun"),
        ('{"targets": [{"noun": "dogs", "count": 1}]}', "isn't in prompt"),
        ('{"targets": [{"noun": "cats", "count": 1}, {"noun": "cat", "count": 2}]}', "are one noun"),
        ('{"targets": "cats"}', "list of targets"),
        ("[" * 100_000, "isn't JSON"),
    ],
)
def test_answers_that_can_not_be_used(answer: str, told: str) -> None:
    """Each by its reason, which the next request gives."""
    with pytest.raises(ValueError, match=told):
        read_answer(answer, "three cats", 20)
