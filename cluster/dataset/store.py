"""The output of a job: its layout in storage, the commit that makes a row visible exactly once, and its readers.

    OUT/run.json                              what enters the keys, made once; a later run must agree with it
        runs/{time}-{token}.json              one per start: rows asked for, and whatever else is worth knowing later
        videos/ab/{key}-{sha256:16}.mp4       immutable, named by content
        layouts/ab/{key}-{sha256:16}.npz      identified and refined layout, no pickles
        latents/ab/{key}-{sha256:16}.safetensors    where asked for: what the video was decoded from, float32
        commits/ab/{key}.parquet              create-if-absent: this IS the commit, one row
        segments/{digest}.parquet             many commits in one file; the commits stay until an offline `gc`
        failures/{key}/{attempt}.json
        evaluations/{judge}/{key}.parquet     verdicts, never written into commits
        evaluations/summary.{json,parquet}    what they come to, rewritten by every `numina evaluate`
        leases/{owner}.json                   what a living driver works on: a hint, see leases.py

A video may be made twice (a driver died, two drivers raced); its row is seen once, because only one writer can create
the commit. Nothing here is kept in memory between calls: storage is the truth.
"""

import hashlib
import io
import json
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import save

from cluster.dataset.leases import Leases
from cluster.dataset.segments import (
    SEGMENT_ROWS,
    RowFiles,
    commit_name,
    first_of_each,
    is_key,
    packed,
    parquet_bytes,
    read_table,
    read_tables,
    sharded,
    split,
    union,
)
from cluster.keys import canonical, canonical_json
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA, asks_no_count, check_row, one_value, plain_value, python_rows
from cluster.storage.open import check_promise, open_files
from cluster.storage.protocol import Files
from numina.errors import DamageError, OutputError, PromptSetError

FORMAT = "numina-output/1"
AT_ONCE = 1000  # small files that one part of `map_rows` and `map_evaluations` is made of

T = TypeVar("T")

_JUDGE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What an output holds: 16 bytes for each row's key, and for each row's `task_digest` where it has one."""

    keys: frozenset[bytes]
    tasks: frozenset[bytes]


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
        self.row_files = RowFiles(self.files)

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
        begun = self.check_run(config) is not None
        if not self._single_writer:
            check_promise(self.files)
        if not begun:
            pins = {"hub": hub} if hub else {}
            self.files.create("run.json", _json({"format": FORMAT, "config": config, **pins}))
            self.check_run(config)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        record = {"started": started, "asked": asked, "info": info or {}, "hub": hub or {}}
        self.files.create(f"runs/{started}-{self.owner[:8]}.json", _json(record))

    def check_run(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `run_config` gives, if a job of this `config` may start here; writes nothing.

        Raises OutputError that shows every difference, when the folder holds something else than an output, or while a
        clean-up is at work in it.
        """
        self.leases.refuse((lease for lease in self.leases.in_the_way() if lease.cleaning), "a clean-up works alone")
        kept = self.run_config()
        if kept is None:
            self._refuse_foreign()
        else:
            self._refuse_difference(kept, json.loads(canonical_json(config)))
        return kept

    def run_config(self) -> dict[str, Any] | None:
        """What enters the keys of this output, as its first run wrote it; None before that."""
        run = self._run_json()
        if run is None:
            return None
        config: dict[str, Any] = run["config"]
        return config

    def hub_commits(self) -> dict[str, str]:
        """The commit of every hub id that the output's jobs had, that of the first start that had it."""
        run = self._run_json()
        found: dict[str, str] = {}
        for record in [run, *self.runs()] if run else []:
            found = {**record.get("hub", {}), **found}
        return found

    def _run_json(self) -> dict[str, Any] | None:
        try:
            run = json.loads(self.files.read("run.json"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamageError(f"{self.root}/run.json isn't JSON ({error}); restore it or use another output") from error
        if not isinstance(run, dict) or run.get("format") != FORMAT:
            found = run.get("format") if isinstance(run, dict) else run
            raise OutputError(
                f"{self.root}/run.json has format {found!r}, this version reads {FORMAT!r}: "
                "use the version that wrote it, or another output"
            )
        return run

    def _refuse_foreign(self) -> None:
        entries = sorted(entry for entry in self.files.names() if entry != "lost+found")
        if entries and "run.json" not in entries:
            shown = ", ".join(entries[:5]) + (", …" if len(entries) > 5 else "")
            raise OutputError(
                f"output {self.root!r} has no run.json but holds {len(entries)} other entries ({shown}): "
                "give an empty or a new folder"
            )

    def _refuse_difference(self, kept: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        before, now = _flat(kept), _flat(config)
        names = [name for name in sorted(before | now) if before.get(name, _ABSENT) != now.get(name, _ABSENT)]
        if names:
            lines = [f"  {name}: {_shown(before, name)} there, {_shown(now, name)} now" for name in names]
            raise OutputError(
                f"output {self.root!r} was started with another configuration:\n" + "\n".join(lines) + "\n"
                "put these values back to resume, or give another output: one dataset has one configuration"
            )

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
        data = _npz(arrays)
        name = f"layouts/{sharded(key)}-{hashlib.sha256(data).hexdigest()[:16]}.npz"
        self.files.create(name, data)
        return name

    def put_latents(self, key: str, latents: np.ndarray, model: str) -> str:
        """Store what a video was decoded from, [C, F, h, w], as the VAE was given it; its file name (for the row's
        `latents_file`). `model`, the metadata's, is NAME@REVISION. Equal latents, equal bytes."""
        data = save({"latents": latents}, metadata={"model": model})  # several entries would come in any order
        name = f"latents/{sharded(key)}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        self.files.create(name, data)
        return name

    def read(self, file_name: str) -> bytes:
        """A stored file by the name that a row has for it; FileNotFoundError when it is gone."""
        return self.files.read(file_name)

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
        return self.row_files.is_committed(key)

    def committed(self) -> set[str]:
        """Keys of all rows, in hex. For a million of them `committed_index` is leaner."""
        keys, _, loose = self.row_files.read(["key"], lambda table: None, list)
        return {key.hex() for key in split(keys)} | set(loose)

    def committed_index(self) -> Committed:
        """Keys and task digests of all rows: segments by these two columns, and the commits that no segment holds."""

        def read_loose(keys: list[str]) -> tuple[bytes, bytes]:
            tables = read_tables(self.files, map(commit_name, keys), ["task_digest"])
            return bytes.fromhex("".join(keys)), packed(tables, "task_digest")

        keys, tasks, (loose_keys, loose_tasks) = self.row_files.read(
            ["key", "task_digest"], lambda table: packed([table], "task_digest"), read_loose
        )
        return Committed(
            keys=frozenset(split(keys + loose_keys)), tasks=frozenset(split(b"".join([*tasks, loose_tasks])))
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
        """`part` of these columns of all rows ("key" must be among them), some thousand rows at a time: what it returns
        is all that is held. None: of ROW_SCHEMA's columns, then the prompt set's own. A row may come twice."""
        schema = ROW_SCHEMA if columns is None else _chosen(ROW_SCHEMA, columns)

        def read_loose(keys: list[str]) -> list[T]:
            starts = range(0, len(keys), AT_ONCE)
            chunks = (map(commit_name, keys[start : start + AT_ONCE]) for start in starts)
            return [part(union(schema, read_tables(self.files, names, columns))) for names in chunks]

        _, segments, loose = self.row_files.read(columns, lambda table: part(union(schema, [table])), read_loose)
        return [*segments, *loose]

    def row(self, key: str) -> dict[str, Any] | None:
        """One row, ROW_SCHEMA's columns at least; None where its key isn't committed."""
        try:
            found = read_table(self.files, commit_name(key))
        except FileNotFoundError:  # a clean-up may have gathered it
            for name in self.row_files.segments():
                segment = read_table(self.files, name)
                found = segment.filter(pc.equal(segment["key"], key))
                if len(found):
                    break
            else:
                return None
        return python_rows(union(ROW_SCHEMA, [found]))[0]

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
        content = _json({"failed_at": datetime.now(UTC).isoformat(), **record})
        folder = f"failures/{_checked(key)}"
        attempt = max(self._attempts(key), default=0) + 1
        while not self.files.create(f"{folder}/{attempt}.json", content):
            attempt += 1
        return f"{folder}/{attempt}.json"

    def failures(self) -> dict[str, list[dict[str, Any]]]:
        """The records of all failed attempts by key, in the order of the attempts; keys that have a row since, too."""
        keys = sorted(filter(is_key, self.files.names("failures")))
        with ThreadPoolExecutor(self.files.readers) as readers:
            return dict(zip(keys, readers.map(self._failures_of, keys), strict=True))

    def given_up(self, committed: Committed) -> Committed:
        """Keys, and task digests where the records have them, of what failed for good and has no row."""
        failed = filter(is_key, self.files.names("failures"))
        keys = [key for key in failed if bytes.fromhex(key) not in committed.keys]
        with ThreadPoolExecutor(self.files.readers) as readers:
            last = dict(zip(keys, readers.map(self._last_failure, keys), strict=True))
        final = {key: record for key, record in last.items() if record is not None and record.get("final", True)}
        digests = [record["task_digest"] for record in final.values() if record.get("task_digest")]
        return Committed(keys=frozenset(map(bytes.fromhex, final)), tasks=frozenset(map(bytes.fromhex, digests)))

    def _attempts(self, key: str) -> list[int]:
        numbers = [name.removesuffix(".json") for name in self.files.names(f"failures/{key}")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def _failures_of(self, key: str) -> list[dict[str, Any]]:
        return [self._read_failure(key, attempt) for attempt in self._attempts(key)]

    def _last_failure(self, key: str) -> dict[str, Any] | None:
        attempts = self._attempts(key)
        return self._read_failure(key, attempts[-1]) if attempts else None

    def _read_failure(self, key: str, attempt: int) -> dict[str, Any]:
        return self._read_json(f"failures/{key}/{attempt}.json", "remove it, and the key is tried again")

    def _read_json(self, name: str, remedy: str) -> dict[str, Any]:
        try:
            content = json.loads(self.files.read(name))
        except ValueError as error:
            raise DamageError(f"{self.root}/{name} isn't JSON ({error}): {remedy}") from error
        if not isinstance(content, dict):
            raise DamageError(f"{self.root}/{name} holds {content!r}, must be a mapping: {remedy}")
        return content

    # --- what judges said ---

    def put_evaluation(self, judge: str, key: str, row: Mapping[str, Any], *, anew: bool = False) -> bool:
        """Keep a judge's verdict on a row: EVALUATION_SCHEMA's columns and any others. False if there was one, which
        stays, unless it is judged `anew`: a video came back."""
        if not _JUDGE.fullmatch(judge):
            raise ValueError(f"judge {judge!r} can't name a folder: use 1 to 64 of A-Z a-z 0-9 . _ -")
        own = {name: plain_value(value) for name, value in row.items()} | {"key": _checked(key), "judge": judge}
        table = pa.Table.from_pylist([own], schema=EVALUATION_SCHEMA)
        for name in own.keys() - set(EVALUATION_SCHEMA.names):
            table = table.append_column(name, pa.array([own[name]]))
        name, content = f"evaluations/{judge}/{key}.parquet", parquet_bytes(table)
        if anew:
            self.files.replace(name, content)
        return anew or self.files.create(name, content)

    def evaluations(self, judge: str) -> pa.Table:
        """All verdicts of a judge, sorted by key; no rows when it gave none."""
        names = self.files.walk(f"evaluations/{judge}")
        return first_of_each(union(EVALUATION_SCHEMA, read_tables(self.files, names)), "key")

    def map_evaluations(self, judge: str, columns: Sequence[str] | None, part: Callable[[pa.Table], T]) -> Iterator[T]:
        """`part` of these columns of all verdicts of a judge (None: of all columns), some thousand at a time, in no
        order: what it returns is all that is held. A verdict may come twice."""
        schema = EVALUATION_SCHEMA if columns is None else _chosen(EVALUATION_SCHEMA, columns)
        large, small = list[str](), list[str]()
        for name in self.files.walk(f"evaluations/{judge}"):
            (large if "/segments/" in name else small).append(name)
        for name in large:
            yield part(union(schema, [read_table(self.files, name, columns)]))
        for start in range(0, len(small), AT_ONCE):
            yield part(union(schema, read_tables(self.files, small[start : start + AT_ONCE], columns)))

    def evaluation(self, judge: str, key: str) -> dict[str, Any] | None:
        """A judge's verdict on one row, EVALUATION_SCHEMA's columns; None where there is none."""
        try:
            found = read_table(self.files, f"evaluations/{judge}/{_checked(key)}.parquet")
        except FileNotFoundError:
            return None
        verdict: dict[str, Any] = union(EVALUATION_SCHEMA, [found]).to_pylist()[0]
        return verdict

    def verdicts_of_attempts(self, judge: str) -> Iterator[dict[str, Any]]:
        """Key, chain, attempt, strength and CountAcc of all verdicts of a judge, some files at a time."""
        columns = ["key", "chain", "attempt", "strength", "count_accuracy"]
        for table in read_tables(self.files, self.files.walk(f"evaluations/{judge}"), columns):
            yield from union(EVALUATION_SCHEMA, [table]).select(columns).to_pylist()

    def judges(self) -> list[str]:
        """Names of the judges that gave verdicts."""
        return sorted(name for name in self.files.names("evaluations") if not name.endswith((".json", ".parquet")))

    def latest_run(self) -> dict[str, Any] | None:
        """What the latest start of a job recorded."""
        latest = max(self.files.names("runs"), default=None)
        return self._read_json(f"runs/{latest}", "remove it") if latest else None

    def runs(self) -> list[dict[str, Any]]:
        """What every start of a job recorded, the first one first."""
        return [self._read_json(f"runs/{name}", "remove it") for name in sorted(self.files.names("runs"))]

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


_ABSENT = object()


def _json(value: Any) -> bytes:
    return (json.dumps(canonical(value), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode(
        errors="backslashreplace"  # half a surrogate pair, as JSON writes it
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves by dotted name; lists are leaves."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        path: leaf
        for key, item in value.items()
        for path, leaf in _flat(item, f"{name}.{key}" if name else key).items()
    }


def _shown(leaves: Mapping[str, Any], name: str) -> str:
    return json.dumps(leaves[name], ensure_ascii=False) if name in leaves else "absent"


def _checked(key: str) -> str:
    return sharded(key)[3:]


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """`numpy.savez_compressed` without the clock: names sorted, one fixed date."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.getvalue())
    return sink.getvalue()
