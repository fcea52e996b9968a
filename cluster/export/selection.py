"""Which clips of an output an export holds: those that its strategies keep, each once, with a judge's verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.dataset.store import Store
from cluster.evaluation.clips import Clips, spread
from cluster.evaluation.cost import Cost, cost_of
from cluster.evaluation.judged import Judged, nothing_judged, read_evidence
from cluster.evaluation.kept import Kept, kept_by, strategies_made
from cluster.evaluation.rows import rows_of, verdict_table
from cluster.export.columns import renamed
from cluster.export.similar import Similarity, similarity_of
from cluster.job.acceptance import Acceptance
from cluster.job.strategy import Strategy
from cluster.rows import DETECTED, ROW_SCHEMA
from numina.errors import OutputError

VERDICT = pa.schema(
    [
        ("strategies", pa.list_(pa.string())),  # that keep this clip
        ("judge", pa.string()),
        ("count_accuracy", pa.float64()),
        ("accepted", pa.bool_()),
        ("detected", DETECTED),
        ("clip_score", pa.float64()),
        ("temporal_consistency", pa.float64()),
        ("nearest_similarity", pa.float64()),  # cosine with the most similar other clip of the export and same targets
    ]
)
"""The columns that an export has beside its rows' own; null where the clip wasn't judged."""


_TAKEN = (*ROW_SCHEMA.names, *VERDICT.names)
_OF_VERDICT = ("count_accuracy", "detected", "clip_score", "temporal_consistency")


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
    cost: Cost | None  # of the whole output, by the same judge
    left_out: dict[str, int]  # clips of the output that are not exported, by the reason
    similarity_by: str | None  # the judge whose embeddings were compared
    renamed: dict[str, str]  # columns of the prompt set that have another name here: their names are reserved

    @property
    def set_columns(self) -> list[str]:
        """The prompt set's own columns, as they are named here."""
        own = {*ROW_SCHEMA.names, *VERDICT.names}
        return [name for name in self.rows.column_names if name not in own]


def select(
    store: Store,
    *,
    strategy: str | None,
    judge: str | None,
    only: str,
    one: str | None = None,
    distinct: float | None = None,
) -> Selection:
    """The clips that the strategies keep; those of `strategy`, where it is given.

    `distinct` leaves out clips whose cosine with an earlier one of the same targets is that or more. `one` names a form
    that takes one clip of each sample, so one strategy. Raises OutputError for an output without rows, unknown names,
    or when nothing is left.
    """
    evidence = read_evidence(store) if store.run_config() is not None else None
    if evidence is None or not len(evidence.clips):
        raise OutputError(f"output {store.root!r} holds no rows; give an output of `numina run` that has some")
    clips = evidence.clips
    made, acceptance = _strategies(store, clips, strategy, one), Acceptance.recorded(store)
    name = _judge(store, judge, "all" if clips.plain.all() else only)
    own = evidence.by(name or "") or nothing_judged("", clips)
    kept = [kept_by(strategy, clips, own.accuracy, own.failed, acceptance) for strategy in made]
    places = [some.clip[_wanted(some, only)] for some in kept]
    chosen = np.unique(np.concatenate(places))
    if not len(chosen):
        by = f" by {name}" if name else ""
        raise OutputError(f"output {store.root!r} has no clip that is {only}{by}; export all")
    accuracies = [
        _accuracy(judged.judge, kept_by(strategy, clips, judged.accuracy, judged.failed, acceptance))
        for judged in evidence.judges
        for strategy in made
    ]
    similarity = similarity_of(store, evidence, chosen, name, distinct)
    if distinct is not None and similarity is None:
        raise OutputError(f"output {store.root!r} has no verdict with an embedding; run `numina evaluate` first")
    left_out = _left_out(clips, chosen, own, similarity)
    nearest = np.full(len(clips), np.nan)
    if similarity is not None:
        nearest[chosen] = similarity.nearest
        chosen = chosen[similarity.first < 0]
    rows = rows_of(store, clips, chosen, ("id", "prompt", "sample", "key"))
    names = renamed([name for name in rows.column_names if name not in ROW_SCHEMA.names], _TAKEN)
    rows = rows.rename_columns([names.get(name, name) for name in rows.column_names])
    order = clips.places(rows["key"])
    for field, column in zip(list(VERDICT)[:-1], _verdict_columns(store, clips, order, own, kept, places), strict=True):
        rows = rows.append_column(field, column)
    found = nearest[order]
    rows = rows.append_column(VERDICT.field("nearest_similarity"), pa.array(found, mask=np.isnan(found)))
    return Selection(
        rows=rows,
        renamed=names,
        cost=cost_of(store, name),
        similarity_by=similarity.judge if similarity is not None else None,
        left_out=left_out,
        strategies=tuple(own.name for own in made),
        judge=name,
        accept=acceptance.accept,
        accuracies=tuple(own for own in accuracies if own.judged),
        plain=int(clips.plain[chosen].sum()),
    )


def _strategies(store: Store, clips: Clips, strategy: str | None, one: str | None) -> list[Strategy]:
    made = strategies_made(store, clips)
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


def _left_out(clips: Clips, chosen: np.ndarray, own: Judged, similarity: Similarity | None) -> dict[str, int]:
    """How many of all clips are in no export of these, and why."""
    others = np.ones(len(clips), bool)
    others[chosen] = False
    close = int((similarity.first >= 0).sum()) if similarity is not None else 0
    unjudged = others & ~own.judged if own.judge else np.zeros(len(clips), bool)
    reasons = {
        "video missing or unreadable": int((others & own.failed).sum()),
        "not judged": int(unjudged.sum()),
        "not the attempt that a strategy keeps, or not accepted": int((others & ~own.failed & ~unjudged).sum()),
        "too similar to another clip of the same targets": close,
    }
    return {reason: number for reason, number in reasons.items() if number}


def _wanted(kept: Kept, only: str) -> np.ndarray:
    if only == "all":
        return np.ones(len(kept), bool)
    return kept.accepted if only == "accepted" else kept.decided


def _accuracy(judge: str, kept: Kept) -> Accuracy:
    counted = ~kept.plain
    scores = kept.accuracy[~np.isnan(kept.accuracy)]
    return Accuracy(
        judge=judge,
        strategy=kept.strategy,
        clips=int(counted.sum()),
        judged=len(scores),
        count_accuracy=sum(scores.tolist()) / len(scores) if len(scores) else None,
        accepted=int(kept.accepted[counted].sum()),
        cost=sum(kept.cost[counted].tolist()),
    )


def _verdict_columns(
    store: Store,
    clips: Clips,
    order: np.ndarray,
    own: Judged,
    kept: Sequence[Kept],
    places: Sequence[np.ndarray],
) -> Iterator[pa.ChunkedArray | pa.Array]:
    """VERDICT's columns, without the last one, of the clips in this order; `places` are those that each strategy puts
    into the export."""
    names, accepted = [], np.full(len(clips), -1)
    for number, (some, chosen) in enumerate(zip(kept, places, strict=True)):
        names.append(np.stack([chosen, np.full(len(chosen), number)], axis=1))
        accepted[some.clip[some.decided]] = some.accepted[some.decided]
    pairs = np.concatenate(names)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    starts = np.searchsorted(pairs[:, 0], order)
    sizes = np.searchsorted(pairs[:, 0], order, side="right") - starts
    listed = pa.array([some.strategy for some in kept], pa.string()).take(pa.array(pairs[spread(starts, sizes), 1]))
    yield pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32()), listed)
    judged = own.judged[order]
    yield pa.array([own.judge], pa.string()).take(pa.array(np.zeros(len(order), np.int64), mask=~judged))
    verdicts, where = (
        verdict_table(store, own.judge, clips, order, ["key", *_OF_VERDICT]) if judged.any() else (None, None)
    )
    for field in list(VERDICT)[2:-1]:
        if field.name == "accepted":
            yield pa.array(accepted[order] == 1, mask=accepted[order] < 0)
        elif verdicts is None or where is None:
            yield pa.nulls(len(order), field.type)
        else:
            yield verdicts[field.name].take(pa.array(where[order], mask=where[order] < 0))
