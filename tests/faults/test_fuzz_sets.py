"""Prompt sets of any content: refused whole with a reason, or good to the last row of the output.

Of a file that passes the check all rows are committed, read back and exported; of any other nothing is written.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from cluster.dataset.store import Committed, Store
from cluster.export.columns import common_types, json_bytes, json_rows
from cluster.job.worklist import open_worklist
from cluster.prompts.promptset import open_prompts
from cluster.rows import ROW_SCHEMA
from tests.cluster.job.test_worklist import a_plan
from tests.faults.fuzzing import bounded, entries, names_one_of, run

NOTHING = Committed(keys=frozenset(), tasks=frozenset())
GOOD = "two red circles"


def check_promise(path: Path, source: Path, work: Path) -> None:
    """A set that passes its check loses no row later; one that doesn't says where it is at fault."""
    before = entries(work)
    status, said = run("prompts", "check", str(path))
    event(f"check {status}")
    assert entries(work) == before
    assert status in (0, 2), said
    if status == 2:
        assert names_one_of(said, [path.name, source.name]), said
        return
    prepared = a_plan(str(path), "strategies=[baseline]")
    worklist = open_worklist(prepared, NOTHING, NOTHING)
    assert worklist is not None
    store = Store(str(work / "out"), extra_columns=open_prompts(str(path)).extra_columns)
    store.open_run({})
    for task in worklist.tasks():
        row = {"key": task.key, "id": task.row.id, "file_name": "x.mp4", "prompt": task.row.prompt, "seed": task.seed}
        row |= {"targets": task.row.targets, "strategy": task.strategy, "video_sha256": "0", "extra": task.row.extra}
        assert store.commit(row)
    store.compact()
    rows = store.rows()
    assert len(rows) == worklist.total
    for record in json_rows(rows):
        json.loads(json_bytes(record), parse_constant=pytest.fail)
    own = [name for name in rows.column_names if name not in ROW_SCHEMA.names]
    common_types(rows, own)[0].to_pylist()


# --- Parquet ---

TYPES: list[pa.DataType] = [
    *(pa.null(), pa.bool_(), pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float64()),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view(), pa.binary(3)),
    *(pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.duration("s"), pa.duration("ns")),
    *(pa.timestamp("s"), pa.timestamp("us", tz="Asia/Tokyo"), pa.timestamp("ns"), pa.timestamp("ms", tz="+14:00")),
    *(pa.decimal32(5, 2), pa.decimal128(38, 10), pa.decimal256(60, 2), pa.uuid(), pa.json_(), pa.bool8()),
]
FIXED = {
    **dict.fromkeys(("int64", "uint64", "double", "date64[ms]", "time64[ns]", "decimal64"), 8),
    **dict.fromkeys(("date32[day]", "time32[ms]", "decimal32(5, 2)"), 4),
    "int8": 1,
    "halffloat": 2,
    "decimal128(38, 10)": 16,
    "decimal256(60, 2)": 32,
    "fixed_size_binary[3]": 3,
}
BYTES = st.sampled_from(
    [b"", b"three cats", GOOD.encode(), "ü".encode(), b"caf\xe9", b"\xed\xa0\x80", b"\x00", b"1", b"{"]
)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 20_000_000, -(2**62), 2**53 + 1, 253_402_300_800])


def leaves(draw: Callable[..., Any], type: pa.DataType, rows: int) -> pa.Array:
    """Any values of a type, valid ones for Python or not."""
    valid = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), bool)
    if isinstance(type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type, leaves(draw, type.storage_type, rows))
    if pa.types.is_null(type):
        return pa.nulls(rows)
    if pa.types.is_boolean(type):
        return pa.array([True] * rows, mask=~valid)
    if (
        pa.types.is_string(type)
        or pa.types.is_large_string(type)
        or pa.types.is_string_view(type)
        or str(type) in ("binary", "binary_view")
    ):
        data = pa.array(draw(st.lists(BYTES, min_size=rows, max_size=rows)), mask=~valid)
        wide = pa.large_binary() if pa.types.is_large_string(type) else pa.binary()
        wide = pa.binary_view() if str(type).endswith("_view") else wide
        return data.cast(wide).view(type)
    size = FIXED.get(str(type), 8)
    numbers = draw(st.lists(NUMBERS, min_size=rows, max_size=rows))
    if "decimal" in str(type) or "time" in str(type).split("stamp")[0]:  # within the type's own bounds
        numbers = [number % 10_000 for number in numbers]
    data = b"".join((number % 2 ** (8 * size)).to_bytes(size, "little") for number in numbers)
    bits = np.packbits(valid, bitorder="little").tobytes()
    return pa.Array.from_buffers(type, rows, [pa.py_buffer(bits), pa.py_buffer(data)])


@st.composite
def columns(draw: Callable[..., Any], rows: int) -> pa.Array:
    """A column of any type, perhaps nested."""
    inner = leaves(draw, draw(st.sampled_from(TYPES)), rows)
    match draw(st.sampled_from(["plain", "plain", "list", "struct", "map", "dictionary"])):
        case "list":
            return pa.ListArray.from_arrays(list(range(rows + 1)), inner)
        case "struct":
            return pa.StructArray.from_arrays([inner], draw(st.sampled_from([["a"], ["file_name"], [""]])))
        case "map":
            return pa.MapArray.from_arrays(list(range(rows + 1)), pa.array(["k"] * rows, pa.string()), inner)
        case "dictionary" if not isinstance(inner.type, pa.BaseExtensionType) and inner.type != pa.null():
            indices = pa.array(range(rows), pa.int32())
            return pa.DictionaryArray.from_arrays(indices, inner)
    return inner


NAMES = st.sampled_from(
    [
        *("clip_file_name", "seed", "id", "targets", "negative_prompt", "enhanced_prompt", "prompt"),
        *("width", " targets", "Prompt", "", "ü", "__key__", "a b"),
    ]
)


@st.composite
def tables(draw: Callable[..., Any], number: int) -> pa.Table:
    rows = draw(st.integers(0, 3))
    prompts = [f"{GOOD}, take {number} {row}" for row in range(rows)]
    table = pa.table({"prompt": pa.array(prompts, pa.string())})
    for _ in range(draw(st.integers(0, 2))):
        name = draw(NAMES) if draw(st.integers(0, 2)) == 0 else draw(st.sampled_from(["a", "b", "video", "judge"]))
        table = table.append_column(name, draw(columns(rows)))
    return table


FOLDERS = st.sampled_from(["", "", "", "a=1/", "a=x/", "lang=%20/", "_old/", ".cache/", "deep/er/", "seed=7/", "id=7/"])


@bounded(60)
@given(st.data())
def test_parquet_files_of_any_columns(data: st.DataObject) -> None:
    """One or two files of any types, whole or cut off, in folders of any names."""
    with tempfile.TemporaryDirectory() as folder:
        work, source = Path(folder), Path(folder) / "set"
        for number in range(data.draw(st.integers(1, 2))):
            path = source / f"{data.draw(FOLDERS)}part-{number}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                pq.write_table(data.draw(tables(number)), path)
            except (pa.ArrowException, OSError, KeyError):  # what no Parquet file can hold
                path.unlink(missing_ok=True)
                continue
            if data.draw(st.integers(0, 9)) == 0:
                whole = path.read_bytes()
                path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        check_promise(source, source, work)


# --- text ---

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([GOOD, "", "three cats", "\ud800", "ü", "a\x00b", "2026-01-01"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "\udc00", ""]), inner),
    max_leaves=4,
)
TARGETS = st.sampled_from(
    ['{"circles": 2}', '{"circles": 2, "circles": 3}', "[]", "{}", '{"circles": 99999999999}', "nonsense", '{"": 1}']
)
KEYS = st.sampled_from(
    ["prompt", "text", " prompt", "id", "ID", "seed", "targets", "Targets", "x", "y", "width", "video"]
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


@st.composite
def lines(draw: Callable[..., Any]) -> str:
    """A line of a jsonl; most have a prompt that can be used."""
    own: dict[str, Any] = draw(OBJECTS)
    if draw(st.integers(0, 4)):
        own["prompt"] = f"{GOOD}, take {draw(st.integers(0, 99))}"
        own.pop("text", None)
        own.pop(" prompt", None)
    return json.dumps(own)


def a_csv(draw: Callable[..., Any]) -> str:
    header = draw(st.lists(KEYS, min_size=1, max_size=4))
    separator = draw(st.sampled_from([",", ",", ", ", ";"]))
    rows = [separator.join(header)]
    for number in range(draw(st.integers(0, 3))):
        cells = [draw(st.sampled_from(["", "1", "a,b", '"', "x"]) | TARGETS) for _ in header]
        if header[0].strip() == "prompt":
            cells[0] = f"{GOOD} take {number}"
        rows.append(separator.join('"{}"'.format(cell.replace('"', '""')) for cell in cells))
    return "\n".join(rows)


@bounded(100)
@given(st.data())
def test_lists_of_prompts_of_any_content(data: st.DataObject) -> None:
    """csv, jsonl and txt with any bytes in them: imported to a set that holds, or refused by line."""
    ending = data.draw(st.sampled_from(["csv", "jsonl", "ndjson", "txt"]))
    if ending == "csv":
        text = a_csv(data.draw)
    elif ending == "txt":
        text = "\n".join(
            data.draw(st.lists(st.sampled_from([GOOD, "", "the sea", "three cats", "\x00", "ü 3"]), max_size=3))
        )
    else:
        text = "\n".join(data.draw(st.lists(lines(), max_size=3)))
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2)):
        if place < len(content) and data.draw(st.booleans()):
            content[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / f"list.{ending}", Path(folder) / "made.parquet"
        source.write_bytes(content)
        status, said = run("prompts", "import", str(source), str(made))
        event(f"import {ending} {status}")
        assert status in (0, 2), said
        assert entries(Path(folder)) == {source.name, *([made.name] if status == 0 else [])}
        if status:
            assert names_one_of(said, [source.name]), said
        else:
            status, said = run("prompts", "check", str(made))
            assert status == 0, said
            check_promise(made, source, Path(folder))
