"""The output of a job: its layout in storage, the commit that makes a row visible exactly once, and its readers.

    OUT/run.json                              what enters the keys, made once; a later run must agree with it
        runs/{time}-{token}.json              one per start: rows asked for, and whatever else is worth knowing later
        videos/ab/{key}-{sha256:16}.mp4       immutable, named by content
        layouts/ab/{key}-{sha256:16}.npz      identified and refined layout, no pickles
        layouts/segments/{digest}.parquet     many layouts in one file, by an offline `gc`, see layouts.py
        latents/ab/{key}-{sha256:16}.safetensors    where asked for: what the video was decoded from, float32
        commits/ab/{key}.parquet              create-if-absent: this IS the commit, one row
        segments/{digest}.parquet             many commits in one file; the commits stay until an offline `gc`
        failures/{key}/{attempt}.json
        evaluations/{judge}/{key}.parquet     verdicts, never written into commits
        evaluations/{judge}/segments/{digest}.parquet    many verdicts in one file, as with commits
        evaluations/summary.{json,parquet}    what they come to, rewritten by every `numina evaluate`
        leases/{owner}.json                   what a living driver works on: a hint, see leases.py

A video may be made twice (a driver died, two drivers raced); its row is seen once, because only one writer can create
the commit. Nothing but keys of segments, which never change, is kept in memory between calls: storage is the truth.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from cluster.dataset.failures import Failures
from cluster.dataset.layouts import Layouts
from cluster.dataset.leases import Leases
from cluster.dataset.row_files import RowFiles, Segments
from cluster.dataset.run_record import RunRecord
from cluster.dataset.segments import (
    SEGMENT_ROWS,
    checked,
    commit_name,
    first_of_each,
    packed,
    read_tables,
    sharded,
    split,
    union,
)
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA, asks_no_count, check_row, one_value, plain_value, python_rows
from cluster.storage.open import open_files
from cluster.storage.protocol import Files
from numina.errors import OutputError, PromptSetError

T = TypeVar("T")

_JUDGE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What an output holds: 16 bytes for each row's key, and for each row's `task_digest` where it has one; where it
    was asked for, the chain of each row that asks for no count."""

    keys: frozenset[bytes]
    tasks: frozenset[bytes]
    plain: frozenset[bytes] = frozenset()


class Store:
    """One output folder or prefix. Any number of processes on any number of machines may hold one.

    `extra_columns` are the prompt set's own columns (`promptset.extra_columns`), so that all commits have one schema.
    Raises OutputError where the storage can't keep the commit's promise and `single_writer` isn't set. Every method
    raises StorageError when storage is full or lost.
    """

    def __init__(self, root: str, *, single_writer: bool = False, extra_columns: pa.Schema | None = None) -> None:
        self.files: Files = open_files(root, single_writer=single_writer)
        self.place = root if "://" in root else os.path.abspath(root)  # by which other processes open it
        self._single_writer = single_writer
        self._adds_rows = True
        self._extra_columns = extra_columns if extra_columns is not None else pa.schema([])
        self.owner = uuid.uuid4().hex  # names this holder's lease
        self.leases = Leases(self.files, self.owner)
        self.row_files = RowFiles(self.files, "commits", commit_name, Segments(self.files, "segments", ROW_SCHEMA))
        self.layouts = Layouts(self.files)
        self._run = RunRecord(self.files, self.leases, self.owner)
        self._failures = Failures(self.files)
        self._verdicts: dict[str, RowFiles] = {}  # by judge

    @classmethod
    def reader(cls, root: str) -> Self:
        """A holder of an output that adds no rows: reports, exports, judges. Any filesystem will do for it.

        Raises OutputError where no job has begun an output.
        """
        store = cls(root, single_writer=True)
        store._adds_rows = False
        if store.run_config() is None:
            raise OutputError(f"{store.root!r} has no run.json; give an output of `numina run`")
        return store

    @property
    def root(self) -> str:
        """Where the output is: a path for a local folder, a URL without user and secret else."""
        return self.files.root

    # --- the run ---

    def open_run(
        self,
        config: Mapping[str, Any],
        *,
        asked: int | None = None,
        info: Mapping[str, Any] | None = None,
        hub: Mapping[str, str] | None = None,
    ) -> None:
        """Start or resume a job. `config` is what enters the keys: the first run writes it, a later one must agree.

        `hub` has the commits of its hub ids, which `hub_commits` gives to later starts. `asked` (rows that the job
        wants in all) and `info` (anything: degrees, versions) are recorded for this start only. Raises OutputError as
        `check_run` does.
        """
        self._run.open(config, asked=asked, info=info, hub=hub, single_writer=self._single_writer)

    def check_run(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `run_config` gives, if a job of this `config` may start here; writes nothing.

        Raises OutputError that shows every difference, when the folder holds something else than an output, or while a
        clean-up is at work in it.
        """
        return self._run.check(config)

    def run_config(self) -> dict[str, Any] | None:
        """What enters the keys of this output, as its first run wrote it; None before that."""
        return self._run.config()

    def hub_commits(self) -> dict[str, str]:
        """The commit of every hub id that the output's jobs had, that of the first start that had it."""
        return self._run.hub_commits()

    def latest_run(self) -> dict[str, Any] | None:
        """What the latest start of a job recorded."""
        return self._run.latest()

    def runs(self) -> list[dict[str, Any]]:
        """What every start of a job recorded, the first one first."""
        return self._run.starts()

    # --- one row ---

    def put_video(self, key: str, data: bytes) -> tuple[str, str]:
        """Store an encoded video; its file name (for the row's `file_name`) and its sha256 in hex."""
        digest = hashlib.sha256(data).hexdigest()
        name = f"videos/{sharded(key)}-{digest[:16]}.mp4"
        self.files.create(name, data)
        return name, digest

    def put_layout(self, key: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Store a layout's arrays as npz; its file name (for the row's `layout_file`). Equal arrays, equal bytes.

        Raises ValueError for an object array: a pickle is never written, so never read.
        """
        return self.layouts.put(key, arrays)

    def put_latents(self, key: str, latents: np.ndarray, model: str) -> str:
        """Store what a video was decoded from, [C, F, h, w], as the VAE was given it; its file name (for the row's
        `latents_file`). `model`, the metadata's, is NAME@REVISION. Equal latents, equal bytes."""
        data = save({"latents": latents}, metadata={"model": model})  # several entries would come in any order
        name = f"latents/{sharded(key)}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        self.files.create(name, data)
        return name

    def read(self, file_name: str) -> bytes:
        """A stored file by the name that a row has for it, also a layout that a clean-up gathered; FileNotFoundError
        when it is gone."""
        return self.layouts.read(file_name) if file_name.startswith("layouts/") else self.files.read(file_name)

    def commit(self, row: Mapping[str, Any]) -> bool:
        """Make the row visible; True if this call did, False if it was there already (then it stays as it is).

        `row` holds columns of ROW_SCHEMA, and the prompt set's own ones under `extra` (a mapping). The files that it
        names must be stored before. Raises ValueError for unknown or missing columns.
        """
        assert self._adds_rows, "a reader can't keep the commit's promise"
        return self.row_files.add(row["key"], self._row_table(row))

    def is_committed(self, key: str) -> bool:
        """Whether the key's commit is there, by one look at the storage. `committed_index` also knows the rows whose
        commits a clean-up removed."""
        return self.row_files.has_file(key)

    def committed(self) -> set[str]:
        """Keys of all rows, in hex. For a million of them `committed_index` is leaner."""
        keys, _, loose = self.row_files.read(["key"], lambda table: None, list)
        return {key.hex() for key in split(keys)} | set(loose)

    def committed_index(self, *, plain: bool = False) -> Committed:
        """Keys and task digests of all rows, and with `plain` the chains of those that ask for no count: segments by
        these columns, and the commits that no segment holds."""
        columns = ["key", "task_digest", *(["chain", "targets"] if plain else [])]

        def found(tables: Sequence[pa.Table]) -> tuple[bytes, bytes]:
            return packed(tables, "task_digest"), packed(map(_plain_rows, tables), "chain") if plain else b""

        def read_loose(keys: list[str]) -> tuple[bytes, tuple[bytes, bytes]]:
            return bytes.fromhex("".join(keys)), found(read_tables(self.files, map(commit_name, keys), columns[1:]))

        keys, segments, (loose_keys, loose) = self.row_files.read(columns, lambda table: found([table]), read_loose)
        tasks, chains = (b"".join(parts) for parts in zip(*segments, loose, strict=True))
        return Committed(
            keys=frozenset(split(keys + loose_keys)), tasks=frozenset(split(tasks)), plain=frozenset(split(chains))
        )

    def plain(self) -> Committed:
        """Keys of the rows that ask for no count, and the chains that they belong to."""
        columns = ["key", "chain", "targets"]

        def read_loose(keys: list[str]) -> list[pa.Table]:
            return read_tables(self.files, map(commit_name, keys), columns)

        _, segments, loose = self.row_files.read(columns, _plain_rows, read_loose)
        found = [*segments, *map(_plain_rows, loose)]
        return Committed(keys=frozenset(split(packed(found, "key"))), tasks=frozenset(split(packed(found, "chain"))))

    def rows(self) -> pa.Table:
        """All rows, each once, sorted by key: ROW_SCHEMA's columns, then the prompt set's own.

        Raises DamageError that names the file when one can't be read.
        """
        return first_of_each(union(ROW_SCHEMA, self.row_files.tables()), "key")

    def map_rows(self, columns: Sequence[str] | None, part: Callable[[pa.Table], T]) -> list[T]:
        """`part` of these columns of all rows ("key" must be among them), some thousand rows at a time, each once: what
        it returns is all that is held. None: of ROW_SCHEMA's columns, then the prompt set's own."""
        schema = ROW_SCHEMA if columns is None else _chosen(ROW_SCHEMA, columns)
        return [part(union(schema, [table])) for table in self.row_files.stream(columns)]

    def row(self, key: str) -> dict[str, Any] | None:
        """One row, ROW_SCHEMA's columns at least; None where its key isn't committed."""
        found = self.row_files.row(key)
        return None if found is None else python_rows(union(ROW_SCHEMA, [found]))[0]

    def compact(self, keys: Iterable[str] | None = None, *, at_least: int = 2, most: int = SEGMENT_ROWS) -> list[str]:
        """Gather commits into segments of at most `most` rows, when there are at least so many; the segments' names.

        With `keys` only theirs, and nothing is listed; else all that no segment holds. Readers see the same rows
        before, meanwhile and after; the commits stay. Any process may do it at any time, beside others. Raises
        DamageError that names the commits that can't be read, when all others are gathered.
        """
        return self.row_files.compact(keys, at_least=at_least, most=most)

    def _row_table(self, row: Mapping[str, Any]) -> pa.Table:
        own = {name: plain_value(value) for name, value in row.items() if name != "extra"}
        extra = {**dict.fromkeys(self._extra_columns.names), **dict(row.get("extra") or {})}
        check_row(own, extra)
        own["committed_at"] = own.get("committed_at") or datetime.now(UTC)
        known = pa.Table.from_pylist([own], schema=ROW_SCHEMA)
        for name, value in extra.items():
            declared = self._extra_columns.field(name).type if name in self._extra_columns.names else None
            try:
                known = known.append_column(name, one_value(value, declared))
            except PromptSetError as error:
                raise PromptSetError(f"column {name!r}: {error}") from error
        return known

    # --- what went wrong ---

    def fail(self, key: str, record: Mapping[str, Any]) -> str:
        """Keep the record of one failed attempt; its file name. `final=False` in it: the key isn't given up yet."""
        return self._failures.add(key, record)

    def failures(self) -> dict[str, list[dict[str, Any]]]:
        """The records of all failed attempts by key, in the order of the attempts; keys that have a row since, too."""
        return self._failures.all()

    def given_up(self, committed: Committed) -> Committed:
        """Keys, and task digests where the records have them, of what failed for good and has no row."""
        final = self._failures.final(committed.keys)
        digests = [record["task_digest"] for record in final.values() if record.get("task_digest")]
        return Committed(keys=frozenset(map(bytes.fromhex, final)), tasks=frozenset(map(bytes.fromhex, digests)))

    # --- what judges said ---

    def put_evaluation(self, judge: str, key: str, row: Mapping[str, Any]) -> bool:
        """Keep a judge's verdict on a row: EVALUATION_SCHEMA's columns and any others. False if there was one, which
        stays, unless it has a `problem` and this one has none: a video came back."""
        own = {name: plain_value(value) for name, value in row.items()} | {"key": checked(key), "judge": judge}
        table = pa.Table.from_pylist([own], schema=EVALUATION_SCHEMA)
        for name in own.keys() - set(EVALUATION_SCHEMA.names):
            table = table.append_column(name, pa.array([own[name]]))
        return self.verdict_files(judge).add(key, table)

    def evaluations(self, judge: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All verdicts of a judge, sorted by key, with EVALUATION_SCHEMA's columns and any others, or with these; no
        rows when it gave none."""
        asked = None if columns is None else list(dict.fromkeys(["key", *columns]))
        table = first_of_each(union(EVALUATION_SCHEMA, self.verdict_files(judge).tables(asked)), "key")
        return table if columns is None else table.select(columns)

    def map_evaluations(self, judge: str, columns: Sequence[str] | None, part: Callable[[pa.Table], T]) -> Iterator[T]:
        """`part` of these columns of all verdicts of a judge (None: of all columns), some thousand at a time, each
        once, in no order: what it returns is all that is held. "key" must be among the columns."""
        schema = EVALUATION_SCHEMA if columns is None else _chosen(EVALUATION_SCHEMA, columns)
        for table in self.verdict_files(judge).stream(columns):
            yield part(union(schema, [table]))

    def evaluation(self, judge: str, key: str) -> dict[str, Any] | None:
        """A judge's verdict on one row, EVALUATION_SCHEMA's columns; None where there is none."""
        found = self.verdict_files(judge).row(checked(key))
        return None if found is None else dict(union(EVALUATION_SCHEMA, [found]).to_pylist()[0])

    def verdict_tables(self, judge: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of EVALUATION_SCHEMA of all verdicts of a judge, each once, some thousand at a time."""
        schema = pa.schema([EVALUATION_SCHEMA.field(name) for name in columns])
        for table in self.verdict_files(judge).stream(list({"key", *columns})):
            yield union(schema, [table]).select(columns)

    def verdicts_of_attempts(self, judge: str) -> Iterator[pa.Table]:
        """Key, chain, attempt, strength and CountAcc of all verdicts of a judge, as `verdict_tables` does."""
        return self.verdict_tables(judge, ["key", "chain", "attempt", "strength", "count_accuracy"])

    def compact_evaluations(self, judge: str, keys: Iterable[str] | None = None, *, at_least: int = 2) -> list[str]:
        """Gather a judge's verdicts into segments, as `compact` does commits. One with a problem stays as it is."""
        return self.verdict_files(judge).compact(keys, at_least=at_least)

    def judges(self) -> list[str]:
        """Names of the judges that gave verdicts."""
        found = self.files.names("evaluations")
        return sorted(name for name in found if _JUDGE.fullmatch(name) and not name.endswith((".json", ".parquet")))

    def verdict_files(self, judge: str) -> RowFiles:
        """Where the verdicts of a judge lie. Raises ValueError for what can't name a folder."""
        if not _JUDGE.fullmatch(judge):
            raise ValueError(f"judge {judge!r} can't name a folder: use 1 to 64 of A-Z a-z 0-9 . _ -")
        folder = f"evaluations/{judge}"
        return self._verdicts.setdefault(
            judge,
            RowFiles(
                self.files,
                folder,
                lambda key: f"{folder}/{checked(key)}.parquet",
                Segments(self.files, f"{folder}/segments", EVALUATION_SCHEMA),
                is_final=_has_no_problem,
            ),
        )

    # --- who works on what ---

    def lease(self, keys: Collection[str]) -> None:
        """Say that this holder works on these keys, and no others, from now on; again before LEASE_SECONDS are over.

        A hint that saves double work, never a lock: the commit alone decides.
        """
        self.leases.lease(keys)

    def take(self, keys: Sequence[str], held: Collection[str]) -> list[str]:
        """Lease what others haven't of `keys`, beside the `held` ones; the keys that this holder may start, in order.

        Ask `is_committed` of them after this, not before: what another just finished it leases no more.
        """
        return self.leases.take(keys, held)

    def leased(self) -> dict[str, str]:
        """Key → owner token of every key that another living holder leases."""
        return self.leases.leased()

    def others(self) -> list[str]:
        """Owner tokens of the other living holders."""
        return sorted(lease.owner for lease in self.leases.living())

    def release(self) -> None:
        """Lease nothing any more: the work is done, or left."""
        self.leases.release()


def _chosen(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """The fields of these names that it has, in their order."""
    return pa.schema([schema.field(name) for name in columns if name in schema.names])


def _plain_rows(table: pa.Table) -> pa.Table:
    return table.filter(asks_no_count(table))


def _has_no_problem(verdict: pa.Table) -> bool:
    """A verdict on a video that is missing or torn may be given anew."""
    return "problem" not in verdict.column_names or verdict["problem"].null_count == len(verdict)
