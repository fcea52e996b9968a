"""Files as people have them: every form is read as it is meant, guesses are said, what can't be read has a remedy."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.prompts.check import check_prompts
from cluster.prompts.importing import Imported, import_prompts
from cluster.prompts.meaning import Choice
from numina.errors import PromptSetError

DOGS, CATS = "two dogs", "three cats"


def imported(folder: Path, name: str, content: str | bytes, **options: Any) -> tuple[Imported, list[dict[str, Any]]]:
    """What an import found, and the rows that it wrote."""
    source, output = folder / name, folder / "out.parquet"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = import_prompts(str(source), str(output), force=True, **options)
    assert check_prompts(str(output), 20)[1] == []
    return found, pq.read_table(output).to_pylist()


def asked(rows: list[dict[str, Any]]) -> list[list[tuple[str, int]]]:
    return [[(own["noun"], own["count"]) for own in row["targets"]] for row in rows]


# --- text ---


@pytest.mark.parametrize(
    "text",
    [
        f"{DOGS}\n{CATS}\n",
        f"{DOGS}\r\n\r\n   \r\n{CATS}\r\n\r\n",
        f"\ufeff{DOGS}\n{CATS}",
        f"{DOGS}\r{CATS}\r",
        f"1. {DOGS}\n2. {CATS}\n",
        f"12) {DOGS}\n13) {CATS}\n",
        f"(1) {DOGS}\n(2) {CATS}\n",
        f"1: {DOGS}\n\n3: {CATS}\n",
        f"1.{DOGS}\n2.{CATS}\n",
        f"Prompt 1: {DOGS}\nPrompt 2: {CATS}\n",
        f"#1: {DOGS}\n#2: {CATS}\n",
        f"- {DOGS}\n- {CATS}\n",
        f"• {DOGS}\n• {CATS}\n",
        f'"{DOGS}",\n"{CATS}"\n',
        f'1. "{DOGS}"\n2. "{CATS}"\n',
    ],
)
def test_a_text_is_a_prompt_a_line(tmp_path: Path, text: str) -> None:
    """Blank lines, byte order marks, line ends, numbers, bullets and quotes are no part of prompts."""
    _, rows = imported(tmp_path, "set.txt", text)
    assert [row["prompt"] for row in rows] == [DOGS, CATS]
    assert asked(rows) == [[("dogs", 2)], [("cats", 3)]]


def test_counts_at_the_beginnings_are_no_numbers_of_lines(tmp_path: Path) -> None:
    """Only marks on nearly all lines, in ascending order, are left out, and that is said."""
    for text in ("5 dogs\n3 cats\n", "3. a cat\n2. a dog\n", "two dogs\nthree cats\n4. a cow\n"):
        found, rows = imported(tmp_path, "set.txt", text)
        assert [row["prompt"] for row in rows] == text.splitlines()
        assert found.notes == []
    found, _ = imported(tmp_path, "set.txt", "1. a cat\n2. a dog\n")
    assert "numbers at the lines' beginnings are left out" in found.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["set.txt", "set.csv", "set.txt.gz"])
def test_encodings_and_compression(tmp_path: Path, encoding: str, pack: Any, name: str) -> None:
    """By what the file's first bytes say, whatever its name is."""
    text = f"{DOGS}\n{CATS}\n" if "txt" in name else f"id,prompt\na,{DOGS}\nb,{CATS}\n"
    _, rows = imported(tmp_path, name, pack(text.encode(encoding)))
    assert [row["prompt"] for row in rows] == [DOGS, CATS]


# --- tables ---


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("set.csv", f"id,prompt\na,{DOGS}\nb,{CATS}\n", []),
        ("set.csv", f"id;prompt\r\na;{DOGS}\r\nb;{CATS}\r\n", ["semicolons"]),
        ("set.csv", f"id\tprompt\na\t{DOGS}\nb\t{CATS}\n", ["tabs"]),
        ("set.csv", f"id|prompt\na|{DOGS}\nb|{CATS}\n", ["bars"]),
        ("set.csv", f"sep=;\nid;prompt\na;{DOGS}\nb;{CATS}\n", ["semicolons"]),
        ("set.tsv", f"id\tprompt\na\t{DOGS}\nb\t{CATS}\n", []),
        ("set.tsv", f"id,prompt\na,{DOGS}\nb,{CATS}\n", ["commas"]),
        ("set.csv", f"id,Prompt\na,{DOGS}\nb,{CATS}\n", ["'Prompt' is taken as the prompt"]),
        ("set.csv", f"id,prompt_en\na,{DOGS}\nb,{CATS}\n", ["'prompt_en' is taken"]),
        ("set.csv", f"id,Video Caption\na,{DOGS}\nb,{CATS}\n", ["'Video Caption' is taken"]),
        ("set.csv", f"id,my_prompt_v2\na,{DOGS}\nb,{CATS}\n", ["'my_prompt_v2' is taken"]),
        ("set.csv", f"id,what\na,{DOGS}\nb,{CATS}\n", ["'what' is taken"]),
        ("set.csv", f"7,{DOGS}\n8,{CATS}\n", ["has no header", "'column_2' is taken"]),
        ("set.csv", f"{DOGS}\n{CATS}\n", ["has no header"]),
        ("set.csv", f"prompt\n{DOGS}\n{CATS}\n", []),
        ("set.csv", f'prompt,note\n"{DOGS}",\n\n"{CATS}",,\n', []),
    ],
)
def test_a_table_with_any_separator_and_header(tmp_path: Path, name: str, text: str, said: list[str]) -> None:
    """What isn't as the file's name and a column `prompt` say it, is said."""
    found, rows = imported(tmp_path, name, text)
    assert [row["prompt"] for row in rows] == [DOGS, CATS]
    assert len(found.notes) == len(said)
    for note, words in zip(found.notes, said, strict=True):
        assert words in note


def test_the_only_column_may_have_commas(tmp_path: Path) -> None:
    """Without quotes: nothing else can be meant."""
    _, rows = imported(tmp_path, "set.csv", 'prompt\nthree cats, asleep, at night\ntwo dogs\n"four owls, awake"\n')
    assert [row["prompt"] for row in rows] == ["three cats, asleep, at night", DOGS, "four owls, awake"]


def test_parquet_with_columns_of_any_name(tmp_path: Path) -> None:
    """Types stay; a file or a folder; `--prompt-column`, `--keep` and `--drop` choose."""
    times = pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns"))
    table = pa.table({"caption": [DOGS, CATS], "when": times, "n": pa.array([1, 2], pa.int8()), "other": [CATS, DOGS]})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set/0.parquet")
    pq.write_table(table.select(["caption"]).slice(1), tmp_path / "set/1.parquet")
    out = str(tmp_path / "out.parquet")
    found = import_prompts(str(tmp_path / "set"), out)
    assert "'caption' is taken as the prompt" in found.notes[0]
    written = pq.read_table(out)
    assert written["prompt"].to_pylist() == [DOGS, CATS, CATS]
    assert [written.schema.field(name).type for name in ("when", "n")] == [pa.timestamp("ns"), pa.int8()]
    assert written["when"].cast(pa.int64()).to_pylist() == [1_700_000_000_123_456_789, None, None]
    import_prompts(str(tmp_path / "set"), out, choice=Choice(prompt="other", keep=("n",)), skip=True, force=True)
    assert pq.read_table(out).column_names == ["id", "prompt", "targets", "n", "targets_by", "targets_doubts"]
    assert pq.read_table(out)["prompt"].to_pylist() == [CATS, DOGS]  # the third row has no such column
    import_prompts(str(tmp_path / "set"), out, choice=Choice(drop=("when", "other")), force=True)
    assert "when" not in pq.read_table(out).column_names


# --- JSON ---


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "value",
    [
        [DOGS, CATS],
        [{"prompt": DOGS}, {"prompt": CATS}],
        [{"Caption": DOGS, "n": 1}, {"Caption": CATS}],
        {"prompts": [DOGS, CATS]},
        {"version": 2, "prompts": [{"prompt": DOGS}, {"prompt": CATS}], "license": "x"},
        {"data": {"prompts": [DOGS, CATS]}},
        {"meta": {"a": 1}, "data": [{"text": DOGS}, {"text": CATS}]},
        {"a": {"prompt": DOGS}, "b": {"prompt": CATS}},
        {"a": DOGS, "b": CATS},
        {"animals": [DOGS], "others": [CATS]},
        {"animals": [{"prompt": DOGS}], "others": [{"prompt": CATS}]},
        {"prompt": [DOGS, CATS], "n": [1, 2]},
        {"prompt": {"0": DOGS, "1": CATS}, "n": {"0": 1, "1": 2}},
        {DOGS: {"dogs": 2}, CATS: {"cats": 3}},
        [{"prompts": [DOGS, CATS]}],
    ],
)
def test_a_document_of_json(tmp_path: Path, value: Any, indent: int | None) -> None:
    """Lists and objects of prompts, by names, by groups, by columns."""
    _, rows = imported(tmp_path, "set.json", json.dumps(value, indent=indent))
    assert asked(rows) == [[("dogs", 2)], [("cats", 3)]]
    assert [row["prompt"] for row in rows] == [DOGS, CATS]


def test_names_in_a_document_are_ids_or_columns(tmp_path: Path) -> None:
    """A name that can't be an id isn't lost, nor is a group's."""
    _, rows = imported(tmp_path, "set.json", json.dumps({"a": DOGS, "b": CATS}))
    assert [row["id"] for row in rows] == ["a", "b"]
    _, rows = imported(tmp_path, "set.json", json.dumps({"a b": DOGS, "c/d": CATS}))
    assert [(row["id"], row["key"] if "key" in row else row["source_key"]) for row in rows] == [
        ("001", "a b"),
        ("002", "c/d"),
    ]
    _, rows = imported(tmp_path, "set.json", json.dumps({"pets": [DOGS], "wild": [CATS]}))
    assert [row["group"] for row in rows] == ["pets", "wild"]


@pytest.mark.parametrize("name", ["set.jsonl", "set.ndjson", "set.json", "set.txt"])
def test_json_lines_by_any_name(tmp_path: Path, name: str) -> None:
    """Objects or texts, a line each; blank lines between them; a list in a file of lines."""
    lines = [json.dumps({"prompt": DOGS}), "", json.dumps({"prompt": CATS})]
    _, rows = imported(tmp_path, name, "\n".join(lines))
    assert [row["prompt"] for row in rows] == [DOGS, CATS]
    if name.endswith("jsonl"):
        _, rows = imported(tmp_path, name, f'"{DOGS}"\n"{CATS}"\n')
        assert [row["prompt"] for row in rows] == [DOGS, CATS]
        _, rows = imported(tmp_path, name, json.dumps([DOGS, CATS], indent=2))
        assert [row["prompt"] for row in rows] == [DOGS, CATS]
        _, rows = imported(tmp_path, name, json.dumps({"what": DOGS}))
        assert [row["prompt"] for row in rows] == [DOGS]


# --- targets ---


@pytest.mark.parametrize(
    "values",
    [
        {"tag": "counting", "include": [{"class": "bench", "count": 4}], "exclude": [{"class": "bench", "count": 5}]},
        {"objects": ["bench"], "counts": [4]},
        {"nouns": ["bench"], "counts": ["4"]},
        {"object_counts": {"bench": 4}},
        {"counts": {"benches": 4}},
        {"objects": [{"name": "bench", "number": 4}]},
        {"noun": "bench", "count": 4},
        {"class": "bench", "number": 4.0},
        {"targets": {"nouns": ["bench"], "counts": [4]}},
        {"targets": '{"bench": 4}'},
        {"Targets": [{"noun": "bench", "count": 4}]},
    ],
)
def test_a_benchmarks_counts_are_targets(tmp_path: Path, values: dict[str, Any]) -> None:
    """In all forms; the prompt's own number would be another, so that it is seen what was read."""
    line = {"prompt": "a photo of benches", **values}
    _, rows = imported(tmp_path, "set.jsonl", f"{json.dumps(line)}\n{json.dumps({**line, 'id': 'b'})}\n")
    assert [[(noun.rstrip("es"), count) for noun, count in own] for own in asked(rows)] == [[("bench", 4)]] * 2
    assert [row["targets_by"] for row in rows] == ["given"] * 2


def test_counts_in_a_csv(tmp_path: Path) -> None:
    """As one of each, as lists of JSON or Python, as texts with separators."""
    text = (
        "prompt,objects,counts\n"
        "dogs and a cat,dog;cat,2;1\n"
        'dogs and a cat,"[""dog"", ""cat""]","[2, 1]"\n'
        "dogs and a cat,\"['dog', 'cat']\",\"[2, 1]\"\n"
        "dogs and a cat,dog,2\n"
    )
    _, rows = imported(tmp_path, "set.csv", text)
    assert asked(rows) == [[("dog", 2), ("cat", 1)]] * 3 + [[("dog", 2)]]


def test_columns_that_only_sound_like_counts_are_none(tmp_path: Path) -> None:
    """A class that no prompt mentions and a running number are columns like any others."""
    lines = [{"prompt": DOGS, "class": "animal", "number": 7}, {"prompt": CATS, "class": "animal", "number": 8}]
    found, rows = imported(tmp_path, "set.jsonl", "\n".join(map(json.dumps, lines)))
    assert asked(rows) == [[("dogs", 2)], [("cats", 3)]]
    assert [(row["class"], row["number"], row["targets_by"]) for row in rows] == [
        ("animal", 7, "rules"),
        ("animal", 8, "rules"),
    ]
    assert found.notes == []


def test_an_empty_list_asks_for_no_count_and_null_lets_the_prompt_be_read(tmp_path: Path) -> None:
    """In an import as in a set."""
    lines = [{"prompt": DOGS, "targets": []}, {"prompt": DOGS, "targets": None}, {"prompt": "the sea"}]
    found, rows = imported(tmp_path, "set.jsonl", "\n".join(map(json.dumps, lines)))
    assert asked(rows) == [[], [("dogs", 2)], []]
    assert (found.summary.sure, found.summary.plain) == (1, 2)


# --- rows ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("set.txt", f"{DOGS}\n{DOGS}\n"),
        ("set.csv", f"prompt\n{DOGS}\n{DOGS}\n"),
        ("set.jsonl", f'{{"prompt": "{DOGS}"}}\n{{"prompt": "{DOGS}"}}\n'),
        ("set.json", json.dumps([DOGS, DOGS])),
    ],
)
def test_the_same_prompt_twice_is_two_rows(tmp_path: Path, name: str, text: str) -> None:
    """With ids of their own, in every form."""
    _, rows = imported(tmp_path, name, text)
    assert len({row["id"] for row in rows}) == len(rows) == 2


def test_bad_rows_are_skipped_and_listed_once(tmp_path: Path) -> None:
    """All of them, however many there are, with row, column, value, rule and remedy; the good ones are written."""
    lines = [{"prompt": f"two dogs on hill {row}", "seed": "soon" if row % 3 else row} for row in range(3000)]
    lines[0]["id"], lines[3]["id"] = "a", "a"  # only seen when all rows are there
    source, out, listed = tmp_path / "set.jsonl", tmp_path / "out.parquet", tmp_path / "REJECTED.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    refused = CliRunner().invoke(app, ["prompts", "import", str(source), str(out)])
    assert isinstance(refused.exception, PromptSetError)
    told = str(refused.exception)
    assert "has 2001 problems" in told
    assert "2001 bad rows can be left out, with --skip" in told
    assert "2000 × seed is no seed, 1 × id is in another row too" in told
    assert len(told.splitlines()) < 30
    assert not out.exists()
    assert not listed.exists()
    done = CliRunner().invoke(app, ["prompts", "import", str(source), str(out), "--skip"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "skipped 2,001 bad rows: 2000 × seed is no seed" in done.output
    assert pq.read_table(out).num_rows == 999
    records = [json.loads(line) for line in listed.read_text().splitlines()]
    assert len(records) == len({record["row"] for record in records}) == 2001
    assert records[0] == {
        "place": f"{source}, line 2",
        "row": 2,
        "column": "seed",
        "value": "soon",
        "rule": "is no seed",
        "remedy": "write a whole number from 0 to 2**63 - 1, or leave it out",
    }
    assert (records[-1]["row"], records[-1]["column"]) == (4, "id")


# --- what can't be read ---


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("set.xlsx", b"PK\x03\x04rest", "spreadsheet or a zip archive; save its table as csv"),
        ("set.csv", b"PK\x03\x04rest", "spreadsheet or a zip archive"),
        ("set.parquet", b"nothing", "isn't Parquet"),
        ("set.pkl", b"\x80\x04\x95rest", "pickle"),
        ("set", b"two dogs\n", "none of txt, csv"),
        ("set.txt", b"ab\0\0cd\xff\n", "is no text"),
        ("set.json", b"[1, 2", "isn't JSON"),
        ("set.json", b'{"a": 1}', "no list of prompts"),
        ("set.json", b"[]", "holds no prompts"),
        ("set.json", b'{"prompt": [null], "text": [null]}', "is no object"),
        ("set.jsonl", b'{"prompt": null}', "no list of prompts|is empty|no column"),
        ("set.csv", b"a,b\nx,y\n", "--prompt-column"),
        ("set.csv", b"id,first,second\n1,two dogs,three cats\n", "--prompt-column"),
        ("set.txt.gz", b"\x1f\x8bnothing", "can't be read"),
    ],
)
def test_what_can_not_be_read_has_a_remedy(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    """One sentence, and nothing is written."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptSetError, match=told):
        import_prompts(str(tmp_path / name), str(tmp_path / "out.parquet"))
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (Choice(prompt="other"), "--prompt-column 'other': .* has no such column; it has prompt, n"),
        (Choice(keep=("m",)), "--keep 'm': .* it has prompt, n"),
        (Choice(drop=("m",)), "--drop 'm'"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, choice: Choice, told: str) -> None:
    """A typo is no column left out in silence."""
    with pytest.raises(PromptSetError, match=told):
        imported(tmp_path, "set.csv", f"prompt,n\n{DOGS},1\n", choice=choice)


@pytest.mark.parametrize("name", ["set.txt", "set.csv", "set.jsonl"])
def test_a_check_of_another_file_names_the_import(tmp_path: Path, name: str) -> None:
    """Also where a job is given it."""
    (tmp_path / name).write_text(f"{DOGS}\n")
    for arguments in (["prompts", "check", str(tmp_path / name)], ["run", f"prompts={tmp_path / name}"]):
        refused = CliRunner().invoke(app, [*arguments])
        assert f"numina prompts import {tmp_path / name} OUT.parquet" in str(refused.exception)
