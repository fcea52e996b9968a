"""Whole rows and verdicts of some clips of an output of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from cluster.dataset.segments import first_of_each, union
from cluster.evaluation.clips import Clips
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA, python_rows

if TYPE_CHECKING:
    from cluster.dataset.store import Store


def rows_of(store: Store, clips: Clips, places: Int[np.ndarray, " k"], sort_by: Sequence[str] = ("key",)) -> pa.Table:
    """All columns of these clips, sorted: copied once, as a million whole rows are gigabytes."""
    wanted = _mask(clips, places)

    def part(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(wanted[clips.places(table["key"])]))

    found = union(ROW_SCHEMA, store.map_rows(None, part))
    firsts = pa.array(np.unique(clips.places(found["key"]), return_index=True)[1])  # a row may come twice
    order = pc.sort_indices(found.select(sort_by).take(firsts), [(name, "ascending") for name in sort_by])
    return found.take(firsts.take(order))


def verdict_table(
    store: Store, judge: str, clips: Clips, places: Int[np.ndarray, " k"], columns: Sequence[str]
) -> tuple[pa.Table, Int[np.ndarray, " n"]]:
    """These columns of a judge's verdicts on clips, and for each of all clips where its verdict is; -1: nowhere."""
    wanted = _mask(clips, places)

    def part(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(wanted[clips.places(table["key"])]))

    schema = pa.schema([EVALUATION_SCHEMA.field(name) for name in columns])
    found = union(schema, list(store.map_evaluations(judge, columns, part)))
    where = np.full(len(clips), -1)
    where[clips.places(found["key"])] = np.arange(len(found))
    return found, where


def verdicts_of(store: Store, judge: str, clips: Clips, places: Int[np.ndarray, " k"]) -> dict[str, dict[str, Any]]:
    """A judge's verdicts on these clips by key, in ascending order."""
    wanted = _mask(clips, places)

    def part(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(wanted[clips.places(table["key"])]))

    found = first_of_each(union(EVALUATION_SCHEMA, list(store.map_evaluations(judge, None, part))), "key")
    return {row["key"]: row for row in python_rows(found)}


def file_names(store: Store, clips: Clips, places: Int[np.ndarray, " k"]) -> dict[int, str]:
    """The videos of clips, by the clips' places."""
    wanted = _mask(clips, places)

    def part(table: pa.Table) -> dict[int, str]:
        own = clips.places(table["key"])
        some = wanted[own]
        return dict(zip(own[some].tolist(), table["file_name"].filter(pa.array(some)).to_pylist(), strict=True))

    return {place: name for own in store.map_rows(["key", "file_name"], part) for place, name in own.items()}


def _mask(clips: Clips, places: np.ndarray) -> np.ndarray:
    wanted = np.zeros(len(clips) + 1, bool)  # one more, for what is at -1: none of the clips
    wanted[places] = True
    return wanted
