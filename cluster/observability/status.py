"""How far an output is, from storage alone: counts, rate and remaining time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import commit_name, packed, read_table, split, union
from cluster.dataset.store import Committed
from cluster.job.acceptance import Acceptance
from cluster.job.strategy import ACCEPTED, Strategy, strategy_of
from cluster.rows import ROW_SCHEMA
from numina.errors import DamageError

if TYPE_CHECKING:
    from cluster.dataset.store import Store

_RECENT_SECONDS = 3600.0
_COPIED_SECONDS = 60.0  # from a row's time of commit to its file's, above which the file is a copy
_CLIP = ["strategy", "attempt", "strength"]  # what tells the clips of a sample apart
_CLIP_SCHEMA = pa.schema([ROW_SCHEMA.field(name) for name in _CLIP])


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far an output is, from storage alone."""

    done: int  # committed rows
    plain: int  # of those, rows that ask for no count
    completed: int  # of what was asked for: the same, but of verified samples those that are settled
    failed: int  # keys that were given up and have no row
    asked: int | None  # rows asked for by the latest run, without those left out; None when it didn't say
    skipped: int  # rows of the prompt set that the latest run, or its shards, can't use and skip
    first_commit: datetime | None
    last_commit: datetime | None
    rate_per_hour: float | None  # over the last hour before the last commit; None below two commits
    eta_seconds: float | None  # until all asked rows are done or failed, at that rate

    @property
    def left(self) -> int | None:
        """Rows neither done nor failed; None when nobody said how many are asked for."""
        return None if self.asked is None else max(0, self.asked - self.completed - self.failed)


def status_of(store: Store) -> Status:
    """Counts, rate and remaining time: segments by two columns, the times of the other commits' files, the last
    failure of each key that has no row, and the latest run's record."""

    def commit_times(keys: list[str]) -> dict[str, float]:
        """Seconds since the epoch by key: of the files by the storage's clock, if none of them is a copy.

        A copy of an output may be made of files of now. No commit comes to be long after its row: then rows are read.
        """
        with ThreadPoolExecutor(store.files.readers) as readers:
            found = readers.map(lambda key: store.files.stat(commit_name(key)).modified, keys)
            times = dict(zip(keys, found, strict=True))
            oldest = min(times, key=times.__getitem__, default=None)
            if oldest is not None and times[oldest] - _row_time(store, oldest, times[oldest]) > _COPIED_SECONDS:
                found = readers.map(lambda key: _row_time(store, key, times[key]), keys)
                times = dict(zip(keys, found, strict=True))
        return times

    _, segments, loose = store.row_files.read(["key", "committed_at"], lambda table: table, commit_times)
    committed = _first_times(segments)
    keys = frozenset(split(packed([committed], "key"))) | {bytes.fromhex(key) for key in loose}
    times = np.sort(np.concatenate([_seconds(committed["committed_at_min"]), [*loose.values()]]))
    failed = len(store.given_up(Committed(keys=keys, tasks=frozenset())).keys)
    latest = store.latest_run() or {"asked": None, "info": {}}
    asked: int | None = latest["asked"]
    shards = _shards(store, latest)
    if asked is not None:
        asked -= sum(info.get("left_out", 0) for info in shards)
    plain = store.plain()
    completed = _completed(store, latest["info"], keys, plain.tasks) if "verify" in latest["info"] else len(keys)
    rate = _recent_rate(times)
    left = None if asked is None else max(0, asked - completed - failed)
    return Status(
        done=len(keys),
        plain=len(plain.keys),
        completed=completed,
        failed=failed,
        asked=asked,
        skipped=sum(info.get("rows", {}).get("skipped", 0) for info in shards),
        first_commit=datetime.fromtimestamp(times[0], UTC) if len(times) else None,
        last_commit=datetime.fromtimestamp(times[-1], UTC) if len(times) else None,
        rate_per_hour=rate,
        eta_seconds=0.0 if left == 0 else left / rate * 3600 if left and rate else None,
    )


def _row_time(store: Store, key: str, unknown: float) -> float:
    """When a single file's row was committed, by its writer's clock; `unknown` of a file that can't be read."""
    try:
        times = read_table(store.files, commit_name(key), ["committed_at"])["committed_at"].drop_null()
    except (DamageError, KeyError):
        return unknown
    return float(times[0].as_py().timestamp()) if len(times) else unknown


def _shards(store: Store, latest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the latest run recorded and, where it is a shard's, the latest runs of its other shards."""
    index, _, count = latest["info"].get("shard", "0/1").partition("/")
    found = {index: latest["info"]}
    if count not in ("", "1"):
        for run in store.runs():
            other, _, of = run["info"].get("shard", "0/1").partition("/")
            if of == count and run["asked"] == latest["asked"]:
                found[other] = run["info"]
    return list(found.values())


def _completed(store: Store, info: Mapping[str, Any], keys: Collection[bytes], plain: frozenset[bytes]) -> int:
    """Of what a run that verifies asked for: settled chains (`plain` ones are), and the clips of its other
    strategies."""
    strategies, verify = [*map(strategy_of, info["strategies"])], info["verify"]
    verified = {own.base: own.strengths for own in strategies if own.select == ACCEPTED}
    others = {clip for own in strategies if own.select != ACCEPTED for clip in _clips(own, verified)}
    asked = pa.table({name: [clip[place] for clip in others] for place, name in enumerate(_CLIP)}, schema=_CLIP_SCHEMA)
    made, chains = list[bytes](), {base: list[bytes]() for base in verified}

    def part(table: pa.Table) -> tuple[bytes, dict[str, bytes]]:
        """The packed keys of other clips, and the chains of verified ones, of some rows."""
        of = {base: pc.equal(table["strategy"], base) for base in verified}
        wanted = table.select(["key", *_CLIP]).join(asked, _CLIP, join_type="left semi")
        return packed([wanted], "key"), {base: packed([table.filter(own)], "chain") for base, own in of.items()}

    for keys_of_others, own in store.map_rows(["key", *_CLIP, "chain"], part):
        made.append(keys_of_others)
        for base, found in own.items():
            chains[base].append(found)
    number = len(set(split(b"".join(made))))
    for base, strengths in verified.items():
        rule = Acceptance(accept=verify["accept"], strengths=strengths)
        settled = plain | rule.settled(store.verdicts_of_attempts(verify["judge"]), keys)
        number += len(settled.intersection(split(b"".join(chains[base]))))
    return number


def _clips(strategy: Strategy, verified: Collection[str]) -> list[tuple[str, int, float]]:
    """What a strategy asks for of a sample, but for the clip that a verified one counts already."""
    asked = [(strategy.base, attempt, strength) for attempt, strength in enumerate(strategy.strengths)]
    return asked[1:] if strategy.base in verified else asked


def _first_times(segments: Sequence[pa.Table]) -> pa.Table:
    """Each key once, with the first time of its commit."""
    times = ROW_SCHEMA.field("committed_at")
    table = union(pa.schema([ROW_SCHEMA.field("key"), times]), segments)
    return table.group_by("key").aggregate([("committed_at", "min")])


def _seconds(times: pa.ChunkedArray) -> np.ndarray:
    """Since the epoch; rows without a time are left out."""
    seconds: np.ndarray = pc.divide(times.drop_null().cast(pa.int64()).cast(pa.float64()), 1e6).to_numpy()
    return seconds


def _recent_rate(times: np.ndarray) -> float | None:
    """Commits per hour over the last hour before the last commit, so that a pause of days doesn't count."""
    recent = times[times >= times[-1] - _RECENT_SECONDS] if len(times) else times
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return None
    return float((len(recent) - 1) / (recent[-1] - recent[0]) * 3600)
