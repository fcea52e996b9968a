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
from cluster.dataset.row_files import RowFiles, Segments
from cluster.dataset.segments import commit_name, read_table
from cluster.dataset.store import Store
from numina.errors import OutputError, StorageError

KINDS = (
    *("temporaries", "videos", "layouts", "latents", "failures", "leases"),  # that no row needs
    *("commits", "verdicts", "gathered layouts", "segments"),  # that another file holds
)

_LOOK_SECONDS = 5.0  # between two looks whether somebody came
_AT_ONCE = 1000  # files that one thread removes in a row
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
    and dead leases; gather commits, verdicts and the rows' layouts into segments, and small segments into larger ones;
    remove the single files and segments that were read back from another segment. With `dry_run` only count: all single
    files, and segments as they lie.

    Raises OutputError where no run ever started, while anybody is at work on the output, and when a row can't be read:
    its files aren't known.
    """
    if store.run_config() is None:
        raise OutputError(f"{store.root!r} has no run.json, so it is no output of `numina run`: give the folder of one")
    work = _CleanUp(store, dry_run=dry_run)
    work.look()
    named = work.named_files()
    work.remove("temporaries", _unsized(store.files.temporaries()))  # first: on a full disk they make room for all else
    with _said(store) if not dry_run else nullcontext():
        work.look()  # who starts from now on sees that a clean-up is at work; who started before is seen here
        for folder in ("videos", "layouts", "latents"):
            work.remove(folder, work.unnamed(folder, named))
        work.remove_failures()
        work.remove("leases", _unsized(store.leases.dead()))
        work.gather("commits", store.row_files)
        for judge in store.judges():
            work.gather("verdicts", store.verdict_files(judge))
        work.gather_layouts(named)
    return Collected(files=work.files, bytes=work.bytes, segments_written=work.written)


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
    written: int = 0  # segments
    looked: float = 0.0

    def look(self) -> None:
        """Raises OutputError when somebody else may be writing."""
        self.store.leases.refuse(self.store.leases.in_the_way(), "a clean-up works alone")
        self.looked = time.monotonic()

    def remove(self, kind: str, names: Iterable[tuple[str, int | None]]) -> None:
        """Remove and count files, many at once; with each name its size, where it is known."""
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

    def _remove_some(self, names: Iterable[tuple[str, int | None]]) -> tuple[int, int]:
        there = dict[str, int]()
        for name, size in names:
            with suppress(FileNotFoundError):
                there[name] = self.store.files.stat(name).size if size is None else size
        if not self.dry_run:
            self.store.files.remove_all(there)
        return len(there), sum(there.values())

    # --- what no row needs ---

    def named_files(self) -> set[str]:
        """The videos, layouts and latents of all rows. Raises DamageError when one can't be read."""
        tables = self.store.row_files.tables(["key", *_NAMING])
        return set().union(*map(_names, tables))

    def unnamed(self, folder: str, named: set[str]) -> Iterator[tuple[str, int | None]]:
        for name, size in self._made(folder):
            if name not in named and not self._is_named_by_commit(name):
                yield name, size

    def _made(self, folder: str) -> Iterator[tuple[str, int | None]]:
        """Single files of this folder that a job made, and their sizes where these are known."""
        for part in self.store.files.keyed(folder):
            for bare, size in part.items():
                if _MADE.fullmatch(bare):
                    yield f"{folder}/{bare[:2]}/{bare}", size

    def _is_named_by_commit(self, name: str) -> bool:
        """A row that was committed since all were read, by somebody who leases nothing, keeps its files too."""
        try:
            row = read_table(self.store.files, commit_name(name.split("/")[-1][:32]), _NAMING)
        except FileNotFoundError:
            return False
        return name in _names(row)

    def remove_failures(self) -> None:
        folders = [f"failures/{key}" for key in self.store.files.names("failures")]
        committed = self.store.committed() if folders else set()
        done = [folder for folder in folders if folder.removeprefix("failures/") in committed]
        self.remove("failures", _unsized(name for folder in done for name in self.store.files.walk(folder)))
        for folder in [] if self.dry_run else done:
            self.store.files.remove_folder(folder)

    # --- few large files ---

    def gather(self, kind: str, rows: RowFiles) -> None:
        """Rows' own files into segments."""
        if not self.dry_run:
            self.written += len(rows.compact(None, at_least=1))
        self._merge(rows.in_segments)
        held: set[str] | None = None
        for part in rows.singles():
            if held is None and part and not self.dry_run:
                held = rows.in_segments.held(rows.segments())  # that can be read whole, now
            self.remove(kind, ((rows.name(key), size) for key, size in part.items() if held is None or key in held))

    def gather_layouts(self, named: set[str]) -> None:
        """The layouts that rows name into segments."""
        layouts, segments = self.store.layouts, self.store.layouts.in_segments
        single = {name: size for name, size in self._made("layouts") if name in named}
        if single and not self.dry_run:
            known = {name for segment in segments.names() for name in segments.told(segment) if name in single}
            self.written += layouts.gather(sorted(single.keys() - known))
        self._merge(segments)
        for segment in segments.names() if single and not self.dry_run else ():
            if segments.told(segment) & single.keys():
                held = segments.held([segment]) & single.keys()
                self.remove("gathered layouts", ((name, single.pop(name)) for name in held))
        if self.dry_run:
            self.remove("gathered layouts", single.items())

    def _merge(self, segments: Segments) -> None:
        """Small segments into larger ones: the larger is written and read back before the smaller are removed."""
        for group in segments.groups():
            if self.dry_run:
                self.remove("segments", _unsized(group))
                continue
            merged = segments.merge(group)
            self.remove("segments", _unsized(name for name in group if name != merged))  # one may hold all the rows
            self.written += merged not in group


def _unsized(names: Iterable[str]) -> Iterator[tuple[str, None]]:
    return ((name, None) for name in names)


def _names(rows: pa.Table) -> set[str]:
    """The files that these rows need."""
    return {name for column in _NAMING if column in rows.column_names for name in rows[column].to_pylist() if name}
