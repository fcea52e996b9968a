"""The output of a job: its layout in storage, the commit that makes a row visible exactly once, and its readers.

    OUT/run.json                              what enters the keys, made once; a later run must agree with it
        runs/{time}-{token}.json              one per start: rows asked for, and whatever else is worth knowing later
        videos/ab/{key}-{sha256:16}.mp4       immutable, named by content
        layouts/ab/{key}-{sha256:16}.npz      identified and refined layout, no pickles
        commits/ab/{key}.parquet              create-if-absent: this IS the commit, one row
        segments/{digest}.parquet             many commits in one file; the commits stay until an offline `gc`
        failures/{key}/{attempt}.json
        evaluations/{judge}/{key}.parquet     verdicts, never written into commits
        leases/ab/{key}.json                  advisory, with an expiry

A video may be made twice (a driver died, two drivers raced); its row is seen once, because only one writer can create
the commit. Nothing here is kept in memory between calls: storage is the truth.
"""

import hashlib
import io
import json
import re
import time
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.atomic import Files, check_promise, open_files
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA, canonical, canonical_json, check_row, plain_value
from numina.errors import OutputError

FORMAT = "numina-output/1"

_KEY = re.compile(r"[0-9a-f]{32}")
_JUDGE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_RECENT_SECONDS = 3600.0
_READERS = 16


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far an output is, from storage alone."""

    done: int  # committed rows
    failed: int  # keys that were given up and have no row
    asked: int | None  # rows asked for by the latest run; None when it didn't say
    first_commit: datetime | None
    last_commit: datetime | None
    rate_per_hour: float | None  # over the last hour before the last commit; None below two commits
    eta_seconds: float | None  # until all asked rows are done or failed, at that rate

    @property
    def left(self) -> int | None:
        """Rows neither done nor failed; None when nobody said how many are asked for."""
        return None if self.asked is None else max(0, self.asked - self.done - self.failed)


class Store:
    """One output folder or prefix. Any number of processes on any number of machines may hold one.

    `extra_columns` are the prompt set's own columns (`promptset.extra_columns`), so that all commits have one schema.
    Raises OutputError where the storage can't keep the commit's promise and `single_writer` isn't set. Every method
    raises StorageError when storage is full or lost.
    """

    def __init__(self, root: str, *, single_writer: bool = False, extra_columns: pa.Schema | None = None) -> None:
        self._files: Files = open_files(root, single_writer=single_writer)
        self._single_writer = single_writer
        self._extra_columns = extra_columns if extra_columns is not None else pa.schema([])
        self._owner = uuid.uuid4().hex

    @property
    def root(self) -> str:
        """Where the output is: a path for a local folder, a URL else."""
        return self._files.root

    # --- the run ---

    def open_run(
        self, config: Mapping[str, Any], *, asked: int | None = None, info: Mapping[str, Any] | None = None
    ) -> None:
        """Start or resume a job. `config` is what enters the keys: the first run writes it, a later one must agree.

        `asked` (rows that the job wants in all) and `info` (anything: degrees, versions) are recorded for this start
        only. Raises OutputError that shows every difference, or when the folder holds something else than an output.
        """
        if not self._single_writer:
            check_promise(self._files)
        kept = self.run_config()
        if kept is None:
            self._refuse_foreign()
            self._files.create("run.json", _json({"format": FORMAT, "config": config}))
            kept = self.run_config() or {}
        self._refuse_difference(kept, json.loads(canonical_json(config)))
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        record = {"started": started, "asked": asked, "info": info or {}}
        self._files.create(f"runs/{started}-{self._owner[:8]}.json", _json(record))

    def run_config(self) -> dict[str, Any] | None:
        """What enters the keys of this output, as its first run wrote it; None before that."""
        try:
            run = json.loads(self._files.read("run.json"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OutputError(f"{self.root}/run.json isn't JSON ({error}); restore it or use another output") from error
        if not isinstance(run, dict) or run.get("format") != FORMAT:
            found = run.get("format") if isinstance(run, dict) else run
            raise OutputError(
                f"{self.root}/run.json has format {found!r}, this version reads {FORMAT!r}: "
                "use the version that wrote it, or another output"
            )
        config: dict[str, Any] = run["config"]
        return config

    def _refuse_foreign(self) -> None:
        entries = [entry for entry in self._files.entries() if entry != "lost+found"]
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
        name = f"videos/{_sharded(key)}-{digest[:16]}.mp4"
        self._files.create(name, data)
        return name, digest

    def put_layout(self, key: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Store a layout's arrays as npz; its file name (for the row's `layout_file`). Equal arrays, equal bytes.

        Raises ValueError for an object array: a pickle is never written, so never read.
        """
        data = _npz(arrays)
        name = f"layouts/{_sharded(key)}-{hashlib.sha256(data).hexdigest()[:16]}.npz"
        self._files.create(name, data)
        return name

    def read(self, file_name: str) -> bytes:
        """A stored file by the name that a row has for it; FileNotFoundError when it is gone."""
        return self._files.read(file_name)

    def commit(self, row: Mapping[str, Any]) -> bool:
        """Make the row visible; True if this call did, False if it was there already (then it stays as it is).

        `row` holds columns of ROW_SCHEMA, and the prompt set's own ones under `extra` (a mapping). Video and layout
        must be stored before. Raises ValueError for unknown or missing columns.
        """
        table = self._row_table(row)
        return self._files.create(_commit_name(row["key"]), _parquet(table))

    def committed(self) -> set[str]:
        """Keys of all rows, from listing the commits and reading the segments' key column."""
        keys = {_stem(name) for name in self._files.walk("commits")}
        for segment in self._segments(columns=["key"]):
            keys.update(segment["key"].to_pylist())
        return keys

    def rows(self) -> pa.Table:
        """All rows, each once, sorted by key: ROW_SCHEMA's columns, then the prompt set's own."""
        segments = list(self._segments())
        known = {key for segment in segments for key in segment["key"].to_pylist()}
        commits = self._read_tables(name for name in self._files.walk("commits") if _stem(name) not in known)
        table = _union(ROW_SCHEMA, [*segments, *commits])
        return _first_of_each(table, "key")

    def compact(self, *, at_least: int = 2) -> str | None:
        """Gather the commits that no segment holds into a new segment, when there are at least so many; its name.

        Readers see the same rows before and after; the commits stay. Any process may do it at any time.
        """
        known = {key for segment in self._segments(columns=["key"]) for key in segment["key"].to_pylist()}
        loose = sorted(name for name in self._files.walk("commits") if _stem(name) not in known)
        if len(loose) < at_least:
            return None
        table = _first_of_each(_union(ROW_SCHEMA, self._read_tables(loose)), "key")
        digest = hashlib.blake2b("\n".join(table["key"].to_pylist()).encode(), digest_size=16).hexdigest()
        name = f"segments/{digest}.parquet"
        self._files.create(name, _parquet(table))
        return name

    def _row_table(self, row: Mapping[str, Any]) -> pa.Table:
        own = {name: plain_value(value) for name, value in row.items() if name != "extra"}
        extra = {**dict.fromkeys(self._extra_columns.names), **dict(row.get("extra") or {})}
        check_row(own, extra)
        own["committed_at"] = own.get("committed_at") or datetime.now(UTC)
        known = pa.Table.from_pylist([own], schema=ROW_SCHEMA)
        for name, value in extra.items():
            declared = self._extra_columns.field(name).type if name in self._extra_columns.names else None
            known = known.append_column(name, pa.array([value], type=declared))
        return known

    def _segments(self, columns: list[str] | None = None) -> Iterable[pa.Table]:
        return self._read_tables(self._files.walk("segments"), columns)

    def _read_tables(self, names: Iterable[str], columns: list[str] | None = None) -> list[pa.Table]:
        def read(name: str) -> pa.Table:
            with pa.BufferReader(self._files.read(name)) as source:
                return pq.ParquetFile(source, pre_buffer=False).read(columns=columns, use_threads=False)

        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(read, names))

    # --- what went wrong ---

    def fail(self, key: str, record: Mapping[str, Any]) -> str:
        """Keep the record of one failed attempt; its file name. `final=False` in it: the key isn't given up yet."""
        content = _json({"failed_at": datetime.now(UTC).isoformat(), **record})
        attempt = sum(1 for _ in self._files.walk(f"failures/{_checked(key)}")) + 1
        while not self._files.create(f"failures/{key}/{attempt}.json", content):
            attempt += 1
        return f"failures/{key}/{attempt}.json"

    def failures(self) -> dict[str, list[dict[str, Any]]]:
        """The records of all failed attempts by key, in the order of the attempts; keys that have a row since, too."""
        names = sorted(self._files.walk("failures"), key=lambda name: (name.split("/")[1], int(_stem(name))))
        records: dict[str, list[dict[str, Any]]] = {}
        for name in names:
            records.setdefault(name.split("/")[1], []).append(json.loads(self._files.read(name)))
        return records

    # --- what judges said ---

    def put_evaluation(self, judge: str, key: str, row: Mapping[str, Any]) -> bool:
        """Keep a judge's verdict on a row: EVALUATION_SCHEMA's columns and any others. False if there was one."""
        if not _JUDGE.fullmatch(judge):
            raise ValueError(f"judge {judge!r} can't name a folder: use 1 to 64 of A-Z a-z 0-9 . _ -")
        own = {name: plain_value(value) for name, value in row.items()} | {"key": _checked(key), "judge": judge}
        table = pa.Table.from_pylist([own], schema=EVALUATION_SCHEMA)
        for name in own.keys() - set(EVALUATION_SCHEMA.names):
            table = table.append_column(name, pa.array([own[name]]))
        return self._files.create(f"evaluations/{judge}/{key}.parquet", _parquet(table))

    def evaluations(self, judge: str) -> pa.Table:
        """All verdicts of a judge, sorted by key; no rows when it gave none."""
        table = _union(EVALUATION_SCHEMA, self._read_tables(self._files.walk(f"evaluations/{judge}")))
        return _first_of_each(table, "key")

    def judges(self) -> list[str]:
        """Names of the judges that gave verdicts."""
        return sorted({name.split("/")[1] for name in self._files.walk("evaluations")})

    # --- who works on what ---

    def lease(self, key: str, *, seconds: float = 1800.0) -> bool:
        """Say that this store's holder works on the key from now on; False when another holds a fresh lease.

        A hint that saves double work, never a lock: two may get it at once, and the commit alone decides.
        """
        if self.leased(key):
            return False
        self._files.replace(_lease_name(key), _json({"owner": self._owner, "until": time.time() + seconds}))
        return True

    def leased(self, key: str) -> bool:
        """True while another holder's lease on the key is fresh."""
        try:
            lease = json.loads(self._files.read(_lease_name(key)))
        except FileNotFoundError:
            return False
        return bool(lease["owner"] != self._owner and lease["until"] > time.time())

    def release(self, key: str) -> None:
        """Give up the lease on the key: the work is done, or handed back."""
        self._files.remove(_lease_name(key))

    # --- how far it is ---

    def status(self) -> Status:
        """Counts, rate and remaining time, from listings, the failure records and the latest run's record."""
        times = self._commit_times()
        failed = sum(key not in times and records[-1].get("final", True) for key, records in self.failures().items())
        asked = self._asked()
        rate = _recent_rate(sorted(times.values()))
        left = None if asked is None else max(0, asked - len(times) - failed)
        return Status(
            done=len(times),
            failed=failed,
            asked=asked,
            first_commit=datetime.fromtimestamp(min(times.values()), UTC) if times else None,
            last_commit=datetime.fromtimestamp(max(times.values()), UTC) if times else None,
            rate_per_hour=rate,
            eta_seconds=0.0 if left == 0 else left / rate * 3600 if left and rate else None,
        )

    def _commit_times(self) -> dict[str, float]:
        """Seconds since the epoch by key."""
        times: dict[str, float] = {}
        for segment in self._segments(columns=["key", "committed_at"]):
            seconds = pc.divide(segment["committed_at"].cast(pa.int64()).cast(pa.float64()), 1e6)
            times.update(zip(segment["key"].to_pylist(), seconds.to_pylist(), strict=True))
        times.update((_stem(name), made) for name, made in self._files.times("commits"))
        return times

    def _asked(self) -> int | None:
        latest = max(self._files.walk("runs"), default=None)
        asked: int | None = json.loads(self._files.read(latest))["asked"] if latest else None
        return asked


_ABSENT = object()


def _json(value: Any) -> bytes:
    return (json.dumps(canonical(value), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


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
    if not _KEY.fullmatch(key):
        raise ValueError(f"key {key!r} is not 32 hex digits: make it with row_key")
    return key


def _sharded(key: str) -> str:
    return f"{_checked(key)[:2]}/{key}"


def _commit_name(key: str) -> str:
    return f"commits/{_sharded(key)}.parquet"


def _lease_name(key: str) -> str:
    return f"leases/{_sharded(key)}.json"


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].split(".", 1)[0]


def _parquet(table: pa.Table) -> bytes:
    """A single row uncompressed and without statistics, which make it larger and slower to read (1.2 ms, not 0.5)."""
    sink, single = io.BytesIO(), len(table) == 1
    compression = "none" if single else "zstd"
    pq.write_table(
        table,
        sink,
        row_group_size=1024,
        compression=compression,
        write_statistics=not single,
        use_dictionary=not single,
    )
    return sink.getvalue()


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


def _union(schema: pa.Schema, tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *tables], promote_options="permissive")


def _first_of_each(table: pa.Table, column: str) -> pa.Table:
    numbered = pa.table({column: table[column], "row": np.arange(len(table))})
    firsts = numbered.group_by(column).aggregate([("row", "min")]).sort_by(column)
    return table.take(firsts["row_min"]).combine_chunks()


def _recent_rate(times: Sequence[float]) -> float | None:
    """Commits per hour over the last hour before the last commit, so that a pause of days doesn't count."""
    recent = [moment for moment in times if moment >= times[-1] - _RECENT_SECONDS]
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return None
    return (len(recent) - 1) / (recent[-1] - recent[0]) * 3600
