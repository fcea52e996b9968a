"""Which clips of an output an export holds: those that its strategies keep, each once, with a judge's verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.store import Store
from cluster.evaluation.outcomes import Outcome, Row, outcomes, strategies_of
from cluster.export.columns import renamed
from cluster.job.acceptance import Acceptance
from cluster.rows import DETECTED, ROW_SCHEMA
from numina.errors import OutputError

# What outcomes need of a row: a hundred thousand whole rows would be gigabytes of Python objects.
_NEEDED = (
    *("key", "chain", "attempt", "strength", "strategy", "id", "sample", "prompt", "original_prompt", "targets"),
    *("gpu_seconds", "timings", "ulysses", "ring", "cfg"),
)
VERDICT = pa.schema(
    [
        ("strategies", pa.list_(pa.string())),  # that keep this clip
        ("judge", pa.string()),
        ("count_accuracy", pa.float64()),
        ("accepted", pa.bool_()),
        ("detected", DETECTED),
        ("clip_score", pa.float64()),
        ("temporal_consistency", pa.float64()),
    ]
)
"""The columns that an export has beside its rows' own; null where the clip wasn't judged."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What one judge says of one strategy's clips, of those whose prompts ask for counts."""

    judge: str
    strategy: str
    clips: int
    judged: int
    count_accuracy: float | None  # mean over judged clips, in [0, 1]
    accepted: int
    cost: float  # rank-seconds of all attempts


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The clips of an export, and what is known of all of them."""

    rows: pa.Table  # a row for each clip, sorted by id, sample and key: the output's columns, then VERDICT's
    strategies: tuple[str, ...]  # that were asked for
    judge: str | None  # whose verdicts the rows have
    accept: float  # CountAcc from which a clip is accepted
    accuracies: tuple[Accuracy, ...]  # of all judges and these strategies
    plain: int  # clips whose prompts ask for no count
    renamed: dict[str, str]  # columns of the prompt set that have another name here: their names are reserved

    @property
    def set_columns(self) -> list[str]:
        """The prompt set's own columns, as they are named here."""
        own = {*ROW_SCHEMA.names, *VERDICT.names}
        return [name for name in self.rows.column_names if name not in own]


def select(store: Store, *, strategy: str | None, judge: str | None, only: str, one: str | None = None) -> Selection:
    """The clips that the strategies keep; those of `strategy`, where it is given.

    `one` names a form that takes one clip of each sample, so one strategy. Raises OutputError for an output without
    rows, unknown names, or when nothing is left.
    """
    table = store.rows() if store.run_config() is not None else None
    if not table:
        raise OutputError(f"output {store.root!r} holds no rows; give an output of `numina run` that has some")
    rows = table.select(_NEEDED).to_pylist()
    made, acceptance = _strategies(store, rows, strategy, one), Acceptance.recorded(store)
    name = _judge(store, judge, only if any(row["targets"] for row in rows) else "all")
    verdicts = {own: _verdicts(store, own) for own in store.judges()}
    kept = {own.name: outcomes(own, rows, verdicts.get(name or "", {}), acceptance) for own in made}
    chosen = _chosen(kept, only)
    if not chosen:
        by = f" by {name}" if name else ""
        raise OutputError(f"output {store.root!r} has no clip that is {only}{by}; export all")
    accuracies = [
        _accuracy(judged, own.name, outcomes(own, rows, found, acceptance))
        for judged, found in verdicts.items()
        for own in made
    ]
    own = [name for name in table.column_names if name not in ROW_SCHEMA.names]
    names = renamed(own, [*ROW_SCHEMA.names, *VERDICT.names])
    return Selection(
        rows=_table(table, chosen, name, verdicts.get(name or "", {}), names),
        renamed=names,
        strategies=tuple(kept),
        judge=name,
        accept=acceptance.accept,
        accuracies=tuple(own for own in accuracies if own.judged),
        plain=len({outcome.kept["key"] for own in kept.values() for outcome in own if outcome.plain} & chosen.keys()),
    )


def _strategies(store: Store, rows: Sequence[Row], strategy: str | None, one: str | None) -> list[Any]:
    made = strategies_of(store, rows)
    names = ", ".join(own.name for own in made)
    if strategy is None:
        if one and len(made) > 1:
            raise OutputError(f"{one} takes one clip of each prompt and sample; give --strategy, one of {names}")
        return made
    found = [own for own in made if own.name == strategy]
    if not found:
        raise OutputError(f"strategy {strategy!r} isn't in output {store.root!r}; choose from {names}")
    return found


def _judge(store: Store, judge: str | None, only: str) -> str | None:
    judges = store.judges()
    known = ", ".join(judges) or "none; run `numina evaluate` first"
    if judge is not None and judge not in judges:
        raise OutputError(f"judge {judge!r} gave no verdicts in output {store.root!r}; there are {known}")
    if judge is None and only != "all" and len(judges) != 1:
        raise OutputError(f"--only {only} needs a judge; give --judge, one of {known}")
    return judge if judge is not None or len(judges) != 1 else judges[0]


def _verdicts(store: Store, judge: str) -> dict[str, Row]:
    return {verdict["key"]: verdict for verdict in store.evaluations(judge).to_pylist()}


def _chosen(kept: Mapping[str, Sequence[Outcome]], only: str) -> dict[str, tuple[list[str], bool | None]]:
    """By the key of a clip the strategies that keep it, and whether it is accepted."""
    chosen: dict[str, tuple[list[str], bool | None]] = {}
    for name, own in kept.items():
        for outcome in own:
            if only == "all" or outcome.accepted or (only == "judged" and outcome.accepted is not None):
                chosen.setdefault(outcome.kept["key"], ([], outcome.accepted))[0].append(name)
    return chosen


def _accuracy(judge: str, strategy: str, found: Sequence[Outcome]) -> Accuracy:
    found = [outcome for outcome in found if not outcome.plain]
    scores = [outcome.accuracy for outcome in found if outcome.accuracy is not None]
    return Accuracy(
        judge=judge,
        strategy=strategy,
        clips=len(found),
        judged=len(scores),
        count_accuracy=sum(scores) / len(scores) if scores else None,
        accepted=sum(bool(outcome.accepted) for outcome in found),
        cost=sum(outcome.cost for outcome in found),
    )


def _table(
    table: pa.Table,
    chosen: Mapping[str, tuple[list[str], bool | None]],
    judge: str | None,
    verdicts: Mapping[str, Row],
    names: Mapping[str, str],
) -> pa.Table:
    kept = table.filter(pc.is_in(table["key"], pa.array(list(chosen))))
    kept = kept.sort_by([(name, "ascending") for name in ("id", "prompt", "sample", "key")])
    kept = kept.rename_columns([names.get(name, name) for name in kept.column_names])
    added = []
    for key in kept["key"].to_pylist():
        strategies, accepted = chosen[key]
        verdict = verdicts.get(key, {})
        own = {name: verdict.get(name) for name in VERDICT.names if name in verdict}
        added.append(own | {"strategies": strategies, "accepted": accepted, "judge": judge if verdict else None})
    columns = pa.Table.from_pylist(added, schema=VERDICT)
    for name in VERDICT.names:
        kept = kept.append_column(VERDICT.field(name), columns[name])
    return kept.combine_chunks()
