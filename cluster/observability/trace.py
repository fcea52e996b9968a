"""When and where each stage of a dataset's clips ran, as a trace for https://ui.perfetto.dev.

Chrome's trace event format: a process per place (a gang, an encoder, the CPUs), in it as many tracks as stages ran at
once, an arrow from each stage of a clip to the next.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import first_of_each, union
from cluster.dataset.store import Store
from cluster.rows import ROW_SCHEMA, python_rows
from numina.errors import InputError

COLUMNS = ["key", "id", "prompt", "strategy", "sample", "retries", "spans", "committed_at"]
"""The columns of a row that are read here."""

_CATEGORY = "clip"
_MICRO = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Span:
    """One stage of one clip, in whole microseconds since the trace began."""

    row: Mapping[str, Any]
    stage: str
    place: str
    began: int
    ended: int


def trace(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The trace of these rows' `spans`; rows that have none are left out. Times count from the first span's begin,
    which `otherData` tells."""
    kept = [row for row in rows if row.get("spans")]
    start = min((span["began"] for row in kept for span in row["spans"]), default=0.0)
    spans = sorted(
        (_span(row, span, start) for row in kept for span in row["spans"]),
        key=lambda span: (_natural(span.place), span.began, span.ended, span.row["key"]),
    )
    tracks: dict[int, tuple[int, int]] = {}  # id of a span → process, thread
    events: list[dict[str, Any]] = []
    for process, (place, group) in enumerate(groupby(spans, key=lambda span: span.place), start=1):
        events.append(_metadata(process, 0, "process_name", {"name": place}))
        events.append(_metadata(process, 0, "process_sort_index", {"sort_index": process}))
        lanes = 0
        for span, lane in _lanes(group):
            lanes = max(lanes, lane)
            tracks[id(span)] = process, lane
            events.append(_complete(span, process, lane))
        for lane in range(1, lanes + 1):
            track = place if lane == 1 else f"{place} ({lane})"
            events.append(_metadata(process, lane, "thread_name", {"name": track}))
    by_clip: dict[str, list[Span]] = {}
    for span in spans:
        by_clip.setdefault(span.row["key"], []).append(span)
    for number, clip in enumerate(by_clip.values(), start=1):
        events += _flow(number, sorted(clip, key=lambda span: (span.began, span.ended)), tracks)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"began": datetime.fromtimestamp(start, UTC).isoformat(), "clips": len(kept)},
    }


def latest_rows(store: Store, last: int, key: str | None = None) -> list[dict[str, Any]]:
    """The `last` committed rows of a dataset that have spans, or the one of this key. Raises InputError if none."""
    schema = pa.schema([ROW_SCHEMA.field(name) for name in COLUMNS])
    rows = first_of_each(union(schema, store.row_files.tables(COLUMNS)), "key")
    rows = rows.filter(pc.greater(pc.list_value_length(rows["spans"]), 0))
    if key is not None:
        rows = rows.filter(pc.equal(rows["key"], key))
    if not len(rows):
        raise InputError(
            f"no row{f' of key {key!r}' if key else ''} in {store.root!r} has the times of its stages; give an output"
            " of this version, and a key in it"
        )
    listed: list[dict[str, Any]] = python_rows(rows.take(pc.sort_indices(rows["committed_at"])[-last:]))
    return listed


def _span(row: Mapping[str, Any], span: Mapping[str, Any], start: float) -> Span:
    began = round((span["began"] - start) * _MICRO)
    ended = round((span["began"] + span["seconds"] - start) * _MICRO)
    return Span(row=row, stage=span["stage"], place=span["place"], began=began, ended=max(began, ended))


def _lanes(spans: Iterable[Span]) -> Iterator[tuple[Span, int]]:
    """Each span, in the order of their begins, with the first lane that is free by then: slices of one track must not
    overlap."""
    free_at: list[int] = []
    for span in spans:
        lane = next((lane for lane, end in enumerate(free_at) if end <= span.began), len(free_at))
        free_at[lane : lane + 1] = [span.ended]
        yield span, lane + 1


def _complete(span: Span, process: int, thread: int) -> dict[str, Any]:
    row = span.row
    args = {name: row.get(name) for name in ("key", "id", "prompt", "strategy", "sample", "retries")}
    return {
        "ph": "X",
        "name": span.stage,
        "cat": _CATEGORY,
        "pid": process,
        "tid": thread,
        "ts": span.began,
        "dur": span.ended - span.began,
        "args": {name: value for name, value in args.items() if value is not None},
    }


def _flow(number: int, spans: Sequence[Span], tracks: Mapping[int, tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """An arrow per pair of stages that follow each other: it binds to the slices that hold its ends."""
    for index, (before, after) in enumerate(pairwise(spans)):
        for phase, span in (("s", before), ("f", after)):
            process, thread = tracks[id(span)]
            event = {"ph": phase, "name": "next", "cat": _CATEGORY, "id": number * 1000 + index, "ts": span.began}
            yield event | {"pid": process, "tid": thread} | ({"bp": "e"} if phase == "f" else {})


def _metadata(process: int, thread: int, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "args": args}


def _natural(place: str) -> tuple[bool, list[Any]]:
    """Gangs first, as people count; then encoders and CPUs."""
    return not place.startswith("gang"), [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", place)]
