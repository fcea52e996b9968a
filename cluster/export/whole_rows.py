"""Whole rows of the clips that a growing export has chosen, with what their judge said: some at a time, as those of a
million clips are gigabytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import union
from cluster.dataset.store import Store
from cluster.evaluation.outcomes import Row
from cluster.export.columns import renamed
from cluster.export.selection import VERDICT
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA

ANNOTATED = "annotations"  # the column that a growing export has beside VERDICT's
CHOSEN = pa.schema([("key", pa.string()), ("strategies", pa.list_(pa.string())), ("accepted", pa.bool_())])
"""Clips to export, each once: the strategies that keep one, and whether it is accepted."""

SINGLY = 1000  # rows or verdicts that are looked for one by one, at most; of more, all that there are are read
WINDOW = 100_000  # whole rows in memory

_OF_VERDICT = pa.schema(
    [
        EVALUATION_SCHEMA.field("key"),
        *(own for own in VERDICT if own.name in EVALUATION_SCHEMA.names and own.name != "judge"),
    ]
)


def whole_rows(store: Store, keys: Sequence[str], read: Sequence[pa.Table] = ()) -> Iterator[pa.Table]:
    """All columns of the rows of these keys, each once, WINDOW rows and some thousands at a time at most. `read` has
    whole rows that were read already, others' among them."""
    wanted = _Keys(keys)
    held = [found for table in read if len(found := wanted.taken(table))]
    if wanted.left <= SINGLY:
        with ThreadPoolExecutor(store.files.readers) as readers:
            rows = readers.map(store.row_files.row, wanted.missing())
            held += [row for row in rows if row is not None]
    else:
        for table in store.row_files.stream(None):
            held.append(wanted.taken(table))
            if sum(map(len, held)) >= WINDOW:
                yield union(ROW_SCHEMA, held)
                held = []
    if held:
        yield union(ROW_SCHEMA, held)


def exported_columns(
    store: Store, judge: str | None, rows: pa.Table, chosen: pa.Table, known: Mapping[str, Row]
) -> tuple[pa.Table, dict[str, str]]:
    """Rows sorted by id, prompt, sample and key, with VERDICT's columns; and those of the prompt set's own columns that
    have another name there. `chosen` has CHOSEN's columns, `known` verdicts that were read already."""
    names = renamed(
        [name for name in rows.column_names if name not in ROW_SCHEMA.names],
        [*ROW_SCHEMA.names, *VERDICT.names, ANNOTATED],
    )
    order = pc.sort_indices(rows, [(name, "ascending") for name in ("id", "prompt", "sample", "key")])
    rows = rows.take(order).rename_columns([names.get(name, name) for name in rows.column_names])
    said = _verdicts(store, judge, rows["key"].to_pylist(), known)
    of, where = (pc.index_in(rows["key"], table["key"].combine_chunks()) for table in (chosen, said))
    own = {name: said[name].take(where) for name in said.column_names if name != "key"}
    own |= {name: chosen[name].take(of) for name in ("strategies", "accepted")}
    own["judge"] = pc.if_else(pc.is_valid(where), pa.scalar(judge, pa.string()), pa.scalar(None, pa.string()))
    for field in VERDICT:
        rows = rows.append_column(field, own.get(field.name, pa.nulls(len(rows), field.type)))
    return rows.combine_chunks(), names


def _verdicts(store: Store, judge: str | None, keys: Sequence[str], known: Mapping[str, Row]) -> pa.Table:
    """A judge's verdicts on these clips, as far as there are any: what an export has of them."""
    if judge is None:
        return _OF_VERDICT.empty_table()
    unknown = [key for key in keys if key not in known]
    if len(unknown) > SINGLY:
        wanted = _Keys(unknown)
        parts = list(store.map_evaluations(judge, _OF_VERDICT.names, wanted.taken))
    else:
        with ThreadPoolExecutor(store.files.readers) as readers:
            read = [row for row in readers.map(lambda key: store.evaluation(judge, key), unknown) if row is not None]
        parts = [pa.Table.from_pylist(read, schema=_OF_VERDICT)]
    parts.append(pa.Table.from_pylist([known[key] for key in keys if key in known], schema=_OF_VERDICT))
    return union(_OF_VERDICT, parts)


class _Keys:
    """Keys that are looked for, each once."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = np.sort(np.array(keys, dtype="S"))
        self._taken = np.zeros(len(keys), bool)

    @property
    def left(self) -> int:
        """How many weren't found yet."""
        return len(self._keys) - int(self._taken.sum())

    def missing(self) -> list[str]:
        """Those."""
        return [key.decode() for key in self._keys[~self._taken].tolist()]

    def taken(self, table: pa.Table) -> pa.Table:
        """The rows of keys that weren't found before."""
        own = np.array(table["key"].to_pylist(), dtype="S")
        if not len(self._keys) or not len(own):
            return table.slice(0, 0)
        places = np.minimum(np.searchsorted(self._keys, own), len(self._keys) - 1)
        firsts = np.zeros(len(own), bool)
        firsts[np.unique(own, return_index=True)[1]] = True
        new = firsts & (self._keys[places] == own) & ~self._taken[places]
        self._taken[places[new]] = True
        return table.filter(pa.array(new))
