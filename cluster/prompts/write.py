"""Prompt sets written as one Parquet file: whole or not at all, and never over a different one by mistake."""

import io
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.prompts.alike import NEAR_DUPLICATE_OF, Alike, AlikeFinder, NearDuplicates, problem_of
from cluster.prompts.check import SetCheck, require_rows
from cluster.prompts.columns import cast_batch, decoded, united
from cluster.prompts.files import Block
from cluster.prompts.problems import Problem, RowProblem, problem_lines
from cluster.prompts.promptset import ANY_COUNT, PromptSet, opened
from cluster.prompts.row import (
    CHECKED_COLUMNS,
    DEFAULT_READING,
    OWN_SCHEMA,
    TARGETS_BY,
    TARGETS_DOUBTS,
    PromptRow,
    TargetReading,
    doubt_texts,
    parsed,
    raw_rows,
)
from cluster.prompts.summary import SetSummary
from cluster.rows import TARGETS, plain_value
from cluster.storage.open import open_files
from cluster.storage.protocol import Files
from numina.errors import PromptSetError


def write_set(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, force: bool = False) -> int:
    """Write batches as the set at a path or URL, a row group each; the number of rows.

    The compressed file is put together in memory and appears in one step. An equal file that is there already stays;
    a different one is replaced with `force` alone, else PromptSetError is raised.
    """
    sink, rows = io.BytesIO(), 0
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    publish(path, sink.getvalue(), force=force)
    return rows


def publish(path: str, data: bytes, *, force: bool = False) -> None:
    """Put a file in its place, as `write_set` does."""
    folder, name = split_path(path)
    files = open_files(folder, single_writer=True)
    if force:
        files.replace(name, data)
    elif not files.create(name, data) and not _is_there(files, name, data):
        raise PromptSetError(
            f"prompt set {path!r} exists already, with other rows: give a new name, remove it, or add --force"
        )


def _is_there(files: Files, name: str, data: bytes) -> bool:
    return files.stat(name).size == len(data) and files.read(name) == data


def split_path(path: str) -> tuple[str, str]:
    """A path or URL as its folder and name."""
    folder, slash, name = path.rpartition("/")
    return (folder if folder else slash or "."), name


def write_targets(src: str, dst: str, *, max_count: int = ANY_COUNT) -> int:
    """Write the set with every row's targets filled in, all other columns kept, as one file; the number of its rows.

    `dst` is replaced in one step and may be `src`. Raises PromptSetError when the set has problems.
    """
    found = look_over(src, dst, max_count=max_count)
    found.require()
    return found.summary.rows


@dataclass(frozen=True, kw_only=True)
class LookedOver:
    """What a pass over a whole set found."""

    summary: SetSummary
    problems: list[Problem]
    path: str
    alike: list[Alike]  # rows that are near-duplicates of earlier ones
    dropped: list[RowProblem]  # of those, the ones that were left out for it

    def require(self, *, skip: bool = False) -> None:
        """Raises one PromptSetError with all problems, unless they are all of single rows and these are skipped."""
        require_rows(self.path, self.problems, self.summary.rows, skip=skip)

    def can_be_taken(self, *, skip: bool = False) -> bool:
        """Whether `require` raises nothing."""
        return not self.problems or (
            skip and self.summary.bad < self.summary.rows and not any(isinstance(own, str) for own in self.problems)
        )


def look_over(
    src: str,
    dst: str | None = None,
    *,
    max_count: int = ANY_COUNT,
    reading: TargetReading = DEFAULT_READING,
    skip: bool = False,
    rejected: str | None = None,
    near_duplicates: NearDuplicates = "mark",
    report: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[PromptRow], None] = lambda row: None,
) -> LookedOver:
    """Check a set in one pass in which each row is parsed once; with `dst`, write it with all targets filled in.

    Columns TARGETS_BY and TARGETS_DOUBTS say what filled them and why they may be wrong. `dst` is replaced in one step
    and may be `src`; it is put together in memory, compressed, its rows a block at a time. `skip` leaves bad rows out;
    `rejected` is a JSON lines file that lists all problems. Where there are near-duplicates, a column NEAR_DUPLICATE_OF
    names their first rows, or they are dropped and listed among the rejected. `tell` is given each good row.

    Nothing is written where the set has problems; with `skip`, where whole files have. Raises PromptSetError where no
    file can be found.
    """
    prompts, problems = opened(src, None)
    check, summary = SetCheck(prompts, max_count, problems, reading=reading), SetSummary()
    output = _Filled(prompts) if dst is not None and not problems else None
    finder = AlikeFinder()
    for block, batch, _ in check.read(CHECKED_COLUMNS if output is None else None):
        rows = [check.row(raw, extra=False) for raw in raw_rows(block, batch)]
        bad = check.bad_rows
        rows = [row if row is not None and row.index not in bad else None for row in rows]
        summary.add(rows)
        for row in rows:
            if row is not None:
                tell(row)
                if near_duplicates != "ignore":
                    finder.add(row.index, row.id or f"row {row.index}", row.prompt, row.targets)
        if output is not None and (skip or not check.problems):
            output.add(block, batch, rows)
        report(block.index + block.rows, prompts.rows)
    known = check.bad_rows
    check.find_repeats()
    summary.repeats = sum(len(ids) for ids in prompts.implied_ids.values())
    for raw in check.rows_at(sorted(check.bad_rows - known)):
        row, _ = parsed(raw, max_count, reading)
        if row is not None:
            summary.remove(row)
    alike = [own for own in finder.found() if own.row not in check.bad_rows]
    dropped = _dropped(check, alike) if near_duplicates == "drop" else []
    found = LookedOver(summary=summary, problems=check.problems, path=src, alike=alike, dropped=dropped)
    if rejected is not None:
        place(rejected, problem_lines([*found.problems, *dropped]))
    if output is not None and dst is not None and found.can_be_taken(skip=skip):
        left_out = (check.bad_rows - known) | {problem.row for problem in dropped}
        place(dst, output.file(left_out, {own.row: own.name for own in alike if near_duplicates == "mark"}))
    return found


def _dropped(check: SetCheck, alike: Sequence[Alike]) -> list[RowProblem]:
    rows = {raw.index: raw for raw in check.rows_at([own.row for own in alike])}
    found = []
    for own in alike:
        raw = rows[own.row]
        found.append(problem_of(own, place=raw.place, row=raw.number, prompt=raw.own("prompt")))
    return found


def place(path: str, data: bytes) -> None:
    """Put a file in its place, over any other."""
    folder, name = split_path(path)
    open_files(folder, single_writer=True).replace(name, data)


class _Filled:
    """A set with its targets filled in, put together in memory."""

    def __init__(self, prompts: PromptSet) -> None:
        self._prompts = prompts
        self._schema = filled(set_schema(prompts).empty_table(), []).schema
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._numbers = array("q")  # in the set, of the rows written

    def add(self, block: Block, batch: pa.RecordBatch, rows: Sequence[PromptRow | None]) -> None:
        """The good ones of a block's rows."""
        good = [row for row in rows if row is not None]
        if len(good) < len(rows):
            batch = batch.take(pa.array([offset for offset, row in enumerate(rows) if row is not None], pa.int64()))
        table = pa.Table.from_batches([cast_batch(batch, self._prompts.extra_columns, block)])
        if "id" in table.column_names and "id" not in self._schema.names:
            self._with_ids()
        self._writer.write_table(in_schema(filled(table, good), self._schema))
        self._numbers.extend(row.index for row in good)

    def _with_ids(self) -> None:
        """Begins anew with a column for ids: a row has one of its own."""
        self._writer.close()
        written = pq.read_table(io.BytesIO(self._sink.getvalue()))
        self._schema = self._schema.insert(0, pa.field("id", pa.string()))
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        if written.num_rows:
            self._writer.write_table(in_schema(written, self._schema))

    def file(self, left_out: Collection[int], marks: Mapping[int, str]) -> bytes:
        """The whole file, without rows to leave out; `marks` are the near-duplicates' firsts by the rows' numbers."""
        self._writer.close()
        data = self._sink.getvalue()
        if not left_out and not marks:
            return data
        sink = io.BytesIO()
        kept = [number not in left_out for number in self._numbers]
        remake(pq.ParquetFile(io.BytesIO(data)), sink, kept, [marks.get(number) for number in self._numbers])
        return sink.getvalue()


def remake(source: pq.ParquetFile, sink: Any, kept: Sequence[bool], firsts: Sequence[str | None]) -> None:
    """Writes a set again, a row group at a time: the rows that are kept, with the column NEAR_DUPLICATE_OF where any
    row has a first."""
    marks, position = any(firsts), 0
    added = {NEAR_DUPLICATE_OF: pa.array([], pa.string())} if marks else {}
    schema = with_columns(source.schema_arrow.empty_table(), added).schema
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            own = slice(position, position + len(table))
            if marks:
                table = with_columns(table, {NEAR_DUPLICATE_OF: pa.array(firsts[own], pa.string())})
            table = table.filter(pa.array(kept[own], pa.bool_()))
            if len(table):
                writer.write_table(table)
            position = own.stop


def set_schema(prompts: PromptSet, leave: Sequence[str] = ()) -> pa.Schema:
    """All columns of a set in the types that its files unite to, without those to `leave` out.

    Raises PromptSetError where files give a column types that are not to be united.
    """
    columns = dict[str, pa.Field]()
    for file in prompts.files:
        for own in file.schema:
            if own.name in prompts.extra_columns.names:
                columns[own.name] = prompts.extra_columns.field(own.name)
                continue
            try:
                columns[own.name] = united(columns.get(own.name, decoded(own)), decoded(own))
            except pa.ArrowException as error:
                raise PromptSetError(
                    f"{file.path}, column {own.name!r}: can't be written as one with the set's other files ({error}); "
                    "write all files with one type"
                ) from error
    return pa.schema([own for name, own in columns.items() if name not in leave])


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
    folder, name = split_path(path)
    if not open_files(folder, single_writer=True).create(name, _parquet(own)):
        raise PromptSetError(f"prompt set {path!r} exists already: give a new name, or remove it first")
    return len(listed)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def filled(table: pa.Table, rows: Sequence[PromptRow]) -> pa.Table:
    """A set's rows with their targets, what filled them, and the doubts about them."""
    by = _given_column(table, TARGETS_BY)
    doubts = _given_column(table, TARGETS_DOUBTS)
    columns = {
        "targets": pa.array([plain_value(list(row.targets)) for row in rows], TARGETS),
        TARGETS_BY: pa.array(
            [(own or "given") if row.given else "rules" for row, own in zip(rows, by, strict=True)], pa.string()
        ),
        TARGETS_DOUBTS: pa.array(
            [(own or []) if row.given else doubt_texts(row.doubts) for row, own in zip(rows, doubts, strict=True)],
            pa.list_(pa.string()),
        ),
    }
    return with_columns(table, columns)


def with_columns(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """A table with columns in place of those it has, or else behind the others; targets behind the prompt."""
    for name, column in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            after = table.column_names.index("prompt") + 1 if name == "targets" else table.num_columns
            table = table.add_column(after, name, column)
    return table


def _given_column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with just the columns of a schema; those that it lacks are null."""
    return pa.concat_tables([schema.empty_table(), table], promote_options="permissive").select(schema.names)
