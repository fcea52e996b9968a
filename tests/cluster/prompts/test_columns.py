"""A set's own columns: carried as they are, or refused before a clip is made, by file, row and column."""

import datetime
import decimal
import json
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.dataset.store import Committed, Store
from cluster.job.worklist import open_worklist
from cluster.prompts.check import check_prompts, read_prompts
from cluster.prompts.enhance import enhance_set
from cluster.prompts.importing import import_prompts
from cluster.prompts.promptset import open_prompts
from cluster.prompts.write import write_targets
from cluster.rows import one_value
from numina.errors import PromptSetError
from tests.cluster.job.test_worklist import a_plan
from tests.cluster.tasks import tasks_of

NOTHING = Committed(keys=frozenset(), tasks=frozenset())
BAD = b"caf\xe9"


def a_set(folder: Path, *columns: Any, name: str = "x") -> str:
    """A file for each column of one or more values."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, column in enumerate(columns):
        prompts = [f"three cats, take {number} {row}" for row in range(len(column))]
        pq.write_table(pa.table({"prompt": prompts, name: column}), folder / f"{number}.parquet")
    return str(folder)


def bad_text() -> pa.Array:
    return pa.array([b"fine", BAD]).view(pa.string())


def carried(path: str, out: Path) -> pa.Table:
    """The rows of an output that a job over the set would commit; they went to another process."""
    prompts = open_prompts(path)
    store = Store(str(out), extra_columns=prompts.extra_columns)
    store.open_run({})
    for task in tasks_of(a_plan(path, "strategies=[numina]")):
        row = pickle.loads(pickle.dumps(task.row))
        store.commit(
            {
                "key": task.key,
                "file_name": "videos/x.mp4",
                "prompt": row.prompt,
                "targets": row.targets,
                "strategy": task.strategy,
                "seed": task.seed,
                "video_sha256": "0" * 64,
                "id": f"{row.index:03d}",
                "extra": row.extra,
            }
        )
    store.compact()
    return store.rows().sort_by("id")


EVERY: dict[str, Callable[[], pa.Array]] = {
    "null": lambda: pa.nulls(1),
    "uint64": lambda: pa.array([2**64 - 1], pa.uint64()),
    "float16": lambda: pa.array([1.5], pa.float16()),
    "infinity": lambda: pa.array([float("-inf")]),
    "decimal256": lambda: pa.array([decimal.Decimal("1.50")], pa.decimal256(60, 2)),
    "decimal32": lambda: pa.array([decimal.Decimal("1.50")], pa.decimal32(5, 2)),
    "date32": lambda: pa.array([datetime.date(9999, 12, 31)]),
    "date64": lambda: pa.array([datetime.date(1, 1, 1)], pa.date64()),
    "last second": lambda: pa.array([datetime.datetime(9999, 12, 31, 23, 59, 59)], pa.timestamp("us", tz="UTC")),
    "nanoseconds": lambda: pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", tz="Europe/Paris")),
    "time64 ns": lambda: pa.array([7], pa.time64("ns")),
    "duration ns": lambda: pa.array([7], pa.duration("ns")),
    "nested ns": lambda: pa.array([[{"a": 7}]], pa.list_(pa.struct([("a", pa.time64("ns"))]))),
    "map": lambda: pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())),
    "map of ns": lambda: pa.array([[("a", 7)]], pa.map_(pa.string(), pa.timestamp("ns"))),
    "uuid": lambda: pa.array([uuid.UUID(int=7).bytes], pa.uuid()),
    "json": lambda: pa.array(['{"a": 1}'], pa.json_()),
    "bool8": lambda: pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())),
    "tensor": lambda: pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2, 2]), pa.array([[1, 2, 3, 4]], pa.list_(pa.int32(), 4))
    ),
    "list of dictionary": lambda: pa.ListArray.from_arrays([0, 2], pa.array(["a", "b"]).dictionary_encode()),
    "dictionary of ns": lambda: pa.array([7], pa.timestamp("ns")).dictionary_encode(),
    "string view": lambda: pa.array(["a"], pa.string_view()),
    "list view": lambda: pa.array([[1]], pa.list_view(pa.int64())),
    "fixed size list": lambda: pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
    "fixed size binary": lambda: pa.array([b"ab"], pa.binary(2)),
    "bytes": lambda: pa.array([BAD]),
    "empty list": lambda: pa.array([[]], pa.list_(pa.string())),
    "null in a struct": lambda: pa.array([None], pa.struct([("a", pa.string())])),
}


@pytest.mark.parametrize("kind", EVERY)
def test_values_of_every_type_reach_the_output_as_they_are(tmp_path: Path, kind: str) -> None:
    """Through the check, the worklist, another process, a commit and a segment; nothing is rounded."""
    path = a_set(tmp_path / "set", EVERY[kind]())
    worklist = open_worklist(a_plan(path, "strategies=[numina]"), NOTHING, NOTHING)
    assert worklist is not None
    assert worklist.total == 1
    stored = pq.read_table(path)["x"].combine_chunks()
    stored = stored.dictionary_decode() if pa.types.is_dictionary(stored.type) else stored
    stored = stored.cast(pa.string()) if pa.types.is_string_view(stored.type) else stored
    found = carried(path, tmp_path / "out")["x"].combine_chunks()
    assert found.type == stored.type
    assert found.equals(stored)


@pytest.mark.parametrize(
    ("one", "other", "type"),
    [
        (pa.array([1]), pa.array([0.5]), pa.float64()),
        (pa.array([1], pa.int8()), pa.array([2**40]), pa.int64()),
        (pa.array([1], pa.uint64()), pa.array([-1]), pa.int64()),
        (pa.array([1.5], pa.float16()), pa.array([2.5]), pa.float64()),
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
        (pa.array(["a"]), pa.array(["b"], pa.string_view()), pa.string()),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
        (pa.array(["a"]), pa.array([BAD]), pa.binary()),
        (pa.nulls(1), pa.array([5]), pa.int64()),
        (pa.array([decimal.Decimal("1.5")]), pa.array([3]), pa.decimal128(19, 1)),
        (pa.array([1_000], pa.timestamp("s")), pa.array([1], pa.timestamp("ns")), pa.timestamp("ns")),
        (pa.array([[1]]), pa.array([[0.5]]), pa.list_(pa.float64())),
        (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), pa.array([[3]]), pa.list_(pa.int64())),
        (
            pa.array([{"a": 1}]),
            pa.array([{"a": 0.5, "b": "x"}]),
            pa.struct([("a", pa.float64()), ("b", pa.string())]),
        ),
        (
            pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())),
            pa.array([[("k", 2**40)]], pa.map_(pa.string(), pa.int64())),
            pa.map_(pa.string(), pa.int64()),
        ),
        (
            pa.ListArray.from_arrays([0, 1], pa.array(["a"]).dictionary_encode()),
            pa.array([["b"]]),
            pa.list_(pa.string()),
        ),
    ],
)
def test_types_unite_over_files_as_arrow_unites_them(tmp_path: Path, one: Any, other: Any, type: pa.DataType) -> None:
    """In either order; the values are those that were given, also where the set is written again as one file."""
    for name, columns in {"one": (one, other), "other": (other, one)}.items():
        path = a_set(tmp_path / name, *columns)
        assert check_prompts(path, 10) == (2, [])
        united = open_prompts(path).extra_columns.field("x").type
        assert united == type
        found = carried(path, tmp_path / f"{name}-out")["x"]
        assert found.type == united
        write_targets(path, f"{tmp_path}/{name}.parquet")
        assert pq.read_table(f"{tmp_path}/{name}.parquet")["x"].equals(found)
        enhance_set(path, f"{tmp_path}/{name}-enhanced.parquet")
        assert pq.read_table(f"{tmp_path}/{name}-enhanced.parquet")["x"].equals(found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1]), pa.array(["a"])),
        (pa.array([True]), pa.array([1])),
        (pa.array([datetime.date(2026, 1, 1)]), pa.array([datetime.datetime(2026, 1, 1)])),
        (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", tz="UTC"))),
        (pa.array([[1]]), pa.array([1])),
        (pa.array(["{}"], pa.json_()), pa.array(["{}"])),
    ],
)
def test_types_that_do_not_unite_are_told_by_file(tmp_path: Path, one: Any, other: Any) -> None:
    path = a_set(tmp_path / "set", one, one, other)
    _, problems = check_prompts(path, 10)
    assert len(problems) == 1
    for part in ("2.parquet, column 'x'", str(one.type), str(other.type), "0.parquet", "write all files with one type"):
        assert part.replace("item", "element") in problems[0]
    with pytest.raises(PromptSetError, match="column 'x'"):
        open_prompts(path)


BAD_VALUES: dict[str, tuple[Callable[[], list[pa.Array]], list[str]]] = {
    "text": (lambda: [bad_text()], ["0.parquet, row 1", r"b'caf\xe9'", "isn't UTF-8"]),
    "large text": (lambda: [pa.array([b"a", BAD], pa.large_binary()).view(pa.large_string())], ["row 1", "UTF-8"]),
    "text in a list": (
        lambda: [pa.ListArray.from_arrays([0, 1, 2], bad_text())],
        ["row 1", "UTF-8"],
    ),
    "text in a struct": (lambda: [pa.StructArray.from_arrays([bad_text()], ["a"])], ["row 1", "UTF-8"]),
    "half a surrogate pair": (
        lambda: [pa.array([b"a", "\ud800".encode("utf-8", "surrogatepass")]).view(pa.string())],
        ["row 1", "UTF-8"],
    ),
    "date": (lambda: [pa.array([0, 10_000_000], pa.date32())], ["row 1", "10000000", "years 1 to 9999"]),
    "early date": (lambda: [pa.array([0, -1_000_000], pa.date32())], ["row 1", "years 1 to 9999"]),
    "time": (lambda: [pa.array([0, 2**60], pa.timestamp("us"))], ["row 1", "years 1 to 9999"]),
    "time with a zone": (
        lambda: [pa.array([0, 253_402_300_799], pa.timestamp("s", tz="Asia/Tokyo"))],
        ["row 1", "years 1 to 9999"],
    ),
    "time in a list": (lambda: [pa.array([[], [2**60]], pa.list_(pa.timestamp("us")))], ["row 1", "years"]),
    "time in a map": (
        lambda: [pa.array([[], [("a", 2**60)]], pa.map_(pa.string(), pa.timestamp("us")))],
        ["row 1", "years"],
    ),
    "duration": (lambda: [pa.array([0, 2**62], pa.duration("s"))], ["row 1"]),
    "integer among fractions": (
        lambda: [pa.array([0.5]), pa.array([1, 2**53 + 1])],
        ["1.parquet, row 1", "9007199254740993", "doesn't fit double"],
    ),
    "uint64 among int64": (
        lambda: [pa.array([-1]), pa.array([1, 2**63], pa.uint64())],
        ["1.parquet, row 1", "9223372036854775808", "doesn't fit int64"],
    ),
    "seconds among nanoseconds": (
        lambda: [pa.array([1], pa.timestamp("ns")), pa.array([1, 10**11], pa.timestamp("s"))],
        ["1.parquet, row 1", "doesn't fit timestamp[ns]"],
    ),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_a_value_that_would_lose_its_clip_is_told_by_its_row(tmp_path: Path, kind: str) -> None:
    """By the check, and before a job's first clip though its row is far behind the first ones."""
    make, said = BAD_VALUES[kind]
    path = a_set(tmp_path / "set", *make())
    _, problems = check_prompts(path, 10)
    assert len(problems) == 1, problems
    for part in [*said, "column 'x'"]:
        assert part in str(problems[0])
    with pytest.raises(PromptSetError, match="column 'x'"):
        open_worklist(a_plan(path, "strategies=[numina]", "limit=1000000"), NOTHING, NOTHING)
    good = "limit=1"
    assert open_worklist(a_plan(path, "strategies=[numina]", good), NOTHING, NOTHING) is not None


def test_bad_text_in_a_dictionary_is_told_by_its_file(tmp_path: Path) -> None:
    """Arrow itself refuses to read it."""
    _, problems = check_prompts(a_set(tmp_path / "set", pa.DictionaryArray.from_arrays([0, 1], bad_text())), 10)
    assert len(problems) == 1
    assert "0.parquet" in problems[0]
    assert "UTF8" in problems[0]


def test_values_under_nulls_are_nobodys(tmp_path: Path) -> None:
    """What lies in memory below a null of a list, a struct or a date is no value."""
    dates = pa.Array.from_buffers(
        pa.date32(), 1, [pa.py_buffer(b"\x00"), pa.py_buffer((10_000_000).to_bytes(4, "little"))]
    )
    path = a_set(tmp_path / "set", dates)
    assert check_prompts(path, 10) == (1, [])


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "two fields of the name 'a'"),
        (pa.array([1], pa.timestamp("us", tz="Mars/Olympus")), "time zone 'Mars/Olympus'"),
    ],
)
def test_a_type_that_no_reader_takes_is_told_by_its_column(tmp_path: Path, column: pa.Array, said: str) -> None:
    _, problems = check_prompts(a_set(tmp_path / "set", column), 10)
    assert len(problems) == 1
    assert "0.parquet, column 'x'" in problems[0]
    assert said in problems[0]


@pytest.mark.parametrize("column", [pa.array([1]), pa.array([True]), pa.array([["three cats"]]), pa.array([b"a"])])
def test_enhanced_prompts_are_text(tmp_path: Path, column: pa.Array) -> None:
    _, problems = check_prompts(a_set(tmp_path / "set", column, name="enhanced_prompt"), 10)
    assert len(problems) == 1
    assert f"column 'enhanced_prompt': has type {column.type}, must be string".replace("item", "el") in problems[
        0
    ].replace("element", "el")
    for number, text in enumerate((pa.string(), pa.large_string(), pa.string_view())):
        fine = a_set(tmp_path / str(number), pa.array(["three cats"], text), name="enhanced_prompt")
        assert check_prompts(fine, 10) == (1, [])
    nothing = a_set(tmp_path / "null", pa.nulls(1), name="enhanced_prompt")
    assert check_prompts(nothing, 10) == (1, [])


@pytest.mark.parametrize("name", [" targets", "targets ", "\tseed", " prompt", "id\n"])
def test_a_space_in_a_name_is_told(tmp_path: Path, name: str) -> None:
    _, problems = check_prompts(a_set(tmp_path / "set", pa.array(["x"]), name=name), 10)
    assert len(problems) == 1
    assert f"column {name!r}" in problems[0]
    assert "rename it" in problems[0]


def test_a_row_that_can_not_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    """It names the column; a value that fits goes through."""
    assert one_value(1, pa.float64()).equals(pa.array([1.0]))
    for value, type in [("x", pa.int64()), (2**70, None), ("\ud800", pa.string()), (object(), None)]:
        with pytest.raises(PromptSetError, match="can't be written"):
            one_value(value, type)
    store = Store(str(tmp_path / "out"), extra_columns=pa.schema([("x", pa.int64())]))
    row = dict.fromkeys(("key", "file_name", "prompt", "strategy", "video_sha256"), "0" * 32)
    with pytest.raises(PromptSetError, match="column 'x': 'many' can't be written as int64"):
        store.commit({**row, "targets": [], "seed": 1, "extra": {"x": "many"}})
    assert store.committed() == set()


# --- imports ---


def problem_of(source: Path) -> str:
    with pytest.raises(PromptSetError) as error:
        import_prompts(str(source), str(source.parent / "never.parquet"))
    assert not (source.parent / "never.parquet").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("id, prompt, targets", 'a, three cats, "{""cats"": 3}"'),
        ("id , prompt,targets ", "a,three cats,{cats}"),
        ("ID,Prompt,TARGETS", "a,three cats,{cats}"),
        ('"id", "prompt", "targets"', 'a, "three cats", "{""cats"": 3}"'),
        ("\ufeffid,prompt,targets", "a,three cats,{cats}"),
    ],
)
def test_spaces_and_capitals_in_a_header_lose_no_column(tmp_path: Path, header: str, row: str) -> None:
    (tmp_path / "set.csv").write_text(f"{header}\n{row}\n".replace("{cats}", '"{""cats"": 3}"'))
    import_prompts(str(tmp_path / "set.csv"), str(tmp_path / "set.parquet"))
    [made] = pq.read_table(tmp_path / "set.parquet").to_pylist()
    asked = {"id": "a", "prompt": "three cats", "targets": [{"noun": "cats", "count": 3}]}
    assert made == {**asked, "targets_by": "given", "targets_doubts": []}


def test_a_column_that_is_there_keeps_its_name(tmp_path: Path) -> None:
    """Where both are there, the one in capitals is another column."""
    (tmp_path / "set.jsonl").write_text('{"prompt": "three cats", "id": "a", "ID": "b"}\n')
    import_prompts(str(tmp_path / "set.jsonl"), str(tmp_path / "set.parquet"))
    [row] = read_prompts(str(tmp_path / "set.parquet"), max_count=10)
    assert (row.id, row.extra["ID"]) == ("a", "b")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"prompt,source,source\nthree cats,a,b\n", ["line 1", "'source' 2 times"]),
        (b"prompt,targets, targets\nthree cats,,\n", ["line 1", "'targets' 2 times"]),
        (b"prompt,caf\xe9\nthree cats,a\n", ["line 1", "UTF-8"]),
        (b"prompt,a\nthree cats,caf\xe9\n", ["line 2", "UTF-8"]),
        (b"prompt,seed\nthree cats,99999999999999999999\n", ["line 2", "99999999999999999999", "whole number"]),
        (b'prompt,targets\nthree cats,"{""cats"": 99999999999}"\n', ["line 2", "99999999999"]),
        (b"prompt,Width\nthree cats," + b"x" * 1_400 + b"\n", ["line 2", "csv"]),
        (b'"' + b"x" * 1_400 + b'"\n', ["line 1", "csv"]),
    ],
)
def test_what_is_wrong_in_a_csv_is_told_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: list[str]
) -> None:
    monkeypatch.setattr("cluster.prompts.from_csv.LONGEST_CELL", 1_000)
    (tmp_path / "set.csv").write_bytes(content)
    told = problem_of(tmp_path / "set.csv")
    for part in ["set.csv", *said]:
        assert part in told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"prompt": "three cats \ud800"}', ["line 2", "surrogate", "'prompt'"]),
        (r'{"prompt": "three cats", "tags": ["a", {"b": "\udc00"}]}', ["line 2", "surrogate", "'tags'"]),
        (r'{"prompt": "three cats", "\ud83d": 1}', ["line 2", "surrogate"]),
        (r'{"prompt": "three cats", "targets": {"cats\ud800": 3}}', ["line 2", "surrogate"]),
        ('{"prompt": "three cats", "seed": 36893488147419103232}', ["line 2", "is no seed", "'seed'"]),
        ('{"prompt": "three cats", "targets": {"cats": 2147483648}}', ["line 2", "2147483648"]),
        ('{"prompt": "three cats", "a": 1, "a": 2}', ["line 2", "'a' twice"]),
        ('{"prompt": "three cats", "m": {"a": 1, "a": 2}}', ["line 2", "'a' twice"]),
        ('{"prompt": "three cats", "enhanced_prompt": 7}', ["line 2", "'enhanced_prompt'", "write a string"]),
        ("[" * 100_000, ["line 2", "isn't JSON"]),
        ('{"prompt": "three cats", "n": ' + "9" * 5000 + "}", ["line 2", "isn't JSON"]),
    ],
)
def test_what_is_wrong_in_a_jsonl_is_told_by_its_line(tmp_path: Path, line: str, said: list[str]) -> None:
    (tmp_path / "set.jsonl").write_text('{"prompt": "two dogs"}\n' + line + "\n")
    told = problem_of(tmp_path / "set.jsonl")
    for part in ["set.jsonl", *said]:
        assert part in told


@pytest.mark.parametrize(
    "values",
    [
        [1, "many"],
        [{"a": 1}, 2],
        [True, 1],
        [[1], {"b": 2}],
        [None, 9223372036854775808],
        [{"deep": [-9223372036854775809]}],
        [{}],
        [{"a": [{}]}],
        [json.loads("[" * 40 + "]" * 40)],
        [{str(number): number for number in range(80)}],
    ],
)
def test_values_of_no_common_type_are_json_text(tmp_path: Path, values: list[Any]) -> None:
    """They block nothing: all of the column's are kept as text, that is told, and how to leave it out."""
    lines = [{"prompt": f"two dogs on hill {place}", "n": value} for place, value in enumerate(values)]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = import_prompts(str(tmp_path / "set.jsonl"), str(tmp_path / "set.parquet"))
    kept = pq.read_table(tmp_path / "set.parquet")["n"].to_pylist()
    assert [None if text is None else json.loads(text) for text in kept] == values
    assert ["column 'n' holds values of different types, and is kept as JSON text" in note for note in found.notes] == [
        True
    ]


def test_a_type_that_a_later_line_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers and fractions unite over blocks of lines, and what doesn't fit is told by its line."""
    monkeypatch.setattr("cluster.prompts.importing.BLOCK_ROWS", 1)
    source = tmp_path / "set.jsonl"
    source.write_text('{"prompt": "two dogs", "n": 1}\n{"prompt": "three cats", "n": 0.5}\n')
    import_prompts(str(source), str(tmp_path / "set.parquet"))
    assert pq.read_table(tmp_path / "set.parquet")["n"].to_pylist() == [1.0, 0.5]
    source.write_text('{"prompt": "two dogs", "n": 9007199254740993}\n{"prompt": "three cats", "n": 0.5}\n')
    told = problem_of(source)
    assert "line 1, column 'n': 9007199254740993: doesn't fit double" in told
