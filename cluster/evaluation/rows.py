"""Whole rows and verdicts of some clips of an output of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from cluster.dataset.segments import first_of_each, union
from cluster.evaluation.clips import Clips
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA, python_rows

if TYPE_CHECKING:
    from cluster.dataset.store import Store


def rows_of(store: Store, clips: Clips, places: Int[np.ndarray, " k"]) -> pa.Table:
    """All columns of these clips, sorted by key."""
    wanted = _mask(clips, places)

    def part(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(wanted[clips.places(table["key"])]))

    return first_of_each(union(ROW_SCHEMA, store.map_rows(None, part)), "key")


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
