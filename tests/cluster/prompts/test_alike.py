"""Near-duplicates: the same targets in nearly the same words; never prompts that ask for different counts."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.prompts.alike import AlikeFinder, plain_text
from cluster.prompts.write import make_prompts
from numina.prompts.targets import Target

LONG = "three cats on a wooden table in a quiet and sunny room, seen from above"
ROWS = [
    ("first", "Three cats on a wooden table.", 3),
    ("case", "three  CATS – on a wooden table!", 3),
    ("four", "Four cats on a wooden table.", 4),
    ("long", LONG, 3),
    ("near", LONG.replace("quiet and", "quiet"), 3),
    ("wide", "ｔｈｒｅｅ cats on a wooden table", 3),
    ("other", "three cats in the rain", 3),
]
FIRSTS = {"case": "first", "near": "long", "wide": "first"}


def test_words_decide_not_how_they_are_written() -> None:
    """Case, punctuation, white space, width; letters of all scripts stay."""
    assert plain_text("  Drei »Café«-Katzen,\n１ Hund_") == "drei café katzen 1 hund"
    assert plain_text("三只猫。") == "三只猫"


def test_each_is_told_by_the_first_of_its_kind() -> None:
    """Also the repeat of a near-duplicate; other counts are other prompts, however alike their words."""
    finder = AlikeFinder()
    for number, (id, prompt, count) in enumerate([*ROWS, ("again", ROWS[4][1], 3)]):
        finder.add(number, id, prompt, [Target(noun="cats", count=count)])
    found = {own.row: own.name for own in finder.found()}
    assert found == {1: "first", 4: "long", 5: "first", 7: "long"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("three cats", "3 Cats"),
        ("Twenty-one cats on a table", "21 cats on a table"),
        ("three cats, two of them black", "3 cats, 2 of them black"),
        ("cats: one two three", "cats: 1, 2, 3"),
        ("三只猫在桌子上", "3只猫在桌子上。"),
        ("两只狗和三只猫", "２只狗和3只猫"),
    ],
)
def test_numbers_are_the_same_in_words_and_digits(one: str, other: str) -> None:
    """In English and Chinese; short prompts, too, of which a word is a large part."""
    finder = AlikeFinder()
    for number, prompt in enumerate((one, other, one.replace("cats", "cows").replace("猫", "牛"))):
        finder.add(number, str(number), prompt, [Target(noun="cats", count=3)])
    assert [(own.row, own.first) for own in finder.found()] == [(1, 0)]


def a_set(path: Path) -> str:
    targets = [[{"noun": "cats", "count": count}] for _, _, count in ROWS]
    rows = [
        {"id": id, "prompt": prompt, "targets": own if id != "wide" else [{"noun": "cats", "count": 3}]}
        for (id, prompt, _), own in zip(ROWS, targets, strict=True)
    ]
    make_prompts(rows, str(path))
    return str(path)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["prompts", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("verb", ["check", "import"])
def test_they_are_marked_or_left_out(tmp_path: Path, verb: str) -> None:
    """By either verb; what is left out is listed as bad rows are. A set without any has no such column."""
    source = a_set(tmp_path / "set.parquet")
    out = tmp_path / "out.parquet"
    arguments = ["check", source, "--write", str(out)] if verb == "check" else ["import", source, str(out), "--force"]
    told = run(*arguments)
    assert "3 near-duplicates of an earlier prompt with the same targets" in told
    rows = pq.read_table(out).to_pylist()
    assert {row["id"]: row["near_duplicate_of"] for row in rows if row["near_duplicate_of"]} == FIRSTS
    assert len(rows) == len(ROWS)

    run(*arguments, "--near-duplicates", "drop")
    rows = pq.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == [id for id, _, _ in ROWS if id not in FIRSTS]
    assert "near_duplicate_of" not in rows[0]
    rejected = [json.loads(line) for line in (tmp_path / "REJECTED.jsonl").read_text().splitlines()]
    assert [line["value"] for line in rejected] == [prompt for id, prompt, _ in ROWS if id in FIRSTS]
    assert "near-duplicate of first" in rejected[0]["detail"]

    run(*arguments, "--near-duplicates", "ignore")
    assert "near_duplicate_of" not in pq.read_schema(out).names
