"""Where the rows lie: a file for each commit, segments that hold many commits' rows, and readers of both together.

    commits/ab/{key}.parquet      one row
    segments/{digest}.parquet     up to 10,000 rows, sorted by key; named by the keys it holds

A row may be in its commit and in any number of segments: it is the same row, and is seen once. A file that can't be
read is an DamageError that names it, never a row that silently isn't there.
"""

import binascii
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.rows import ROW_SCHEMA
from cluster.storage.protocol import Files, storage_trouble
from numina.errors import DamageError, OutputError, StorageError

SEGMENT_ROWS = 10_000

_KEY = re.compile(r"[0-9a-f]{32}")
_COMMIT = re.compile(r"[0-9a-f]{32}\.parquet")
_TRIES = 5
_REMEDIES = {
    "commits": "remove it, and the next run makes its row again",
    "segments": "remove it: rows whose commits are still there are read from those, and the next run makes the others",
    "evaluations": "remove it, and judge again",
}

S = TypeVar("S")
T = TypeVar("T")


class RowFiles:
    """The rows of one output."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def add(self, key: str, row: pa.Table) -> bool:
        """Commit the row; False when there is a commit of this key already, which stays as it is."""
        return self._files.create(commit_name(key), parquet_bytes(row))

    def is_committed(self, key: str) -> bool:
        """Whether the key's commit is there. One that a clean-up removed, because a segment has it, isn't."""
        try:
            self._files.stat(commit_name(key))
        except FileNotFoundError:
            return False
        return True

    def commits(self) -> Iterator[str]:
        """The keys of all commits that are there, from names alone."""
        for digests in self._commit_keys():
            yield from unpacked(digests)

    def segments(self) -> list[str]:
        """Names of all segments. Listed until nothing changes meanwhile: a listing amid a merge may have neither the
        new segment nor the old ones."""
        names = sorted(self._files.names("segments"))
        while (again := sorted(self._files.names("segments"))) != names:
            names = again
        return [f"segments/{name}" for name in names if name.endswith(".parquet")]

    def read(
        self, columns: Sequence[str] | None, segment: Callable[[pa.Table], S], loose: Callable[[list[str]], T]
    ) -> tuple[bytes, list[S], T]:
        """The packed keys of all segments' rows, what `segment` makes of these columns of each (None: all; "key" must
        be among them), and what `loose` makes of the keys of the commits that are in none of them.

        Commits are listed before segments, since a clean-up removes a commit only when a segment has its row; and all
        is read again when a clean-up removed a file before it was read.
        """

        def read_one(name: str) -> tuple[bytes, S]:
            table = read_table(self._files, name, columns)
            return packed([table], "key"), segment(table)

        for _ in range(_TRIES):
            listed = b"".join(self._commit_keys())
            try:
                with ThreadPoolExecutor(self._files.readers) as readers:
                    made = list(readers.map(read_one, self.segments()))
                known = b"".join(keys for keys, _ in made)
                return known, [part for _, part in made], loose(_missing(listed, known))
            except FileNotFoundError as error:
                gone = error
        raise StorageError(
            f"files of {self._files.root!r} were removed while they were read ({gone}): "
            "run the command again when no clean-up is running"
        )

    def tables(self, columns: Sequence[str] | None = None) -> list[pa.Table]:
        """These columns, or all, of every segment and of every commit that is in none. A row may come twice."""

        def read_loose(keys: list[str]) -> list[pa.Table]:
            return read_tables(self._files, map(commit_name, keys), columns)

        _, segments, commits = self.read(columns, lambda table: table, read_loose)
        return [*segments, *commits]

    def loose(self) -> list[str]:
        """Keys of the commits that no segment holds, sorted."""
        return self.read(["key"], lambda table: None, sorted)[2]

    def compact(self, keys: Iterable[str] | None, *, at_least: int, most: int) -> list[str]:
        """Gather commits (`keys`, or all that no segment holds) into segments of at most `most` rows; their names.

        A commit that isn't there is passed over. Raises DamageError for commits that can't be read, when all others
        are gathered.
        """
        chosen = sorted(set(keys)) if keys is not None else self.loose()
        if len(chosen) < at_least:
            return []
        made, torn = list[str](), list[DamageError]()
        for start in range(0, len(chosen), most):
            some, tables = chosen[start : start + most], list[pa.Table]()
            for outcome in self._attempts(some):
                if isinstance(outcome, pa.Table):
                    tables.append(outcome)
                elif isinstance(outcome, DamageError):
                    torn.append(outcome)
            if tables:
                made.append(self.write_segment(tables))
        if torn:
            raise DamageError("\n".join(map(str, torn)))
        return made

    def write_segment(self, tables: Sequence[pa.Table]) -> str:
        """One segment of these rows, each once; its name."""
        table = first_of_each(union(ROW_SCHEMA, tables), "key")
        digest = hashlib.blake2b("\n".join(table["key"].to_pylist()).encode(), digest_size=16).hexdigest()
        name = f"segments/{digest}.parquet"
        self._files.create(name, parquet_bytes(table))
        return name

    def _attempts(self, keys: Iterable[str]) -> list[pa.Table | DamageError | None]:
        def attempt(key: str) -> pa.Table | DamageError | None:
            try:
                return read_table(self._files, commit_name(key))
            except DamageError as error:
                return error
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(self._files.readers) as readers:
            return list(readers.map(attempt, keys))

    def _commit_keys(self) -> Iterator[bytes]:
        """The commits' keys, 16 bytes each, folder by folder."""

        def listed(shard: str) -> bytes:
            names = self._files.names(f"commits/{shard}")
            return binascii.unhexlify("".join([name[:32] for name in names if _COMMIT.fullmatch(name)]))

        with ThreadPoolExecutor(self._files.readers) as readers:
            yield from readers.map(listed, self._files.names("commits"))


def commit_name(key: str) -> str:
    return f"commits/{sharded(key)}.parquet"


def is_key(name: str) -> bool:
    return _KEY.fullmatch(name) is not None


def sharded(key: str) -> str:
    """A key as a name in one of 256 folders. Raises ValueError for what isn't a key: it must never become a path."""
    if not is_key(key):
        raise ValueError(f"key {key!r} is not 32 hex digits: make it with cluster.keys")
    return f"{key[:2]}/{key}"


# --- Parquet ---


def parquet_bytes(table: pa.Table) -> bytes:
    """A single row uncompressed and without statistics, which make it larger and slower to read (1.2 ms, not 0.5)."""
    sink, single = io.BytesIO(), len(table) == 1
    pq.write_table(
        table,
        sink,
        row_group_size=1024,
        compression="none" if single else "zstd",
        write_statistics=not single,
        use_dictionary=not single,
        write_page_checksum=True,
    )
    return sink.getvalue()


def read_table(files: Files, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """These columns of a Parquet file, those that it has; all when None.

    Raises FileNotFoundError when it is gone, DamageError when it is torn.
    """
    path = f"{files.root}/{name}"
    try:
        with files.open(name) as source:
            parquet = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
            return parquet.read(columns=list(columns) if columns is not None else None, use_threads=False)
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


def _missing(listed: bytes, known: bytes) -> list[str]:
    """The listed keys that aren't known, in hex."""
    there = _arrow(listed)
    loose = pc.filter(there, pc.invert(pc.is_in(there, value_set=_arrow(known))))
    return [digest.hex() for digest in loose.to_pylist()]


def _arrow(digests: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(16), len(digests) // 16, [None, pa.py_buffer(digests)])
