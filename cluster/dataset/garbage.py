"""Offline clean-up of an output: what no row needs goes, and many small files become few large ones.

It works alone: no driver may be at work on the output. It may itself die at any moment: nothing is removed before it is
unneeded, so after every step all rows and all files that they name are there, and a second run ends the work.
"""

import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from threading import Event, Thread

import pyarrow as pa

from cluster.dataset.leases import LEASE_SECONDS
from cluster.dataset.segments import SEGMENT_ROWS, commit_name, packed, read_table, read_tables, split
from cluster.dataset.store import Store
from numina.errors import DamageError, OutputError, StorageError

KINDS = ("temporaries", "videos", "layouts", "latents", "failures", "leases", "commits", "segments")

_LOOK_SECONDS = 5.0  # between two looks whether somebody came
_AT_ONCE = 64  # files that one thread removes in a row
_NAMING = ("file_name", "layout_file", "latents_file")  # a row's columns that hold names of files
_MADE = re.compile(r"(?P<key>[0-9a-f]{32})-[0-9a-f]{16}\.(mp4|npz|safetensors)")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a clean-up removed, or would remove: files and bytes of each of KINDS."""

    files: dict[str, int]
    bytes: dict[str, int]
    segments_written: int = 0


def collect_garbage(store: Store, *, dry_run: bool = False) -> Collected:
    """Remove what killed writers left, videos, layouts and latents that no row names, failures of keys that have a row,
    and dead leases; gather commits into segments, and small segments into larger ones; remove commits and segments
    whose rows were read back from another segment. With `dry_run` only count: all commits, and segments as they lie.

    Raises OutputError where no run ever started, while anybody is at work on the output, and when a row can't be read:
    its files aren't known.
    """
    if store.run_config() is None:
        raise OutputError(f"{store.root!r} has no run.json, so it is no output of `numina run`: give the folder of one")
    work = _CleanUp(store, dry_run=dry_run)
    work.look()
    named = work.named_files()
    work.remove("temporaries", store.files.temporaries())  # first: on a full disk they make room for all else
    with _said(store) if not dry_run else nullcontext():
        work.look()  # who starts from now on sees that a clean-up is at work; who started before is seen here
        for folder in ("videos", "layouts", "latents"):
            work.remove(folder, work.unnamed(folder, named))
        work.remove_failures()
        work.remove("leases", store.leases.dead())
        written = work.gather_commits() + work.merge_segments()
        work.remove_commits()
    return Collected(files=work.files, bytes=work.bytes, segments_written=written)


@contextmanager
def _said(store: Store) -> Iterator[None]:
    """A lease of this clean-up, renewed until its end: reading a million rows takes longer than a lease lives."""
    ended = Event()

    def renew() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            with suppress(StorageError):  # what the clean-up itself does next raises it too
                store.leases.lease((), cleaning=True)

    store.leases.lease((), cleaning=True)
    renewing = Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        store.release()


@dataclass
class _CleanUp:
    store: Store
    dry_run: bool
    files: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    looked: float = 0.0

    def look(self) -> None:
        """Raises OutputError when somebody else may be writing."""
        self.store.leases.refuse(self.store.leases.in_the_way(), "a clean-up works alone")
        self.looked = time.monotonic()

    def remove(self, kind: str, names: Iterable[str]) -> None:
        """Remove and count files, many at once."""
        rest = iter(names)
        threads = self.store.files.readers
        with ThreadPoolExecutor(threads) as removers:
            while some := list(islice(rest, _AT_ONCE * threads)):
                if time.monotonic() - self.looked > _LOOK_SECONDS:
                    self.look()
                parts = [some[start : start + _AT_ONCE] for start in range(0, len(some), _AT_ONCE)]
                for files, size in removers.map(self._remove_some, parts):
                    self.files[kind] += files
                    self.bytes[kind] += size

    def _remove_some(self, names: Iterable[str]) -> tuple[int, int]:
        files = size = 0
        for name in names:
            try:
                size += self.store.files.stat(name).size
            except FileNotFoundError:
                continue
            if not self.dry_run:
                self.store.files.remove(name)
            files += 1
        return files, size

    # --- what no row needs ---

    def named_files(self) -> set[str]:
        """The videos, layouts and latents of all rows. Raises DamageError when one can't be read."""
        tables = self.store.row_files.tables(["key", *_NAMING])
        return set().union(*map(_names, tables))

    def unnamed(self, folder: str, named: set[str]) -> Iterator[str]:
        files = self.store.files
        for shard in files.names(folder):
            for bare in files.names(f"{folder}/{shard}"):
                name, made = f"{folder}/{shard}/{bare}", _MADE.fullmatch(bare)
                if made and name not in named and not self._is_named_by_commit(made["key"], name):
                    yield name

    def _is_named_by_commit(self, key: str, name: str) -> bool:
        """A row that was committed since all were read, by somebody who leases nothing, keeps its files too."""
        try:
            row = read_table(self.store.files, commit_name(key), _NAMING)
        except FileNotFoundError:
            return False
        return name in _names(row)

    def remove_failures(self) -> None:
        folders = [f"failures/{key}" for key in self.store.files.names("failures")]
        committed = self.store.committed() if folders else set()
        done = [folder for folder in folders if folder.removeprefix("failures/") in committed]
        self.remove("failures", (name for folder in done for name in self.store.files.walk(folder)))
        for folder in [] if self.dry_run else done:
            self.store.files.remove_folder(folder)

    # --- few large files ---

    def gather_commits(self) -> int:
        return 0 if self.dry_run else len(self.store.compact(at_least=1))

    def merge_segments(self) -> int:
        """Small segments into larger ones: the larger is written and read back before the smaller are removed."""
        written = 0
        for group in self._groups():
            if self.dry_run:
                self.remove("segments", group)
                continue
            tables = read_tables(self.store.files, group)
            merged = self.store.row_files.write_segment(tables)
            self._require_rows(merged, tables)
            self.remove("segments", [name for name in group if name != merged])  # one of them may hold all the rows
            written += merged not in group
        return written

    def _groups(self) -> Iterator[list[str]]:
        """Segments to merge: in each group at least two, and together not above SEGMENT_ROWS."""
        names = self.store.row_files.segments()
        rows = [len(table) for table in read_tables(self.store.files, names, ["key"])]
        group, total = list[str](), 0
        for size, name in sorted(zip(rows, names, strict=True)):
            if total + size > SEGMENT_ROWS:
                yield from [group] * (len(group) > 1)
                group, total = [], 0
            group, total = [*group, name], total + size
        yield from [group] * (len(group) > 1)

    def _require_rows(self, name: str, tables: list[pa.Table]) -> None:
        there = set(split(packed([read_table(self.store.files, name)], "key")))
        if missing := set(split(packed(tables, "key"))) - there:
            raise DamageError(
                f"{self.store.root}/{name} lacks {len(missing)} rows of the segments it was made of: "
                "nothing was removed; remove this file and clean up again"
            )

    def remove_commits(self) -> None:
        """Those whose rows a segment holds that can be read whole, now."""
        held = set[bytes]()
        for name in [] if self.dry_run else self.store.row_files.segments():
            held.update(split(packed([read_table(self.store.files, name)], "key")))
        commits = self.store.row_files.commits()
        self.remove("commits", (commit_name(key) for key in commits if self.dry_run or bytes.fromhex(key) in held))


def _names(rows: pa.Table) -> set[str]:
    """The files that these rows need."""
    return {name for column in _NAMING if column in rows.column_names for name in rows[column].to_pylist() if name}
