"""Where rows lie: a file for each, segments that hold many, and readers of both together.

    commits/ab/{key}.parquet                          one row
    segments/{digest}.parquet                         up to 10,000 rows, sorted by key; named by the keys it holds
    evaluations/{judge}/{key}.parquet                 the same of a judge's verdicts
    evaluations/{judge}/segments/{digest}.parquet

A row may be in its own file and in any number of segments: it is the same row, and is seen once. A segment is never
changed, and what is in one is final. A file that can't be read is a DamageError that names it.
"""

import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import (
    SEGMENT_BYTES,
    SEGMENT_ROWS,
    first_of_each,
    missing,
    packed,
    parquet_bytes,
    read_metadata,
    read_row_group,
    read_table,
    read_tables,
    split,
    union,
    unpacked,
)
from cluster.storage.protocol import Files
from numina.errors import DamageError, StorageError

_SINGLE = re.compile(r"[0-9a-f]{32}\.parquet")
_TRIES = 5
_AT_ONCE = 1000  # single files that a stream reads in one go
_LARGE_ROWS = 16  # of a row group: what is read to have one of them
_KEYS = "numina.keys"  # the note in a file of large rows: 16 digits of each key

S = TypeVar("S")
T = TypeVar("T")


class Segments:
    """Files of many rows in one folder, one row for each value of the column `unique`, sorted by it and by key.

    With `large` rows a file tells in its last bytes which keys it has, and row groups are small: so one row is read
    in few small parts.
    """

    def __init__(
        self, files: Files, folder: str, schema: pa.Schema, *, unique: str = "key", large: bool = False
    ) -> None:
        self._files = files
        self.folder = folder
        self._schema = schema
        self._unique = unique
        self._large = large
        self._metadata = lru_cache(maxsize=256)(lambda name: read_metadata(files, name))
        self._group = lru_cache(maxsize=32)(
            lambda name, number: read_row_group(files, name, *self._metadata(name), number)
        )
        self._keys: dict[str, np.ndarray] = {}  # segment → the first 8 bytes of each of its keys, ascending
        self._lock = Lock()

    def names(self) -> list[str]:
        """Names of all segments. Listed until nothing changes meanwhile: a listing amid a merge may have neither the
        new segment nor the old ones."""
        names = sorted(self._files.names(self.folder))
        while (again := sorted(self._files.names(self.folder))) != names:
            names = again
        return [f"{self.folder}/{name}" for name in names if name.endswith(".parquet")]

    def write(self, tables: Sequence[pa.Table]) -> str:
        """One segment of these rows, each once; its name."""
        table = first_of_each(union(self._schema, tables), self._unique)
        digest = hashlib.blake2b("\n".join(table[self._unique].to_pylist()).encode(), digest_size=16).hexdigest()
        name = f"{self.folder}/{digest}.parquet"
        if self._large:
            keys = "".join(key[:16] for key in table["key"].to_pylist())
            self._files.create(name, parquet_bytes(table, row_group=_LARGE_ROWS, notes={_KEYS: keys}))
        else:
            self._files.create(name, parquet_bytes(table))
        return name

    def holding(self, key: str) -> list[tuple[str, int]]:
        """Segments that hold the key, and the row's number in each; none where no segment does. Keys are read once of
        each segment, and segments listed anew where those that are known don't hold it.

        Two keys that share their first 16 digits are taken for one: look at the row.
        """
        found = self._known(key)
        if not found:
            self._learn()
            found = self._known(key)
        return found

    def forget(self) -> None:
        """A segment is gone: a clean-up merged it into another."""
        with self._lock:
            self._keys = {}

    def find(self, key: str, value: str | None = None, *, listing: bool = True) -> pa.Table | None:
        """The row of a key, or of a value of `unique` that has this key; None where no segment holds it. Without
        `listing` only of the segments that are known already."""
        for name, row in self.holding(key) if listing else self._known(key):
            try:
                metadata, _ = self._metadata(name)
                size, groups = metadata.row_group(0).num_rows, metadata.num_row_groups
                for number in range(row // size, min(row // size + 2, groups)):  # a key may have two large rows
                    group = self._group(name, number)
                    found = group.filter(pc.equal(group[self._unique], value or key))
                    if len(found):
                        return found
            except FileNotFoundError:
                self.forget()
                return self.find(key, value, listing=listing)
        return None

    def groups(self) -> Iterator[list[str]]:
        """Segments to merge: in each group at least two, and together not above SEGMENT_ROWS and SEGMENT_BYTES."""
        names = self.names()
        with ThreadPoolExecutor(self._files.readers) as readers:
            sizes = list(readers.map(self._size, names))
        group, rows, size = list[str](), 0, 0
        for (more_rows, more_size), name in sorted(zip(sizes, names, strict=True)):
            if rows + more_rows > SEGMENT_ROWS or size + more_size > SEGMENT_BYTES:
                yield from [group] * (len(group) > 1)
                group, rows, size = [], 0, 0
            group, rows, size = [*group, name], rows + more_rows, size + more_size
        yield from [group] * (len(group) > 1)

    def merge(self, group: Sequence[str]) -> str:
        """One segment of all rows of these; its name, once it was read back. Raises DamageError where it lacks a row,
        or can't be read."""
        tables = read_tables(self._files, group)
        merged = self.write(tables)
        wanted = {value for table in tables for value in table[self._unique].to_pylist()}
        if lacking := wanted - self.held([merged]):
            raise DamageError(
                f"{self._files.root}/{merged} lacks {len(lacking)} rows of the segments it was made of: "
                "nothing was removed; remove this file and clean up again"
            )
        return merged

    def held(self, names: Iterable[str]) -> set[str]:
        """The values of `unique` in these segments, each of which is read whole, now."""
        return {value for name in names for value in read_table(self._files, name)[self._unique].to_pylist()}

    def told(self, name: str) -> set[str]:
        """The values of `unique` in a segment, from this column alone."""
        return set(read_table(self._files, name, [self._unique])[self._unique].to_pylist())

    def _size(self, name: str) -> tuple[int, int]:
        metadata, size = read_metadata(self._files, name)
        return metadata.num_rows, size

    def _known(self, key: str) -> list[tuple[str, int]]:
        wanted, known = np.uint64(int(key[:16], 16)), self._keys
        found = ((name, int(np.searchsorted(keys, wanted))) for name, keys in known.items())
        return [(name, row) for name, row in found if row < len(known[name]) and known[name][row] == wanted]

    def _learn(self) -> None:
        with self._lock:
            names, known = self.names(), self._keys
            new = [name for name in names if name not in known]
            with ThreadPoolExecutor(self._files.readers) as readers:
                read = dict(zip(new, readers.map(self._read_keys, new), strict=True))
            self._keys = {name: known[name] if name in known else read[name] for name in names}

    def _read_keys(self, name: str) -> np.ndarray:
        try:
            if self._large:
                told = bytes.fromhex(self._metadata(name)[0].metadata[_KEYS.encode()].decode())
            else:
                told = packed([read_table(self._files, name, ["key"])], "key")
        except FileNotFoundError:
            return np.zeros(0, np.uint64)
        return np.frombuffer(told, ">u8")[:: 1 if self._large else 2].astype(np.uint64)


class RowFiles:
    """The rows of one output, or of one of its judges: `name` has the file of a key in `folder`, `segments` the rest.

    `is_final` says whether a row may be put into a segment; another may take the place of one that isn't. None: all.
    """

    def __init__(
        self,
        files: Files,
        folder: str,
        name: Callable[[str], str],
        segments: Segments,
        *,
        is_final: Callable[[pa.Table], bool] | None = None,
    ) -> None:
        self._files = files
        self._folder = folder
        self.name = name
        self.in_segments = segments
        self._is_final = is_final

    def add(self, key: str, row: pa.Table) -> bool:
        """Keep the row; False when there is one of this key already, which stays, unless it isn't final and this one
        is."""
        content = parquet_bytes(row)
        if self._files.create(self.name(key), content):
            return True
        if self._is_final is None or not self._is_final(row) or self._is_final(read_table(self._files, self.name(key))):
            return False
        self._files.replace(self.name(key), content)
        return True

    def has_file(self, key: str) -> bool:
        """Whether the key's own file is there. One that a clean-up removed, because a segment has it, isn't."""
        try:
            self._files.stat(self.name(key))
        except FileNotFoundError:
            return False
        return True

    def row(self, key: str) -> pa.Table | None:
        """One row; None where there is none."""
        try:
            row = read_table(self._files, self.name(key))
        except FileNotFoundError:  # a clean-up may have gathered it
            return self.in_segments.find(key)
        if self._is_final is None or self._is_final(row):
            return row
        gathered = self.in_segments.find(key)
        return row if gathered is None else gathered

    def singles(self) -> Iterator[dict[str, int | None]]:
        """The keys of all rows that have a file of their own, in parts, each with the file's size where it is known."""
        for names in self._files.keyed(self._folder):
            yield {name[:32]: size for name, size in names.items() if _SINGLE.fullmatch(name)}

    def commits(self) -> Iterator[str]:
        """The keys of all rows that have a file of their own, from names alone."""
        for part in self.singles():
            yield from part

    def segments(self) -> list[str]:
        """Names of all segments."""
        return self.in_segments.names()

    def read(
        self, columns: Sequence[str] | None, segment: Callable[[pa.Table], S], loose: Callable[[list[str]], T]
    ) -> tuple[bytes, list[S], T]:
        """The packed keys of all segments' rows, what `segment` makes of these columns of each (None: all; "key" must
        be among them), and what `loose` makes of the keys of the single files that are in none of them.

        Single files are listed before segments, since a clean-up removes one only when a segment has its row; and all
        is read again when a clean-up removed a file before it was read.
        """

        def read_one(name: str) -> tuple[bytes, S]:
            table = read_table(self._files, name, columns)
            return packed([table], "key"), segment(table)

        for _ in range(_TRIES):
            listed = self._listed()
            try:
                with ThreadPoolExecutor(self._files.readers) as readers:
                    made = list(readers.map(read_one, self.segments()))
                known = b"".join(keys for keys, _ in made)
                return known, [part for _, part in made], loose(missing(listed, known))
            except FileNotFoundError as error:
                gone = error
        raise self._removed(gone)

    def stream(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """These columns, or all, of every row, each once: one segment, or some single files, after the other, so that
        few are in memory. "key" must be among the columns.
        """
        seen = set[bytes]()
        for _ in range(_TRIES):
            listed = self._listed()
            try:
                for name in self.segments():
                    yield from _unseen(read_table(self._files, name, columns), seen)
                loose = [key for key in unpacked(listed) if bytes.fromhex(key) not in seen]
                for start in range(0, len(loose), _AT_ONCE):
                    some = loose[start : start + _AT_ONCE]
                    tables = read_tables(self._files, map(self.name, some), columns)
                    yield from _unseen(pa.concat_tables(tables, promote_options="permissive"), seen)
                return
            except FileNotFoundError as error:
                gone = error
        raise self._removed(gone)

    def tables(self, columns: Sequence[str] | None = None) -> list[pa.Table]:
        """These columns, or all, of every segment and of every single file that is in none. A row may come twice."""

        def read_loose(keys: list[str]) -> list[pa.Table]:
            return read_tables(self._files, map(self.name, keys), columns)

        _, segments, loose = self.read(columns, lambda table: table, read_loose)
        return [*segments, *loose]

    def loose(self) -> list[str]:
        """Keys of the rows that no segment holds, sorted."""
        return self.read(["key"], lambda table: None, sorted)[2]

    def compact(self, keys: Iterable[str] | None, *, at_least: int, most: int = SEGMENT_ROWS) -> list[str]:
        """Gather single files (`keys`, or all that no segment holds) into segments of at most `most` rows; their names.

        One that isn't there, or isn't final, is passed over. Raises DamageError for those that can't be read, when all
        others are gathered.
        """
        chosen = sorted(set(keys)) if keys is not None else self.loose()
        if len(chosen) < at_least:
            return []
        made, torn = list[str](), list[DamageError]()
        for start in range(0, len(chosen), most):
            some, tables = chosen[start : start + most], list[pa.Table]()
            for outcome in self._attempts(some):
                if isinstance(outcome, pa.Table) and (self._is_final is None or self._is_final(outcome)):
                    tables.append(outcome)
                elif isinstance(outcome, DamageError):
                    torn.append(outcome)
            if tables:
                made.append(self.in_segments.write(tables))
        if torn:
            raise DamageError("\n".join(map(str, torn)))
        return made

    def write_segment(self, tables: Sequence[pa.Table]) -> str:
        """One segment of these rows, each once; its name."""
        return self.in_segments.write(tables)

    def _attempts(self, keys: Iterable[str]) -> list[pa.Table | DamageError | None]:
        def attempt(key: str) -> pa.Table | DamageError | None:
            try:
                return read_table(self._files, self.name(key))
            except DamageError as error:
                return error
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(self._files.readers) as readers:
            return list(readers.map(attempt, keys))

    def _listed(self) -> bytes:
        """The keys of all single files, packed."""
        return b"".join(binascii.unhexlify("".join(part)) for part in self.singles())

    def _removed(self, gone: FileNotFoundError | None) -> StorageError:
        return StorageError(
            f"files of {self._files.root!r} were removed while they were read ({gone}): "
            "run the command again when no clean-up is running"
        )


def _unseen(table: pa.Table, seen: set[bytes]) -> Iterator[pa.Table]:
    """The rows whose keys aren't among those seen, which they join; nothing where there are none."""
    keys = split(packed([table], "key"))
    if not seen.isdisjoint(keys):
        new = [place for place, key in enumerate(keys) if key not in seen]
        table = table.take(pa.array(new, pa.int64()))
    seen.update(keys)
    if len(table):
        yield table
