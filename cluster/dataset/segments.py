"""Parquet files of an output's rows, and the keys in them.

A file that can't be read is a DamageError that names it, never a row that silently isn't there.
"""

import binascii
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.storage.protocol import Files, storage_trouble
from numina.errors import DamageError, OutputError

SEGMENT_ROWS = 10_000  # the most of a file
SEGMENT_BYTES = 64 * 2**20  # from which on files are merged no more, and layouts go into the next one

_KEY = re.compile(r"[0-9a-f]{32}")
_REMEDIES = {
    "commits": "remove it, and the next run makes its row again",
    "segments": "remove it: rows whose commits are still there are read from those, and the next run makes the others",
    "evaluations": "remove it, and judge again",
    "layouts": "remove it: the report and exports do without its layouts",
}


def commit_name(key: str) -> str:
    return f"commits/{sharded(key)}.parquet"


def is_key(name: str) -> bool:
    return _KEY.fullmatch(name) is not None


def sharded(key: str) -> str:
    """A key as a name in one of 256 folders. Raises as `checked` does."""
    return f"{checked(key)[:2]}/{key}"


def checked(key: str) -> str:
    """The key. Raises ValueError for what isn't one: it must never become a path."""
    if not is_key(key):
        raise ValueError(f"key {key!r} is not 32 hex digits: make it with cluster.keys")
    return key


# --- Parquet ---


def parquet_bytes(table: pa.Table, *, row_group: int = 1024, notes: Mapping[str, str] | None = None) -> bytes:
    """A single row uncompressed and without statistics, which make it larger and slower to read (1.2 ms, not 0.5).
    `notes` are the file's own metadata, and no table's that is read from it."""
    sink, single = io.BytesIO(), len(table) == 1
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="none" if single else "zstd",
        write_statistics=not single,
        use_dictionary=not single,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=row_group)
        if notes:
            writer.add_key_value_metadata(dict(notes))
    return sink.getvalue()


def read_table(files: Files, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """These columns of a Parquet file, those that it has; all when None.

    Raises FileNotFoundError when it is gone, DamageError when it is torn.
    """
    with _parquet_trouble(files, name), files.open(name) as source:
        parquet = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
        return parquet.read(columns=list(columns) if columns is not None else None, use_threads=False)


def read_metadata(files: Files, name: str) -> tuple[pq.FileMetaData, int]:
    """What `read_row_group` needs of a Parquet file: its own last bytes, and its size. Raises as `read_table` does."""
    size = files.stat(name).size
    with _parquet_trouble(files, name), files.open_parts(name, size) as source:
        return pq.read_metadata(source), size


def read_row_group(files: Files, name: str, metadata: pq.FileMetaData, size: int, number: int) -> pa.Table:
    """One row group of a Parquet file, in few reads of parts of it. Raises as `read_table` does."""
    with _parquet_trouble(files, name), files.open_parts(name, size) as source:
        parquet = pq.ParquetFile(source, metadata=metadata, pre_buffer=True, page_checksum_verification=True)
        return parquet.read_row_group(number, use_threads=False)


@contextmanager
def _parquet_trouble(files: Files, name: str) -> Iterator[None]:
    path = f"{files.root}/{name}"
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; Parquet's own have no number
            with storage_trouble("read", path):
                raise
        remedy = _REMEDIES.get(name.split("/")[0], "remove it")
        raise DamageError(f"{path} is torn or isn't Parquet ({error}): {remedy}") from error


def read_tables(files: Files, names: Iterable[str], columns: Sequence[str] | None = None) -> list[pa.Table]:
    """`read_table` of each, many at once."""
    with ThreadPoolExecutor(files.readers) as readers:
        return list(readers.map(lambda name: read_table(files, name, columns), names))


def union(schema: pa.Schema, tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables: the schema's columns, then any others."""
    return pa.concat_tables([schema.empty_table(), *tables], promote_options="permissive")


def first_of_each(table: pa.Table, column: str) -> pa.Table:
    """The first row of each value, sorted by it."""
    numbered = pa.table({column: table[column], "row": np.arange(len(table))})
    firsts = numbered.group_by(column).aggregate([("row", "min")]).sort_by(column)
    return table.take(firsts["row_min"]).combine_chunks()


# --- digests: 32 hex digits each in files, 16 bytes each in memory ---


def packed(tables: Iterable[pa.Table], column: str) -> bytes:
    """The digests in a column, one after the other, nulls left out; nothing of a table that lacks the column."""
    chunks = [chunk.drop_null() for table in tables if column in table.column_names for chunk in table[column].chunks]
    digests = b"".join(binascii.unhexlify(_text(chunk)) for chunk in chunks)
    if len(digests) != 16 * sum(map(len, chunks)):
        raise OutputError(f"the column {column!r} has values that aren't 32 hex digits; give an output of `numina run`")
    return digests


def split(digests: bytes) -> list[bytes]:
    """Packed digests, 16 bytes each."""
    found: list[bytes] = np.frombuffer(digests, "V16").tolist()
    return found


def unpacked(digests: bytes) -> list[str]:
    """Packed digests in hex."""
    return [digest.hex() for digest in split(digests)]


def _text(chunk: pa.StringArray) -> bytes:
    offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return bytes(memoryview(chunk.buffers()[2])[offsets[0] : offsets[-1]]) if len(chunk) else b""


def missing(listed: bytes, known: bytes) -> list[str]:
    """The listed keys that aren't known, in hex."""
    there = _arrow(listed)
    loose = pc.filter(there, pc.invert(pc.is_in(there, value_set=_arrow(known))))
    return [digest.hex() for digest in loose.to_pylist()]


def _arrow(digests: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(16), len(digests) // 16, [None, pa.py_buffer(digests)])
