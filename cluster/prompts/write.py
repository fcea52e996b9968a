"""Prompt sets written as one Parquet file: whole or not at all, and never over a different one by mistake."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.prompts.check import require_prompts
from cluster.prompts.columns import decoded, united
from cluster.prompts.promptset import ANY_COUNT, PromptSet, open_prompts
from cluster.prompts.row import OWN_SCHEMA, given_or_parsed
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

    `dst` is replaced in one step and may be `src`. The compressed file is put together in memory, its rows a block at
    a time. Raises PromptSetError when the set has problems.
    """
    rows = require_prompts(src, max_count)
    prompts = open_prompts(src)
    schema = _filled_schema(set_schema(prompts))
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for _, batch in prompts.read():
            writer.write_table(_with_schema(_filled(batch, max_count), schema))
    folder, name = split_path(dst)
    open_files(folder, single_writer=True).replace(name, sink.getvalue())
    return rows


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


def _filled(batch: pa.RecordBatch, max_count: int) -> pa.Table:
    table = pa.Table.from_batches([batch])
    prompts = table["prompt"].to_pylist()
    given = table["targets"].to_pylist() if "targets" in table.column_names else [None] * len(prompts)
    targets = [given_or_parsed(prompt, own, max_count) for prompt, own in zip(prompts, given, strict=True)]
    column = pa.array([plain_value(list(own)) for own in targets], type=TARGETS)
    place = table.column_names.index("targets") if "targets" in table.column_names else None
    if place is None:
        return table.add_column(table.column_names.index("prompt") + 1, "targets", column)
    return table.set_column(place, "targets", column)


def _filled_schema(schema: pa.Schema) -> pa.Schema:
    return _filled(pa.RecordBatch.from_pylist([], schema=schema), ANY_COUNT).schema


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), table], promote_options="permissive").select(schema.names)
