"""What a prompt set promises: any sensible Parquet is read, all that is wrong is told at once, before any work."""

import datetime
import decimal
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster.prompts.files
from cluster.prompts.check import check_prompts, read_prompts
from cluster.prompts.problems import describe_problems
from cluster.prompts.promptset import open_prompts
from cluster.prompts.row import TargetReading
from cluster.prompts.write import look_over, make_prompts, write_targets
from cluster.rows import TARGETS
from numina.errors import PromptSetError
from numina.prompts.reading import Doubt
from numina.prompts.targets import Target

CATS = "three cats on a sofa"
DOGS = "two dogs and four birds"


def a_set(path: Path, table: dict[str, Any] | pa.Table, row_group_size: int = 2) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, row_group_size=row_group_size)
    return str(path)


def problems_of(path: str, max_count: int = 10) -> list[str]:
    return [str(problem) for problem in check_prompts(path, max_count)[1]]


def targets_of(targets: Sequence[Target]) -> list[tuple[str, int]]:
    return [(target.noun, target.count) for target in targets]


def test_rows_come_in_order_with_their_targets(tmp_path: Path) -> None:
    """Targets are the given ones, or parsed where null; missing columns are None; others are carried through."""
    given = pa.array([None, [{"noun": "dogs", "count": 5}]], type=TARGETS)
    path = a_set(tmp_path / "set.parquet", {"prompt": [CATS, DOGS], "targets": given, "source": ["web", None]})
    first, second = read_prompts(path, max_count=10)
    assert ("cats", 3) in targets_of(first.targets)
    assert targets_of(second.targets) == [("dogs", 5)]
    assert (first.index, first.id, first.negative_prompt, first.seed) == (0, None, None, None)
    assert [first.extra, second.extra] == [{"source": "web"}, {"source": None}]


@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("integer", [pa.int8(), pa.int32(), pa.uint16(), pa.int64()])
@pytest.mark.parametrize("make_list", [pa.list_, pa.large_list])
def test_variants_of_types_are_accepted(tmp_path: Path, text: Any, integer: Any, make_list: Any) -> None:
    """What pandas, polars, DuckDB and Spark write is read: large and dictionary strings, narrow integers."""
    targets = make_list(pa.struct([("noun", text), ("count", integer)]))
    plain = make_list(pa.struct([("noun", pa.string()), ("count", integer)]))
    table = pa.table(
        {
            "id": pa.array(["a"]).cast(text),
            "prompt": pa.array([CATS]).cast(text),
            "seed": pa.array([7], type=integer),
            "negative_prompt": pa.array(["blurry"]).cast(text),
            "targets": pa.array(
                [[{"noun": "cats", "count": 3}]], type=plain if pa.types.is_dictionary(text) else targets
            ),
        }
    )
    (row,) = read_prompts(a_set(tmp_path / "set.parquet", table), max_count=10)
    assert (row.id, row.prompt, row.seed, row.negative_prompt) == ("a", CATS, 7, "blurry")
    assert targets_of(row.targets) == [("cats", 3)]


def test_columns_of_nulls_are_accepted(tmp_path: Path) -> None:
    """A column that was never filled in (type null) is as good as absent, except the prompt's."""
    nothing = pa.nulls(1)
    table = {"id": nothing, "prompt": [CATS], "targets": nothing, "negative_prompt": nothing, "seed": nothing}
    (row,) = read_prompts(a_set(tmp_path / "set.parquet", table), max_count=10)
    assert (row.id, row.seed) == (None, None)
    assert "column 'prompt': has type null" in problems_of(a_set(tmp_path / "b.parquet", {"prompt": nothing}))[0]


def test_a_set_is_a_file_a_folder_or_a_glob(tmp_path: Path) -> None:
    """Files are read in the order of their names, row numbers go on; marker files of Spark are passed over."""
    a_set(tmp_path / "set/part-1.parquet", {"prompt": [DOGS], "id": ["b"]})
    a_set(tmp_path / "set/part-0.parquet", {"prompt": [CATS], "id": ["a"]})
    (tmp_path / "set/_SUCCESS").touch()
    for path in (str(tmp_path / "set"), str(tmp_path / "set/part-*.parquet"), f"file://{tmp_path}/set"):
        assert [(row.index, row.id) for row in read_prompts(path, max_count=10)] == [(0, "a"), (1, "b")]


def test_a_limit_bounds_reading_and_checking(tmp_path: Path) -> None:
    """A first look at a big set isn't kept from work by a row that it won't come to."""
    path = a_set(tmp_path / "set.parquet", {"prompt": [CATS, DOGS, ""]})
    assert len(list(read_prompts(path, max_count=10, limit=2))) == 2
    with pytest.raises(PromptSetError):
        read_prompts(path, max_count=10)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"text": [CATS]}, ["no column 'prompt'", "'text'"]),
        ({"prompt": [1]}, ["column 'prompt'", "int64", "string"]),
        ({"prompt": [CATS], "id": [7]}, ["column 'id'", "int64", "cast it to string"]),
        ({"prompt": [CATS], "seed": [7.0]}, ["column 'seed'", "double", "Int64"]),
        ({"prompt": [CATS], "targets": ["cats"]}, ["column 'targets'", "string", "list<struct"]),
        ({"prompt": [CATS], "targets": [[{"noun": "cats"}]]}, ["column 'targets'", "count: int"]),
        ({"prompt": [CATS], "width": [3]}, ["column 'width'", "rename"]),
        ({"prompt": [None, CATS]}, ["row 0", "column 'prompt'", "empty"]),
        ({"prompt": [CATS, " "]}, ["row 1", "column 'prompt'", "empty"]),
        ({"prompt": [CATS], "targets": [[{"noun": "dogs", "count": 2}]]}, ["row 0", "'targets'", "dogs", CATS]),
        ({"prompt": [CATS], "targets": [[{"noun": "cats", "count": 0}]]}, ["row 0", "'targets'", "1 to 10"]),
        ({"prompt": [CATS], "targets": [[{"noun": "cats", "count": 11}]]}, ["row 0", "'targets'", "11", "1 to 10"]),
        ({"prompt": [CATS], "targets": [[{"noun": "cats", "count": None}, {"noun": "", "count": 1}]]}, ["both a noun"]),
        ({"prompt": [CATS], "id": ["a b"]}, ["row 0", "column 'id'", "'a b'", "A-Z"]),
        ({"prompt": [CATS], "id": ["x" * 129]}, ["row 0", "column 'id'", "128"]),
        ({"prompt": [CATS, DOGS], "id": ["a", "a"]}, ["row 1", "column 'id'", "'a'", "row 0"]),
        ({"prompt": [CATS], "seed": [-1]}, ["row 0", "column 'seed'", "-1"]),
        ({"prompt": [CATS, DOGS, CATS], "seed": [1, 1, 1]}, ["row 2", "row 0", "same video", "seeds"]),
        ({"prompt": pa.array([], type=pa.string())}, ["no rows"]),
        ({"prompt": pa.array([CATS.encode() + b"\xff"]).view(pa.string())}, ["row 0", "UTF-8"]),
    ],
)
def test_a_problem_says_where_what_and_how_to_mend_it(tmp_path: Path, table: dict[str, Any], said: list[str]) -> None:
    """Each problem names the file, the row, the column, the value and the remedy."""
    path = a_set(tmp_path / "set.parquet", table)
    (problem,) = problems_of(path)
    for part in ["set.parquet", *said]:
        assert part in problem


def test_equal_prompts_with_other_ids_or_seeds_are_other_videos(tmp_path: Path) -> None:
    """The same prompt may come often, as long as its samples differ."""
    table = {"prompt": [CATS] * 4, "id": ["a", "b", None, None], "seed": [None, None, 1, 2]}
    assert check_prompts(a_set(tmp_path / "set.parquet", table), 10) == (4, [])


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """One error for the whole set, over files, rows and columns; the first twenty are shown and the rest counted."""
    a_set(tmp_path / "set/0.parquet", {"prompt": [CATS, ""], "id": ["a b", "c"], "seed": [-1, 1]})
    a_set(tmp_path / "set/1.parquet", {"text": ["x"]})
    (tmp_path / "set/2.parquet").write_bytes(b"PAR1 no more")
    a_set(tmp_path / "set/3.parquet", {"prompt": [""] * 30})
    with pytest.raises(PromptSetError) as error:
        read_prompts(str(tmp_path / "set"), max_count=10)
    lines = str(error.value).splitlines()
    assert "has 35 problems" in lines[0]
    assert len(lines) == 23
    assert [line.strip() for line in lines[-2:]] == [
        "and 15 more",
        "--rejected FILE.jsonl of numina prompts check and import lists all problems",
    ]
    assert "2.parquet: can't be read as Parquet" in str(error.value)
    assert describe_problems("a", ["x"]).startswith("prompt set 'a' has 1 problem:")


def test_a_truncated_file_is_a_problem(tmp_path: Path) -> None:
    """A file cut off or overwritten in the middle is an error that names it, also when its footer is whole."""
    path = tmp_path / "set.parquet"
    a_set(path, {"prompt": [f"three cats and number {n}" for n in range(5000)]}, row_group_size=500)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "can't be read as Parquet" in problems_of(str(path))[0]
    path.write_bytes(whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    assert "can't be read as Parquet" in problems_of(str(path))[-1]


@pytest.mark.parametrize("path", ["nothing.parquet", "nothing-*.parquet", "empty", "nosuchfs://a/b.parquet"])
def test_no_file_at_all_is_one_error(tmp_path: Path, path: str) -> None:
    """A misspelt path, an empty folder, a glob without a match, an unknown filesystem."""
    (tmp_path / "empty").mkdir()
    path = path if "://" in path else str(tmp_path / path)
    for reader in (lambda: read_prompts(path, max_count=10), lambda: open_prompts(path).extra_columns):
        with pytest.raises(PromptSetError, match=path.rsplit("/", 1)[-1].replace("*", r"\*")):
            reader()


def test_extra_columns_keep_type_and_value(tmp_path: Path) -> None:
    """Times, decimals, nested values and nulls come out as they went in, through a row of the output too."""
    extras = {
        "when": pa.array([1_700_000_000_123_456_789], type=pa.timestamp("ns", tz="UTC")),
        "price": pa.array([decimal.Decimal("1.50")], type=pa.decimal128(10, 2)),
        "day": pa.array([datetime.date(2026, 1, 2)]),
        "box": pa.array([{"a": [1, None]}], type=pa.struct([("a", pa.list_(pa.int8()))])),
        "raw": pa.array([b"\x00\xff"]),
        "label": pa.array(["x"]).dictionary_encode(),
        "gone": pa.array([None], type=pa.float16()),
    }
    path = a_set(tmp_path / "set.parquet", {"prompt": [CATS], **extras})
    schema = open_prompts(path).extra_columns
    (row,) = read_prompts(path, max_count=10)
    for name, column in extras.items():
        wanted = column.dictionary_decode() if name == "label" else column
        assert schema.field(name).type == wanted.type
        assert pa.array([row.extra[name]], type=schema.field(name).type).equals(wanted)


def test_files_that_disagree_on_an_extra_column_are_refused(tmp_path: Path) -> None:
    """One schema for all rows of the output: narrow types are widened, text and number can't be one column."""
    a_set(tmp_path / "set/0.parquet", {"prompt": [CATS], "source": pa.array([1], type=pa.int8())})
    a_set(tmp_path / "set/1.parquet", {"prompt": [DOGS], "source": pa.array([1], type=pa.int64())})
    assert open_prompts(str(tmp_path / "set")).extra_columns.field("source").type == pa.int64()
    a_set(tmp_path / "set/2.parquet", {"prompt": ["two birds"], "source": ["web"]})
    with pytest.raises(PromptSetError, match="source"):
        _ = open_prompts(str(tmp_path / "set")).extra_columns


def test_targets_are_filled_in_and_all_else_kept(tmp_path: Path) -> None:
    """The written set has the parsed targets, the given ones, and every other column as it was; twice is as once."""
    given = pa.array([None, [{"noun": "dogs", "count": 5}]], type=TARGETS)
    source = pa.table({"source": ["web", None], "prompt": [CATS, DOGS], "targets": given, "seed": pa.array([1, None])})
    path = a_set(tmp_path / "set.parquet", source, row_group_size=1)
    assert write_targets(path, str(tmp_path / "out.parquet")) == 2
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.names == [*source.schema.names, "targets_by", "targets_doubts"]
    added = ["targets", "targets_by", "targets_doubts"]
    assert written.drop_columns(added).equals(source.drop_columns("targets"))
    assert written["targets_by"].to_pylist() == ["rules", "given"]
    assert {"noun": "cats", "count": 3} in written["targets"].to_pylist()[0]
    assert written["targets"].to_pylist()[1] == [{"noun": "dogs", "count": 5}]
    write_targets(str(tmp_path / "out.parquet"), str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet").equals(written)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.parquet", "set.parquet"]


def test_rows_that_ask_for_no_count_are_rows(tmp_path: Path) -> None:
    """An empty list says so, null lets the prompt be read; doubts and counts over the maximum make no bad row."""
    given = pa.array([[], None, None, []], type=TARGETS)
    prompts = [CATS, "the sea at night", "50 sheep", DOGS]
    path = a_set(tmp_path / "set.parquet", {"prompt": prompts, "targets": given})
    rows = list(read_prompts(path, max_count=10))
    assert [(row.given, row.targets) for row in rows] == [(own is not None, ()) for own in given.to_pylist()]
    assert [[own.doubt for own in row.doubts] for row in rows][2] == [Doubt.MAXIMUM]
    summary = look_over(path, str(tmp_path / "out.parquet"), max_count=10).summary
    assert (summary.sure, summary.doubtful, summary.plain, summary.bad) == (0, 1, 3, 0)
    again = list(read_prompts(str(tmp_path / "out.parquet"), max_count=10))
    assert [(row.targets, row.doubts) for row in again] == [(row.targets, row.doubts) for row in rows]


def test_what_is_done_with_doubtful_rows(tmp_path: Path) -> None:
    """They are kept, made plain, or refused; written doubts count as those that are read anew."""
    path, written = a_set(tmp_path / "set.parquet", {"prompt": ["50 sheep and two dogs", CATS]}), tmp_path / "w.parquet"
    look_over(path, str(written), max_count=10)
    for source in (path, str(written)):
        asked = {
            doubtful: [
                targets_of(row.targets)
                for row in read_prompts(source, max_count=10, reading=TargetReading(doubtful=doubtful))
            ]
            for doubtful in ("keep", "plain")
        }
        assert asked["keep"] == [[("dogs", 2)], asked["keep"][1]]
        assert asked["plain"] == [[], asked["keep"][1]]
        [problem] = check_prompts(source, 10, reading=TargetReading(doubtful="refuse"))[1]
        assert "row 0" in str(problem)
        assert "doubtful: a count of zero or over the maximum (50 sheep)" in str(problem)


def test_bad_rows_can_be_passed_over(tmp_path: Path) -> None:
    """The good ones are read and written; every bad row is listed once, by what it breaks."""
    table = {"id": ["a", "b c", "a", "d"], "prompt": [CATS, DOGS, "two owls", ""], "score": [1, 2, 3, 4]}
    path, out, rejected = a_set(tmp_path / "set.parquet", table), tmp_path / "out.parquet", tmp_path / "R.jsonl"
    with pytest.raises(PromptSetError, match="3 bad rows can be left out, with --skip"):
        look_over(path, str(out), rejected=str(rejected)).require()
    assert not out.exists()
    told = rejected.read_text()
    found = look_over(path, str(out), rejected=str(rejected), skip=True)
    assert rejected.read_text() == told
    assert (found.summary.rows, found.summary.bad) == (4, 3)
    assert pq.read_table(out)["score"].to_pylist() == [1]
    lines = [json.loads(line) for line in told.splitlines()]
    assert [(line["row"], line["column"], line["value"]) for line in lines] == [
        (1, "id", "b c"),
        (2, "id", "a"),
        (3, "prompt", ""),
    ]
    assert all(line["rule"] and line["remedy"] for line in lines)
    assert [row.prompt for row in open_prompts(path).parse(10, bad="skip")] == [CATS, "two owls"]  # ids aren't compared
    with pytest.raises(PromptSetError, match="all 2 rows are bad"):
        look_over(a_set(tmp_path / "none.parquet", {"prompt": ["", " "]}), skip=True).require(skip=True)


def test_the_same_prompt_twice_is_two_rows(tmp_path: Path) -> None:
    """Rows without an id that repeat one get ids of their own, the same whatever comes between them."""
    path = a_set(tmp_path / "set.parquet", {"prompt": [CATS, DOGS, CATS, CATS]})
    prompts = open_prompts(path)
    assert [row.id for row in prompts.parse(10)] == [None] * 4  # nobody has compared them yet
    ids = [row.id for row in read_prompts(path, max_count=10)]
    assert ids[:2] == [None, None]
    assert [id.rpartition("-")[2] for id in ids[2:] if id] == ["2", "3"]
    assert look_over(path, str(tmp_path / "out.parquet")).summary.repeats == 2
    assert [row.id for row in read_prompts(str(tmp_path / "out.parquet"), max_count=10)] == ids
    moved = a_set(tmp_path / "moved.parquet", {"prompt": [CATS, CATS, DOGS, CATS]}, row_group_size=1)
    assert [row.id for row in read_prompts(moved, max_count=10)] == [None, ids[2], None, ids[3]]


def test_targets_are_filled_in_over_files_and_row_groups(tmp_path: Path) -> None:
    """Files whose columns differ become one: what one lacks is null there, narrow types are widened."""
    labels = pa.array(["x", "y", "x", "z"]).dictionary_encode()
    a_set(tmp_path / "set/0.parquet", {"prompt": [CATS, DOGS, CATS + "!", DOGS + "!"], "label": labels})
    given = pa.array([[{"noun": "birds", "count": 2}]], type=TARGETS)
    narrow = {"n": pa.array([1], pa.int8()), "targets": given, "prompt": ["two birds"]}
    a_set(tmp_path / "set/1.parquet", narrow)
    a_set(tmp_path / "set/2.parquet", {"prompt": ["two cats"], "n": pa.array([2], pa.int64())})
    assert write_targets(str(tmp_path / "set"), str(tmp_path / "out.parquet")) == 6
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.field("n").type == pa.int64()
    assert written["n"].to_pylist() == [None] * 4 + [1, 2]
    assert written["label"].to_pylist() == ["x", "y", "x", "z", None, None]
    assert written["targets"].to_pylist()[4:] == [[{"noun": "birds", "count": 2}], [{"noun": "cats", "count": 2}]]
    assert [row.prompt for row in read_prompts(str(tmp_path / "out.parquet"), max_count=10)][3:] == [
        *(DOGS + "!", "two birds", "two cats")
    ]


def test_a_bad_set_is_not_written(tmp_path: Path) -> None:
    """Problems keep `write_targets` from writing anything."""
    with pytest.raises(PromptSetError):
        write_targets(a_set(tmp_path / "set.parquet", {"prompt": [""]}), str(tmp_path / "out.parquet"))
    assert not (tmp_path / "out.parquet").exists()


def test_a_made_set_reads_back_and_is_never_overwritten(tmp_path: Path) -> None:
    """Rows from dicts become a set with our types; a second one of the same name is refused."""
    path = str(tmp_path / "new/set.parquet")
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": CATS, "targets": (Target(noun="cats", count=3),), "source": "web"},
        {"id": "b", "prompt": DOGS, "seed": 5},
    ]
    assert make_prompts(rows, path) == 2
    first, second = read_prompts(path, max_count=10)
    assert (first.extra, second.extra, second.seed) == ({"source": "web"}, {"source": None}, 5)
    assert targets_of(first.targets) == [("cats", 3)]
    with pytest.raises(PromptSetError, match="exists already"):
        make_prompts(rows, path)
    with pytest.raises(PromptSetError, match="can't be written"):
        make_prompts([{"prompt": CATS, "seed": "seven"}], str(tmp_path / "other.parquet"))


def test_a_set_is_opened_without_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are counted from footers. Blocks are parts of row groups, and no bigger than a block may be."""
    monkeypatch.setattr(cluster.prompts.files, "BLOCK_ROWS", 3)
    a_set(tmp_path / "set/0.parquet", {"prompt": [CATS] * 7}, row_group_size=5)
    a_set(tmp_path / "set/1.parquet", {"prompt": [DOGS] * 2})
    whole = open_prompts(str(tmp_path / "set"))
    assert (whole.rows, [block.rows for block in whole.blocks]) == (9, [3, 2, 2, 2])
    limited = open_prompts(str(tmp_path / "set"), limit=6)
    assert (limited.rows, [(block.index, block.number, block.rows) for block in limited.blocks]) == (
        6,
        [(0, 0, 3), (3, 3, 2), (5, 5, 1)],
    )
    assert len(limited.files) == 1  # the second one isn't come to


def test_blocks_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also backwards within a row group, and twice; only the columns that are asked for and there."""
    monkeypatch.setattr(cluster.prompts.files, "BLOCK_ROWS", 3)
    for name in ("0", "1"):
        numbers = list(range(8))
        a_set(tmp_path / f"set/{name}.parquet", {"prompt": [f"{name}-{n}" for n in numbers], "n": numbers}, 7)
    prompts = open_prompts(str(tmp_path / "set"))
    expected = [batch.column("prompt").to_pylist() for _, batch in prompts.read()]
    assert list(chain(*expected)) == [f"{name}-{n}" for name in "01" for n in range(8)]
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 2, 1, 5, 3]):
        read = prompts.read([prompts.blocks[place] for place in order], ["prompt", "seed"])
        for place, (_, batch) in zip(order, read, strict=True):
            assert batch.schema.names == ["prompt"]
            assert batch.column("prompt").to_pylist() == expected[place]


def test_problems_of_later_files_are_told_on_opening(tmp_path: Path) -> None:
    """All files and columns at once; not those beyond a limit."""
    a_set(tmp_path / "set/0.parquet", {"prompt": [CATS, DOGS]})
    a_set(tmp_path / "set/1.parquet", {"text": ["x"]})
    (tmp_path / "set/2.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(PromptSetError, match=r"(?s)2 problems.*1\.parquet: has no column.*2\.parquet: can't be read"):
        open_prompts(str(tmp_path / "set"))
    assert open_prompts(str(tmp_path / "set"), limit=2).rows == 2
