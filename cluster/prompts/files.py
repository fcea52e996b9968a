"""The Parquet files of a prompt set, read a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.prompts.find import FoundFile
from numina.errors import PromptSetError

BLOCK_ROWS = 16_384
# What a damaged, truncated or unreachable Parquet file raises.
UNREADABLE = (pa.ArrowException, OSError, EOFError)

_FOOTERS_AT_ONCE = 16  # each is a round trip or two on an object store


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A Parquet file whose footer was read."""

    fs: fsspec.AbstractFileSystem
    path: str
    stored: pa.Schema  # its own columns
    groups: tuple[tuple[int, int], ...]  # of each row group its rows and its bytes
    options: dict[str, Any] = field(default_factory=dict)  # of `fs.open`
    partitions: dict[str, pa.Scalar] = field(default_factory=dict)  # columns that its folders' names give all its rows

    @cached_property
    def schema(self) -> pa.Schema:
        """Of its rows: its own columns, then those of its folders."""
        return pa.schema([*self.stored, *(pa.field(name, value.type) for name, value in self.partitions.items())])

    @property
    def rows(self) -> int:
        """From the footer."""
        return sum(rows for rows, _ in self.groups)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows that are read together: a part of one row group, no more than BLOCK_ROWS."""

    file: PromptFile
    group: int
    offset: int  # of its first row in the row group
    number: int  # of its first row in the file
    index: int  # of its first row in the set
    rows: int


def read_footers(found: Sequence[FoundFile]) -> Iterator[PromptFile | str]:
    """Each file with its footer read; in the place of one that can't be, the problem. No footer is read far ahead."""
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as readers:
        for start in range(0, len(found), _FOOTERS_AT_ONCE):
            yield from readers.map(_open_file, found[start : start + _FOOTERS_AT_ONCE])


def _open_file(found: FoundFile) -> PromptFile | str:
    try:
        try:
            return _read_footer(found, {})
        except pa.ArrowException:
            raise
        except ValueError:  # an HTTP server that can't send a part of a file: it is read whole
            return _read_footer(found, {"cache_type": "all"})
    except UNREADABLE as error:
        return unreadable(found.path, 0, error)


def _read_footer(found: FoundFile, options: dict[str, Any]) -> PromptFile:
    with found.fs.open(found.path, "rb", **options) as stream:
        parquet = pq.ParquetFile(stream)
        return PromptFile(
            fs=found.fs,
            path=found.path,
            stored=parquet.schema_arrow,
            groups=_groups(parquet),
            options=options,
            partitions=dict(zip(found.partition_names, found.partitions, strict=True)),
        )


def _groups(parquet: pq.ParquetFile) -> tuple[tuple[int, int], ...]:
    groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
    return tuple((group.num_rows, group.total_byte_size) for group in groups)


def unreadable(path: str, rows: int, error: Exception) -> str:
    """The problem of a file that can't be read on after so many rows."""
    if not rows and not path.lower().endswith(".parquet"):
        return (
            f"{path}: isn't Parquet ({error}); numina prompts import {path} OUT.parquet converts txt, csv, tsv, json "
            "and jsonl files"
        )
    return f"{path}: can't be read as Parquet, after {rows} rows: {error}; write it again"


def blocks_of(files: Iterable[PromptFile], limit: int | None) -> Iterator[Block]:
    """The blocks of a set's files in order, up to row `limit`."""
    index = 0
    for file in files:
        number = 0
        for group, (rows, _) in enumerate(file.groups):
            for offset in range(0, rows, BLOCK_ROWS):
                size = min(BLOCK_ROWS, rows - offset)
                if limit is not None:
                    size = min(size, limit - index)
                if size <= 0:
                    return
                yield Block(file=file, group=group, offset=offset, number=number, index=index, rows=size)
                number, index = number + size, index + size


def read_blocks(
    blocks: Iterable[Block], columns: Sequence[str] | None = None
) -> Iterator[tuple[Block, pa.RecordBatch]]:
    """Each block with its rows, in any order; in the set's own order every file is opened and read once.

    Of `columns` those that the file has. Raises one of UNREADABLE, or PromptSetError where a file was replaced since
    its footer was read.
    """
    reader: _Reader | None = None
    try:
        for block in blocks:
            if reader is None or reader.file is not block.file:
                if reader is not None:
                    reader.close()
                reader = _Reader(block.file, columns)
            yield block, reader.read(block)
    finally:
        if reader is not None:
            reader.close()


class _Reader:
    """One open file. A block behind the last one in its row group goes on from there, any other begins anew: Parquet
    can be decoded from the start of a row group alone."""

    def __init__(self, file: PromptFile, columns: Sequence[str] | None) -> None:
        self.file = file
        self._columns = None if columns is None else [name for name in columns if name in file.stored.names]
        self._partitions = {
            name: value for name, value in file.partitions.items() if columns is None or name in columns
        }
        self._stream = file.fs.open(file.path, "rb", **file.options)
        self._parquet = pq.ParquetFile(self._stream)
        if _groups(self._parquet) != file.groups or not self._parquet.schema_arrow.equals(file.stored):
            self.close()
            raise PromptSetError(f"{file.path} was replaced after it was checked: run the command again")
        self._group, self._begin = -1, 0
        self._batch: pa.RecordBatch  # rows of the group from `_begin` on
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def close(self) -> None:
        self._stream.close()

    def read(self, block: Block) -> pa.RecordBatch:
        if block.group != self._group or block.offset < self._begin:
            self._group, self._begin = block.group, 0
            self._batches = self._parquet.iter_batches(
                batch_size=BLOCK_ROWS, row_groups=[block.group], columns=self._columns, use_threads=False
            )
            self._batch = self._next_batch()
        parts, position, stop = [], block.offset, block.offset + block.rows
        while position < stop:
            end = self._begin + self._batch.num_rows
            if position < end:
                parts.append(self._batch.slice(position - self._begin, min(stop, end) - position))
                position += parts[-1].num_rows
            else:
                self._begin, self._batch = end, self._next_batch()
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)

    def _next_batch(self) -> pa.RecordBatch:
        batch = next(self._batches, None)
        if batch is None:
            raise EOFError(f"row group {self._group} ends early")
        for name, value in self._partitions.items():
            batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
        return batch
