"""Prompt sets: Parquet with one row per prompt, read by row group, checked whole before any work.

| column | type | |
|---|---|---|
| `id` | string | optional, unique, 1 to 128 of `A-Z a-z 0-9 . _ -` |
| `prompt` | string | required |
| `targets` | list of {noun: string, count: integer} | parsed from the prompt when null or absent |
| `negative_prompt` | string | optional |
| `seed` | integer, not negative | derived from the row when null or absent |
| any other | any | carried into the output unchanged |

A set is one file, a folder of `*.parquet`, or a glob; local, or a URL that fsspec knows (`s3://…`). Large, view and
dictionary strings and all integer widths are accepted. Row numbers count from 0.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat
from fsspec.core import url_to_fs

from cluster.atomic import open_files
from cluster.rows import ROW_SCHEMA, TARGETS, canonical_json, plain_value
from numina.errors import PromptError, PromptSetError
from numina.prompts import Target, check_targets, parse_targets

OWN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("targets", TARGETS),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
    ]
)
"""The columns of a set that mean something here, as we write them."""

SHOWN_PROBLEMS = 20
ANY_COUNT = 2**31 - 1

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BATCH_ROWS = 4096
_LONGEST_SHOWN = 120
# What a damaged, truncated or unreachable Parquet file raises.
_UNREADABLE = (pa.ArrowException, OSError, EOFError)


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One row of a prompt set, checked."""

    index: int  # row number in the whole set
    id: str | None
    prompt: str
    targets: tuple[Target, ...]
    negative_prompt: str | None
    seed: int | None
    extra: dict[str, Any] = field(default_factory=dict)  # the set's other columns


def read_prompts(path: str, *, max_count: int, limit: int | None = None) -> Iterator[PromptRow]:
    """The rows of a prompt set in order, the first `limit` of them. They are all checked before the first is given.

    Raises one PromptSetError that lists the problems of these rows.
    """
    require_prompts(path, max_count, limit=limit)
    return _parsed_rows(path, max_count, limit)


def require_prompts(path: str, max_count: int, *, limit: int | None = None) -> int:
    """The number of rows of a prompt set (of its first `limit` rows). Raises one PromptSetError with its problems."""
    rows, problems = check_prompts(path, max_count, limit=limit)
    if problems:
        raise PromptSetError(describe_problems(path, problems))
    return rows


def check_prompts(path: str, max_count: int, *, limit: int | None = None) -> tuple[int, list[str]]:
    """Read a prompt set (its first `limit` rows) and collect all that is wrong with it; raises nothing for it.

    Returns the number of rows read and the problems; each names file, row, column, value and remedy.
    """
    rows, problems, repeats = 0, list[str](), _Repeats()
    for raw in _raw_rows(path, limit):
        if isinstance(raw, str):
            problems.append(raw)
            continue
        rows += 1
        row, wrong = _parsed(raw, max_count)
        problems += wrong or repeats.of(raw, row)
    if not rows and not problems:
        problems.append(f"{path}: holds no rows; a prompt set needs at least one")
    return rows, problems


def describe_problems(path: str, problems: Sequence[str]) -> str:
    """The problems of a set as one message: the first 20, and how many more there are."""
    lines = [f"prompt set {path!r} has {len(problems)} problem{'s' if len(problems) != 1 else ''}:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n".join(lines)


def extra_columns(path: str) -> pa.Schema:
    """The set's columns beside OWN_SCHEMA's, with their types (a dictionary-encoded one has its values' type).

    Raises PromptSetError when the set can't be read or its files disagree on a type.
    """
    try:
        schemas = [file.schema() for file in _files(path)]
        extras = [[_decoded(own) for own in schema if own.name not in OWN_SCHEMA.names] for schema in schemas]
        return pa.unify_schemas([pa.schema(extra) for extra in extras], promote_options="permissive")
    except _UNREADABLE as error:
        raise PromptSetError(f"prompt set {path!r}: its files can't be read as one set: {error}") from error


def write_targets(src: str, dst: str, *, max_count: int = ANY_COUNT) -> int:
    """Write the set with every row's targets filled in, all other columns kept, as one file; the number of its rows.

    `dst` is replaced in one step and may be `src`. The file is put together in memory. Raises PromptSetError when the
    set has problems.
    """
    rows = require_prompts(src, max_count)
    tables = [_filled(pa.Table.from_batches([batch]), max_count) for file in _files(src) for batch in file.batches()]
    folder, name = _split(dst)
    open_files(folder, single_writer=True).replace(
        name, _parquet(pa.concat_tables(tables, promote_options="permissive"))
    )
    return rows


def make_prompts(rows: Iterable[Mapping[str, Any]], path: str) -> int:
    """Write a new set from rows of OWN_SCHEMA's columns and any others; the number of rows.

    Raises PromptSetError when the file exists already or a value has the wrong type.
    """
    listed = [{name: plain_value(value) for name, value in row.items()} for row in rows]
    used = {name for row in listed for name, value in row.items() if value is not None} | {"prompt"}
    try:
        own = pa.Table.from_pylist(listed, schema=pa.schema([own for own in OWN_SCHEMA if own.name in used]))
        for name in dict.fromkeys(name for row in listed for name in row if name not in OWN_SCHEMA.names):
            own = own.append_column(name, pa.array([row.get(name) for row in listed]))
    except (pa.ArrowException, TypeError) as error:
        raise PromptSetError(f"prompt set {path!r} can't be written: {error}; see the table of columns") from error
    folder, name = _split(path)
    if not open_files(folder, single_writer=True).create(name, _parquet(own)):
        raise PromptSetError(f"prompt set {path!r} exists already: give a new name, or remove it first")
    return len(listed)


# --- files ---


@dataclass(frozen=True, kw_only=True)
class _File:
    fs: fsspec.AbstractFileSystem
    path: str

    def schema(self) -> pa.Schema:
        with self.fs.open(self.path, "rb") as stream:
            return pq.ParquetFile(stream).schema_arrow

    def batches(self) -> Iterator[pa.RecordBatch]:
        with self.fs.open(self.path, "rb") as stream:
            yield from pq.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS, use_threads=False)


def _files(path: str) -> list[_File]:
    """The files of a set, sorted by name. Raises PromptSetError when there are none."""
    try:
        fs, place = url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise PromptSetError(f"prompt set {path!r} can't be opened: {error}; install its fsspec package") from error
    if fs.isfile(place):
        found = [place]
    elif fs.isdir(place):
        found = [name for name in fs.find(place) if name.endswith(".parquet") and _stem(name)[0] not in "._"]
    else:
        found = [name for name in fs.glob(place) if fs.isfile(name)] if any(mark in place for mark in "*?[") else []
    if not found:
        raise PromptSetError(
            f"prompt set {path!r}: no Parquet file there; give a file, a folder of *.parquet or a glob"
        )
    return [_File(fs=fs, path=name) for name in sorted(found)]


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _split(path: str) -> tuple[str, str]:
    """A path or URL as its folder and name."""
    folder, slash, name = path.rpartition("/")
    return (folder if folder else slash or "."), name


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _decoded(column: pa.Field) -> pa.Field:
    return column.with_type(column.type.value_type) if pat.is_dictionary(column.type) else column


# --- columns ---


def _is_text(type: pa.DataType) -> bool:
    return bool(pat.is_string(type) or pat.is_large_string(type) or pat.is_string_view(type))


def _is_targets(type: pa.DataType) -> bool:
    if not (pat.is_list(type) or pat.is_large_list(type) or pat.is_fixed_size_list(type)):
        return False
    if not pat.is_struct(type.value_type):
        return False
    fields = {own.name: _decoded(own).type for own in type.value_type}
    return _is_text(fields.get("noun", pa.null())) and bool(pat.is_integer(fields.get("count", pa.null())))


@dataclass(frozen=True)
class _Kind:
    accepts: Callable[[pa.DataType], bool]
    name: str
    remedy: str


_TEXT = _Kind(_is_text, "string", "cast it to string")
_KINDS = {
    "id": _TEXT,
    "prompt": _TEXT,
    "targets": _Kind(_is_targets, "list<struct<noun: string, count: int>>", "cast it, or leave the column out"),
    "negative_prompt": _TEXT,
    "seed": _Kind(pat.is_integer, "int64", "cast it to an integer type (in pandas: .astype('Int64'))"),
}


def _column_problems(schema: pa.Schema, file: str) -> list[str]:
    """What is wrong with a file's columns; its rows can be read only if nothing is."""
    found = []
    if "prompt" not in schema.names:
        found.append(f"{file}: has no column 'prompt' (it has {schema.names}); name the column with the prompts so")
    for name, times in Counter(schema.names).items():
        if times > 1:
            found.append(f"{file}, column {name!r}: there {times} times; keep one")
        elif name in ROW_SCHEMA.names and name not in _KINDS:
            found.append(f"{file}, column {name!r}: the output has a column of this name; rename it, e.g. 'my_{name}'")
        elif name in _KINDS:
            own = _decoded(schema.field(name)).type
            nothing = pat.is_null(own) and name != "prompt"
            if not nothing and not _KINDS[name].accepts(own):
                kind = _KINDS[name]
                found.append(f"{file}, column {name!r}: has type {own}, must be {kind.name}; {kind.remedy}")
    return found


# --- rows ---


@dataclass(frozen=True, kw_only=True, slots=True)
class _RawRow:
    """A row as it stands in its file: OWN_SCHEMA's columns read, the others left in the batch until asked for."""

    file: str
    number: int  # in its file
    index: int  # in the set
    own: dict[str, Any]
    batch: pa.RecordBatch
    offset: int  # in the batch

    def extra(self) -> dict[str, Any]:
        names = [name for name in self.batch.schema.names if name not in OWN_SCHEMA.names]
        return {name: _python(self.batch.column(name)[self.offset]) for name in names}

    def problem(self, column: str, value: object, trouble: str) -> str:
        shown = repr(value)
        shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 1]}…"
        return f"{self.file}, row {self.number}, column {column!r}: {shown}: {trouble}"


def _python(scalar: pa.Scalar) -> Any:
    """The value as Python has it; a nanosecond time, which Python hasn't, stays pyarrow's."""
    try:
        return scalar.as_py()
    except ValueError:
        return scalar


def _raw_rows(path: str, limit: int | None) -> Iterator[_RawRow | str]:
    """The rows of a set; in the place of rows that can't be read, a problem."""
    index = 0
    try:
        files = _files(path)
    except PromptSetError as error:
        yield str(error)
        return
    for file in files:
        start = index
        try:
            if problems := _column_problems(file.schema(), file.path):
                yield from problems
                continue
            for batch in file.batches():
                for raw in _batch_rows(batch, file.path, number=index - start, index=index):
                    if limit is not None and index >= limit:
                        return
                    yield raw
                    index += 1
        except _UNREADABLE as error:
            yield f"{file.path}: can't be read as Parquet, after {index - start} rows: {error}; write it again"


def _batch_rows(batch: pa.RecordBatch, file: str, *, number: int, index: int) -> Iterator[_RawRow]:
    """The rows of a batch whose first row is `number` in its file and `index` in the set."""
    columns = {name: batch.column(name).to_pylist() for name in OWN_SCHEMA.names if name in batch.schema.names}
    for offset in range(batch.num_rows):
        own = {name: values[offset] for name, values in columns.items()}
        yield _RawRow(file=file, number=number + offset, index=index + offset, own=own, batch=batch, offset=offset)


def _parsed_rows(path: str, max_count: int, limit: int | None) -> Iterator[PromptRow]:
    for raw in _raw_rows(path, limit):
        row, problems = _parsed(raw, max_count) if isinstance(raw, _RawRow) else (None, [raw])
        if row is None:  # the set was changed after the check
            raise PromptSetError(describe_problems(path, problems))
        yield row


def _parsed(raw: _RawRow, max_count: int) -> tuple[PromptRow | None, list[str]]:
    """The row, or None and what is wrong with it."""
    id, prompt, given, seed = (raw.own.get(name) for name in ("id", "prompt", "targets", "seed"))
    problems = []
    if id is not None and not _ID.fullmatch(id):
        problems.append(raw.problem("id", id, "must be 1 to 128 of A-Z a-z 0-9 . _ -; change it, or leave it null"))
    if seed is not None and not 0 <= seed < 2**63:
        problems.append(raw.problem("seed", seed, "must be 0 to 2**63 - 1; change it, or leave it null"))
    targets: tuple[Target, ...] = ()
    if prompt is None or not prompt.strip():
        problems.append(raw.problem("prompt", prompt, "is empty; write a prompt or drop the row"))
    else:
        try:
            targets = _targets(prompt, given, max_count)
        except PromptError as error:
            problems.append(raw.problem(*(("prompt", prompt) if given is None else ("targets", given)), str(error)))
    if problems or prompt is None:
        return None, problems
    return PromptRow(
        index=raw.index,
        id=id,
        prompt=prompt,
        targets=targets,
        negative_prompt=raw.own.get("negative_prompt"),
        seed=seed,
        extra=raw.extra(),
    ), []


def _targets(prompt: str, given: list[dict[str, Any] | None] | None, max_count: int) -> tuple[Target, ...]:
    """The given targets, or those parsed from the prompt. Raises PromptError."""
    if given is None:
        targets = tuple(parse_targets(prompt))
        if not targets:
            raise PromptError("no counted noun found in it; write e.g. 'three cats', or give targets")
    else:
        targets = tuple(_target(item) for item in given)
        if not targets:
            raise PromptError("is an empty list; give a target, or null to take them from the prompt")
    check_targets(prompt, targets, max_count=max_count)
    return targets


def _target(item: dict[str, Any] | None) -> Target:
    if item is None or not item["noun"] or item["count"] is None:
        raise PromptError(f"the target {item} needs both a noun and a count; fill them in, or drop it")
    return Target(noun=item["noun"], count=item["count"])


class _Repeats:
    """Finds rows that would be one another's videos, and ids that are there twice."""

    def __init__(self) -> None:
        self._ids: dict[str, tuple[str, int]] = {}
        self._samples: dict[bytes, tuple[str, int]] = {}

    def of(self, raw: _RawRow, row: PromptRow | None) -> list[str]:
        if row is None:
            return []
        here = (raw.file, raw.number)
        if row.id is not None and (first := self._ids.setdefault(row.id, here)) != here:
            return [raw.problem("id", row.id, f"is also in {_place(first)}; ids must differ")]
        if (first := self._samples.setdefault(_sample_digest(row), here)) != here:
            trouble = f"the same prompt, targets and seed as in {_place(first)} make the same video; "
            return [raw.problem("prompt", row.prompt, trouble + "drop one, or give them different ids or seeds")]
        return []


def _place(place: tuple[str, int]) -> str:
    return f"{place[0]}, row {place[1]}"


def _sample_digest(row: PromptRow) -> bytes:
    """What a video of the row depends on, beside the job: rows with equal digests make equal videos."""
    targets = [[target.noun, target.count] for target in row.targets]
    name = ["seed", row.seed] if row.seed is not None else ["id", row.id]
    content = canonical_json([row.prompt, row.negative_prompt, targets, *name])
    return hashlib.blake2b(content.encode(), digest_size=8).digest()


def _filled(table: pa.Table, max_count: int) -> pa.Table:
    prompts = table["prompt"].to_pylist()
    given = table["targets"].to_pylist() if "targets" in table.column_names else [None] * len(prompts)
    targets = [_targets(prompt, own, max_count) for prompt, own in zip(prompts, given, strict=True)]
    column = pa.array([plain_value(list(own)) for own in targets], type=TARGETS)
    place = table.column_names.index("targets") if "targets" in table.column_names else None
    if place is None:
        return table.add_column(table.column_names.index("prompt") + 1, "targets", column)
    return table.set_column(place, "targets", column)
