"""What an output cost: the time of its ranks, by kind of GPU, per accepted clip, and what of it was lost.

    spent = clips that are kept ─┬─ + attempts that a judge didn't accept    } lost
                                 ├─ + tries that failed before a clip        }
                                 └─ + clips that were given up               }

Time of clips that a driver had begun when it was killed is recorded nowhere, and in none of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import first_of_each, union
from cluster.job.acceptance import Acceptance
from cluster.rows import ROW_SCHEMA, STAGES, asks_no_count
from numina.stage import BESIDE_GANGS

if TYPE_CHECKING:
    from cluster.dataset.store import Store

CPU = "CPU"  # the kind of a rank without a GPU
_COLUMNS = ("key", "targets", "timings", "gpu_seconds", "rank_seconds", "lost_seconds", "gpu_name")
_DEGREES = ("ulysses", "ring", "cfg")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of all clips of an output, in seconds of a rank; on GPUs, a GPU's."""

    by_kind: Mapping[str, float]  # GPU kind or `CPU` → seconds of all clips made there, most first
    rejected: float  # of these, for clips that a judge didn't accept
    failed: float  # for tries that failed, of clips that were made later
    given_up: float  # for clips that were given up
    clips: int
    accepted: int | None  # clips; None where no judge gave a verdict

    @property
    def spent(self) -> float:
        """All of it."""
        return sum(self.by_kind.values()) + self.failed + self.given_up

    @property
    def lost(self) -> float:
        """What no accepted clip came of."""
        return self.rejected + self.failed + self.given_up

    @property
    def unit(self) -> str:
        """Of an hour of it."""
        return "GPU-hours" if set(self.by_kind) - {CPU} else "CPU rank-hours"

    @property
    def kinds(self) -> str:
        """Which GPUs, with their hours where they are several."""
        if len(self.by_kind) == 1:
            return next(iter(self.by_kind))
        return ", ".join(f"{kind}: {hours(seconds)}" for kind, seconds in self.by_kind.items())

    @property
    def per_clip(self) -> float | None:
        """Seconds spent for an accepted clip or, without a judge, for any; None where there is none."""
        number = self.clips if self.accepted is None else self.accepted
        return self.spent / number if number else None

    def sentence(self) -> str:
        """In one line."""
        what = "clip" if self.accepted is None else "accepted clip"
        each = f", {hours(self.per_clip)} per {what}" if self.per_clip is not None else ""
        parts = {
            "clips that weren't accepted": self.rejected,
            "tries that failed": self.failed,
            "clips given up": self.given_up,
        }
        lost = [f"{hours(seconds)} to {name}" for name, seconds in parts.items() if seconds]
        return f"{hours(self.spent)} {self.unit} ({self.kinds}){each}; lost: {', '.join(lost) or 'none'}"


def cost_of(store: Store, judge: str | None = None) -> Cost | None:
    """By rows, failure records and the verdicts of one judge (None: the one that verified, else the only one); None
    where no row is there."""
    tables = store.row_files.tables([*_COLUMNS, *_DEGREES])
    rows = first_of_each(union(ROW_SCHEMA, tables).select([*_COLUMNS, *_DEGREES]), "key")
    if not len(rows):
        return None
    seconds = rank_seconds(rows)
    kinds = pc.fill_null(rows["gpu_name"], pa.scalar("a GPU"))
    kinds = pc.if_else(pc.is_null(rows["gpu_seconds"]), CPU, kinds)
    sums = pa.table({"kind": kinds, "seconds": seconds}).group_by("kind").aggregate([("seconds", "sum")])
    sums = sums.sort_by([("seconds_sum", "descending")])
    judge = judge or _judge(store)
    accepted, refused = _judged(store, rows, judge) if judge else (None, np.zeros(len(rows), bool))
    given_up = sum(record.get("rank_seconds") or 0.0 for records in store.failures().values() for record in records)
    return Cost(
        by_kind=dict(zip(sums["kind"].to_pylist(), sums["seconds_sum"].to_pylist(), strict=True)),
        rejected=float(seconds[refused].sum()),
        failed=float(pc.sum(rows["lost_seconds"]).as_py() or 0.0),
        given_up=given_up,
        clips=len(rows),
        accepted=accepted,
    )


def rank_seconds(rows: pa.Table) -> np.ndarray:
    """Of each row (`outcomes.rank_seconds`, as columns), float64 [rows]."""
    stages = [stage for stage in STAGES if stage not in BESIDE_GANGS]
    parts = [pc.fill_null(pc.struct_field(rows["timings"], stage), 0.0) for stage in stages]
    busy = sum(np.asarray(part) for part in parts)
    for degree in _DEGREES:
        busy = busy * np.asarray(pc.fill_null(rows[degree], 1))
    seconds: np.ndarray = np.asarray(pc.coalesce(rows["rank_seconds"], rows["gpu_seconds"], pa.array(busy)))
    return seconds


def hours(seconds: float) -> str:
    """Seconds as hours, to three digits."""
    return f"{seconds / 3600:.3g}"


def _judge(store: Store) -> str | None:
    """The judge of the latest run that verified; else the only one."""
    asked = [run["info"]["verify"]["judge"] for run in store.runs() if "verify" in run["info"]]
    judges = store.judges()
    return asked[-1] if asked and asked[-1] in judges else judges[0] if len(judges) == 1 else None


def _judged(store: Store, rows: pa.Table, judge: str) -> tuple[int, np.ndarray]:
    """How many rows are accepted, those among them that ask for no count; and which were judged and aren't."""
    verdicts = store.evaluations(judge, ["key", "count_accuracy"])
    place = pc.index_in(rows["key"], verdicts["key"].combine_chunks())
    accuracy = np.asarray(verdicts["count_accuracy"].take(place).fill_null(np.nan)) if len(verdicts) else None
    plain = np.asarray(asks_no_count(rows))
    if accuracy is None:
        return int(plain.sum()), np.zeros(len(rows), bool)
    good = accuracy >= Acceptance.recorded(store).accept
    judged = np.asarray(pc.is_valid(place)) & ~plain
    return int((good | plain).sum()), judged & ~good
