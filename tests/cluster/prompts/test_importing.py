"""Imports: a benchmark's prompts become a set that checks; what is wrong is told by its line, nothing is written."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.prompts.check import check_prompts, read_prompts
from cluster.prompts.importing import import_prompts, own_word
from cluster.prompts.source_rows import read_targets
from numina.errors import PromptSetError

PROMPTS = ["Three cats chasing two dogs.", "A lone astronaut floating in space.", "Two cranes lift four steel-beams."]
COUNTS = [
    '{"cats": 3, "dogs": 2}',
    '{"nouns": ["astronaut"], "counts": [1]}',
    '[{"noun": "cranes", "count": 2}, {"noun": "beams", "count": 4}]',
]


def a_benchmark(folder: Path, prompts: list[str] = PROMPTS, counts: list[str] = COUNTS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("".join(f"{line}\n" for line in prompts))
    (folder / "noun_counts.jsonl").write_text("".join(f"{line}\n" for line in counts))
    return folder


def targets_of(path: Path) -> list[list[tuple[str, int]]]:
    return [[(t.noun, t.count) for t in row.targets] for row in read_prompts(str(path), max_count=20)]


def problems_of(source: Path, **options: Any) -> list[str]:
    """The lines of an import's error. Nothing is left behind."""
    output = source.parent / "never.parquet"
    with pytest.raises(PromptSetError) as error:
        import_prompts(str(source), str(output), **options)
    assert not output.exists()
    return str(error.value).splitlines()


def test_a_benchmarks_folder(tmp_path: Path) -> None:
    """All three forms of counts; ids as evaluators number the videos; a noun that is part of a word is that word."""
    said = CliRunner().invoke(
        app, ["prompts", "import", str(a_benchmark(tmp_path / "bench")), str(tmp_path / "set.parquet")]
    )
    assert said.exit_code == 0, said.output
    assert "3 prompts, 5 nouns, counts 1 × 1, 2 × 2, 3 × 1, 4 × 1" in said.output
    assert "line 3: 'beams': is counted as 'steel-beams', the prompt's own word" in said.output
    assert targets_of(tmp_path / "set.parquet") == [
        [("cats", 3), ("dogs", 2)],
        [("astronaut", 1)],
        [("cranes", 2), ("steel-beams", 4)],
    ]
    rows = pq.read_table(tmp_path / "set.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["001", "002", "003"]
    assert [row["prompt"] for row in rows] == PROMPTS


def test_counts_beside_a_text_and_texts_alone(tmp_path: Path) -> None:
    """`counts` names the file; without one targets are read from the prompts."""
    bench = a_benchmark(tmp_path / "bench")
    text, counts = str(bench / "prompts.txt"), str(bench / "noun_counts.jsonl")
    import_prompts(text, str(tmp_path / "one.parquet"), counts=counts)
    import_prompts(text, str(tmp_path / "two.parquet"))
    assert targets_of(tmp_path / "one.parquet") == targets_of(tmp_path / "two.parquet")


def test_csv_columns(tmp_path: Path) -> None:
    """By their names, with line breaks in quotes; targets as JSON or read from the prompt; others carried as text."""
    (tmp_path / "set.csv").write_text(
        "\ufeffcaption,targets,seed,negative_prompt,source\n"
        '"three cats,\nasleep",,7,blurry,web\n'
        'a herd,"{""herd"": 2}",,,own\n',
        encoding="utf-8",
    )
    import_prompts(str(tmp_path / "set.csv"), str(tmp_path / "set.parquet"))
    rows = pq.read_table(tmp_path / "set.parquet").to_pylist()
    assert [(row["id"], row["seed"], row["negative_prompt"], row["source"]) for row in rows] == [
        ("002", 7, "blurry", "web"),
        ("004", None, None, "own"),
    ]
    assert rows[0]["prompt"] == "three cats,\nasleep"
    assert targets_of(tmp_path / "set.parquet") == [[("cats", 3)], [("herd", 2)]]


def test_jsonl_columns(tmp_path: Path) -> None:
    """Values keep their types, and get one that holds all of them."""
    lines = [
        {"prompt": "three cats", "id": "a", "score": 1, "meta": {"x": 1}},
        {"text": "four dogs", "id": 7, "score": 2.5, "meta": {"y": "z"}, "targets": {"dogs": 4}},
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    import_prompts(str(tmp_path / "set.jsonl"), str(tmp_path / "set.parquet"))
    rows = pq.read_table(tmp_path / "set.parquet").to_pylist()
    assert [(row["id"], row["score"], row["meta"]) for row in rows] == [
        ("a", 1.0, {"x": 1, "y": None}),
        ("7", 2.5, {"x": None, "y": "z"}),
    ]
    assert check_prompts(str(tmp_path / "set.parquet"), 20) == (2, [])


def test_all_problems_are_told_by_their_lines(tmp_path: Path) -> None:
    """Of every kind, in one error: file, line, value, rule, remedy."""
    (tmp_path / "set.csv").write_bytes(
        b"prompt,id,targets,seed\n"
        b"a quiet morning,a,,\n"
        b'three cats,b,"{""cats"": ""3""}",\n'
        b'three cats,c/d,"{""cows"": 3}",-1\n'
        b"three cats,e,,soon\n"
        b"three cats,f\n"
        b"three c\xffts,g,,\n"
        b"ninety cats,h,,\n"
    )
    told = "\n".join(problems_of(tmp_path / "set.csv"))
    assert "has 7 problems" in told
    for words in (
        "line 3, column 'targets': ['{\"cats\": \"3\"}']: '3' of 'cats' is no whole number; write it in digits",
        "line 4, column 'id': 'c/d': must be",
        "line 4, column 'seed': -1: must be",
        "noun 'cows' isn't in prompt 'three cats'",
        "line 5, column 'seed': 'soon': is no seed",
        "line 6: 'three cats,f': has 2 cells, the header has 4",
        "line 7",
        "isn't UTF-8; save the file as UTF-8",
    ):
        assert words in told, told


def test_lines_must_pair(tmp_path: Path) -> None:
    """Which file ends first, and at which line of the other; a blank line would shift all numbers."""
    bench = a_benchmark(tmp_path / "bench", counts=COUNTS[:2])
    [_, told] = problems_of(bench)
    assert "prompts.txt, line 3" in told
    assert "noun_counts.jsonl ends before it" in told
    with pytest.raises(PromptSetError, match="ends before it"):  # nobody knows which of their lines are pairs
        import_prompts(str(bench), str(tmp_path / "never.parquet"), skip=True)
    told = problems_of(a_benchmark(bench, prompts=[*PROMPTS[:1], "", *PROMPTS[2:]]))[1]
    assert "prompts.txt, line 2: '': is empty; write a prompt or drop the line" in told


def test_repeats_are_told_by_their_lines(tmp_path: Path) -> None:
    """The same id twice, and the same video twice, as in any set."""
    lines = [{"prompt": "three cats", "id": "a"}, {"prompt": "two dogs", "id": "a"}, {"prompt": "four owls", "seed": 3}]
    lines += [lines[-1] | {"id": "x"}]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    told = "\n".join(problems_of(tmp_path / "set.jsonl"))
    assert f"{tmp_path}/set.jsonl, line 2, column 'id': 'a': is also in {tmp_path}/set.jsonl, line 1" in told
    assert "line 4, column 'prompt': 'four owls': the same prompt, targets and seed as in" in told


def test_columns_with_a_name_of_the_outputs_own(tmp_path: Path) -> None:
    """They are carried under another name, and that is told."""
    lines = [{"prompt": "three cats", "model": "x", "key": 1}, {"prompt": "two dogs", "model": "y"}]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = import_prompts(str(tmp_path / "set.jsonl"), str(tmp_path / "set.parquet"))
    assert [note.partition(": ")[2] for note in found.notes] == [
        f"column '{name}' is carried as 'source_{name}': the output has one of its name" for name in ("model", "key")
    ]
    rows = read_prompts(str(tmp_path / "set.parquet"), max_count=20)
    assert [(row.extra["source_model"], row.extra["source_key"]) for row in rows] == [("x", 1), ("y", None)]


def test_sources_that_are_none(tmp_path: Path) -> None:
    """Unknown forms, folders without prompts, empty files."""
    (tmp_path / "set.xlsx").write_bytes(b"PK")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "folder").mkdir()
    for name, told in (
        ("set.xlsx", "is none of txt, csv, tsv, json"),
        ("empty.txt", "holds no prompts"),
        ("folder", r"holds no prompts\.txt and no Parquet"),
        ("gone.txt", "can't be read"),
    ):
        with pytest.raises(PromptSetError, match=told):
            import_prompts(str(tmp_path / name), str(tmp_path / "never.parquet"))


def test_importing_again_is_fine_and_another_set_is_refused(tmp_path: Path) -> None:
    """As with every verb; --force replaces."""
    bench, output = a_benchmark(tmp_path / "bench"), str(tmp_path / "set.parquet")
    for _ in range(2):
        import_prompts(str(bench), output)
    (bench / "prompts.txt").write_text("\n".join(PROMPTS).replace("chasing", "and"))
    with pytest.raises(PromptSetError, match="exists already, with other rows"):
        import_prompts(str(bench), output)
    import_prompts(str(bench), output, force=True)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{", "isn't JSON"),
        ("3", "holds no mapping of counts"),
        ('{"nouns": ["cats"], "counts": [1, 2]}', "more or fewer counts than nouns"),
        ('{"cats": true}', "no whole number"),
        ('[{"noun": "", "count": 1}]', "is no noun"),
        ('["cats"]', "holds no mapping of counts"),
    ],
)
def test_what_no_targets_are(value: str, told: str) -> None:
    """The form that is wrong, and the right one."""
    with pytest.raises(ValueError, match=told):
        read_targets(value)


def test_own_words_of_a_prompt() -> None:
    """A hyphenated word only where the noun stands nowhere by itself, and where it is the only one."""
    assert own_word("two steel-beams", "beams") == "steel-beams"
    assert own_word("a ground crew-member", "member") == "crew-member"
    assert own_word("two steel-beams and a beam", "beams") is None
    assert own_word("one water-station and one bus-station", "station") is None
    assert own_word("two beams", "beams") is None


def test_many_rows_are_never_all_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks: the same set comes of any size of them."""
    (tmp_path / "set.txt").write_text("".join(f"{2 + row % 7} cats on hill {row}\n" for row in range(50)))
    monkeypatch.setattr("cluster.prompts.importing.BLOCK_ROWS", 7)
    found = import_prompts(str(tmp_path / "set.txt"), str(tmp_path / "set.parquet"))
    assert (found.rows, dict(found.nouns)) == (50, {"cat": 50})
    assert pq.read_metadata(tmp_path / "set.parquet").num_row_groups == 8
    assert len(targets_of(tmp_path / "set.parquet")) == 50
