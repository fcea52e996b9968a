"""What verdicts come to: each strategy's metrics with their intervals, in all and per noun, count, model.

Written to `evaluations/summary.json` (all of it) and `summary.parquet` (a line per metric and group). The unit of
every interval and comparison is the prompt: samples of one prompt are averaged first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster.dataset.segments import parquet_bytes
from cluster.evaluation.outcomes import Outcome, outcomes, strategies_of
from cluster.evaluation.readings import Band, reading_bands
from cluster.evaluation.verdicts import Row
from cluster.job.acceptance import Acceptance
from cluster.rows import python_rows
from numina import metrics
from numina.errors import InputError, OutputError
from numina.metrics import Difference, Interval

if TYPE_CHECKING:
    from cluster.dataset.store import Store

SHOWN_PROBLEMS = 20
GROUPS = ("noun", "count", "nouns", "model")  # what clips are grouped by, beside their strategy

MEASURES: dict[str, Callable[[np.ndarray | None, Sequence[int]], float]] = {
    "count_accuracy": metrics.count_accuracy,
    "within_one_accuracy": metrics.within_one_accuracy,
    "all_frames_exact": metrics.all_frames_exact,
    "mean_absolute_error": metrics.mean_absolute_error,
    "signed_bias": metrics.signed_bias,
    "count_stability": lambda detected, asked: metrics.count_stability(detected),
}
"""Of a clip's detected counts [frames, nouns] and the asked ones (method.md §7)."""

LOOKS = ("clip_score", "temporal_consistency")


@dataclass(frozen=True, kw_only=True)
class Group:
    """The kept clips of one strategy, or those of them that have a noun, a count, a model in common."""

    by: str  # all | noun | count | nouns (their number) | model
    value: str
    prompts: int
    clips: int
    measures: Mapping[str, Interval]  # by MEASURES' names and LOOKS'


@dataclass(frozen=True, kw_only=True)
class StrategySummary:
    """What one strategy came to, by one judge."""

    strategy: str
    groups: Sequence[Group]  # all, then by GROUPS
    judged: int  # clips
    missing: int  # of those, clips without a video that can be read
    accepted: int
    rejected: int  # samples without an accepted clip
    attempts: int  # clips made
    cost: float  # rank-seconds of all attempts
    plain: int  # clips whose prompt asks for no count, in none of the other figures
    against: Mapping[str, Difference] = field(default_factory=dict)  # first strategy's name → CountAcc more than its

    @property
    def whole(self) -> Group:
        return self.groups[0]

    @property
    def cost_per_accepted(self) -> float | None:
        """Rank-seconds per verified clip; None where there is none."""
        return self.cost / self.accepted if self.accepted else None


@dataclass(frozen=True, kw_only=True)
class JudgeSummary:
    """What one judge's verdicts came to."""

    judge: str
    settings: str | None
    strategies: Sequence[StrategySummary]
    problems: Sequence[tuple[str, str]]  # file names of what could not be judged, with the reason
    readings: Sequence[Band] = ()  # how often identified counts are those of the plain clip, by confidence


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All judges' figures of one output."""

    output: str
    rows: int
    plain: int  # of those, rows that ask for no count: they are in no CountAcc
    cost_unit: str  # GPU-seconds | CPU rank-seconds
    judges: Sequence[JudgeSummary]  # those that count
    agreement: Mapping[str, float]  # `one, other` → share of equal counts per frame and noun


def summarize(store: Store) -> Summary:
    """The figures of an output's rows and all verdicts on them. Raises OutputError where there are none."""
    rows = python_rows(store.rows())
    if not rows:
        raise OutputError(f"output {store.root!r} holds no rows: give a folder that `numina run` wrote to")
    verdicts = {judge: {row["key"]: row for row in store.evaluations(judge).to_pylist()} for judge in store.judges()}
    counting = [
        judge for judge, own in verdicts.items() if any(row["count_accuracy"] is not None for row in own.values())
    ]
    looks = _looks(verdicts.values())
    made = strategies_of(store, rows)
    acceptance = Acceptance.recorded(store)
    found = []
    for judge in counting:
        own = verdicts[judge]
        per_strategy = {own_.name: outcomes(own_, rows, own, acceptance) for own_ in made}
        found.append(
            JudgeSummary(
                judge=judge,
                settings=next((row["settings"] for row in own.values()), None),
                strategies=_strategies({name: some for name, some in per_strategy.items() if some}, own, looks),
                problems=[(row["file_name"], own[row["key"]]["problem"]) for row in rows if _problem(own, row)],
                readings=reading_bands(rows, own),
            )
        )
    return Summary(
        output=store.root,
        rows=len(rows),
        plain=sum(not row["targets"] for row in rows),
        cost_unit="GPU-seconds" if rows[0]["gpu_seconds"] is not None else "CPU rank-seconds",
        judges=found,
        agreement={
            f"{one}, {other}": share
            for one, other in combinations(counting, 2)
            for share in [_agreement(verdicts[one], verdicts[other])]
            if share is not None
        },
    )


def write_summary(store: Store, summary: Summary) -> list[str]:
    """Keeps a summary in `evaluations/`, in place of the one before; the names of its two files."""
    text = json.dumps(asdict(summary), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    store.files.replace("evaluations/summary.json", text.encode())
    store.files.replace("evaluations/summary.parquet", parquet_bytes(pa.Table.from_pylist(list(lines(summary)), LINE)))
    return ["evaluations/summary.json", "evaluations/summary.parquet"]


LINE = pa.schema(
    [
        *((name, pa.string()) for name in ("judge", "strategy", "by", "value", "measure")),
        *((name, pa.float64()) for name in ("mean", "low", "high")),
        *((name, pa.int64()) for name in ("prompts", "clips")),
    ]
)
"""The columns of `summary.parquet`."""


def lines(summary: Summary) -> Iterable[dict[str, Any]]:
    """A line per judge, strategy, group and measure."""
    for judge in summary.judges:
        for own in judge.strategies:
            for group in own.groups:
                for name, interval in group.measures.items():
                    yield {
                        "judge": judge.judge,
                        "strategy": own.strategy,
                        "by": group.by,
                        "value": group.value,
                        "measure": name,
                        **asdict(interval),
                        "prompts": group.prompts,
                        "clips": group.clips,
                    }


def compare_outputs(one: Store, other: Store, judge: str) -> list[tuple[str, str, int, Difference]]:
    """CountAcc of one output's strategies minus that of another's of the same name (or, where each has one alone, of
    that), prompt by prompt: names, prompts in common, and the difference.

    Raises InputError where the two have no prompt in common, or the judge has seen none of one of them.
    """
    scores = [_scores(store, judge) for store in (one, other)]
    for store, found in zip((one, other), scores, strict=True):
        if not found:
            raise InputError(
                f"{store.root!r} has no clip in which {judge!r} counted; give outputs whose prompts ask for counts"
            )
    names = [(name, name) for name in scores[0] if name in scores[1]]
    if not names and len(scores[0]) == len(scores[1]) == 1:
        names = [(next(iter(scores[0])), next(iter(scores[1])))]
    if not names:
        raise InputError(
            f"{one.root!r} has the strategies {', '.join(scores[0])}, {other.root!r} has {', '.join(scores[1])}:"
            " give outputs with one in common"
        )
    compared = []
    for own, its in names:
        shared = sorted(scores[0][own].keys() & scores[1][its].keys(), key=str)
        if not shared:
            raise InputError(
                f"{one.root!r} and {other.root!r} have no prompt in common for {own}: a paired comparison needs the"
                " same prompts and targets; give outputs of one prompt set"
            )
        first, second = ([scores[side][name][unit] for unit in shared] for side, name in ((0, own), (1, its)))
        label = own if own == its else f"{own} − {its}"
        only = len(scores[0][own]) + len(scores[1][its]) - 2 * len(shared)
        compared.append(
            (
                label,
                f"{only} prompts are in only one output" if only else "",
                len(shared),
                metrics.paired_difference(first, second),
            )
        )
    return compared


# --- one strategy ---


def _strategies(
    made: Mapping[str, Sequence[Outcome]], verdicts: Mapping[str, Row], looks: Mapping[str, Row]
) -> list[StrategySummary]:
    accuracies = {name: _per_prompt(some, [outcome.accuracy for outcome in some]) for name, some in made.items()}
    first = next(iter(made), None)
    return [_strategy(name, some, verdicts, looks, accuracies, first) for name, some in made.items()]


def _strategy(
    name: str,
    some: Sequence[Outcome],
    verdicts: Mapping[str, Row],
    looks: Mapping[str, Row],
    accuracies: Mapping[str, Mapping[Any, float]],
    first: str | None,
) -> StrategySummary:
    plain, some = sum(outcome.plain for outcome in some), [outcome for outcome in some if not outcome.plain]
    judged = [outcome for outcome in some if outcome.accuracy is not None]
    groups = [_group("all", "", [(outcome, None) for outcome in judged], verdicts, looks)]
    for by in GROUPS:
        parts: dict[Any, list[tuple[Outcome, int | None]]] = {}
        for outcome in judged:
            for value, place in _values(outcome.kept, by):
                parts.setdefault(value, []).append((outcome, place))
        groups += [_group(by, str(value), parts[value], verdicts, looks) for value in sorted(parts)]
    against = {}
    if first is not None and first != name and (shared := accuracies[name].keys() & accuracies[first].keys()):
        units = sorted(shared, key=str)
        ours, its = ([accuracies[own][unit] for unit in units] for own in (name, first))
        against[first] = metrics.paired_difference(ours, its)
    return StrategySummary(
        strategy=name,
        groups=groups,
        judged=len(judged),
        missing=sum(bool(_problem(verdicts, outcome.kept)) for outcome in judged),
        accepted=sum(outcome.accepted is True for outcome in some),
        rejected=sum(outcome.accepted is False for outcome in some),
        attempts=sum(len(outcome.rows) for outcome in some),
        cost=sum(outcome.cost for outcome in some),
        plain=plain,
        against=against,
    )


def _group(
    by: str,
    value: str,
    members: Sequence[tuple[Outcome, int | None]],
    verdicts: Mapping[str, Row],
    looks: Mapping[str, Row],
) -> Group:
    """Of kept clips, whole or of each the noun at a place."""
    some = [outcome for outcome, _ in members]
    values: dict[str, list[float | None]] = {name: [] for name in MEASURES}
    for outcome, place in members:
        asked = [target["count"] for target in outcome.kept["targets"]]
        detected = _counts(verdicts[outcome.kept["key"]])
        if place is not None:
            asked, detected = asked[place : place + 1], None if detected is None else detected[:, place : place + 1]
        for name, measure in MEASURES.items():
            values[name].append(measure(detected, asked))
    for name in LOOKS:
        values[name] = [looks.get(outcome.kept["key"], {}).get(name) for outcome in some]
    means = {name: list(_per_prompt(some, own).values()) for name, own in values.items()}
    return Group(
        by=by,
        value=value,
        prompts=len(_per_prompt(some, [0.0] * len(some))),
        clips=len(members),
        measures={name: metrics.bootstrap_interval(own) for name, own in means.items() if own},
    )


def _values(row: Row, by: str) -> list[tuple[Any, int | None]]:
    """The groups that a clip belongs to; of some kinds, with the place of the noun that does."""
    if by == "noun":
        return [(target["noun"], place) for place, target in enumerate(row["targets"])]
    if by == "count":
        return [(target["count"], place) for place, target in enumerate(row["targets"])]
    return [(len(row["targets"]) if by == "nouns" else row["model"] or "", None)]


def _per_prompt(some: Sequence[Outcome], values: Sequence[float | None]) -> dict[Any, float]:
    """The mean over each prompt's samples; None counts for nothing."""
    parts: dict[Any, list[float]] = {}
    for outcome, value in zip(some, values, strict=True):
        if value is not None:
            parts.setdefault(outcome.sample[:3], []).append(value)
    return {unit: sum(own) / len(own) for unit, own in parts.items()}


# --- verdicts ---


def _looks(verdicts: Iterable[Mapping[str, Row]]) -> dict[str, Row]:
    """By key what CLIP said, of whichever judge measured it."""
    return {key: row for own in verdicts for key, row in own.items() if row["clip_score"] is not None}


def _counts(verdict: Row) -> np.ndarray | None:
    """Detected counts [frames, nouns]; None where there was no video."""
    detected = verdict["detected"]
    return np.array([noun["frames"] for noun in detected]).T if detected else None


def _problem(verdicts: Mapping[str, Row], row: Row) -> str | None:
    problem: str | None = verdicts.get(row["key"], {}).get("problem")
    return problem


def _agreement(one: Mapping[str, Row], other: Mapping[str, Row]) -> float | None:
    """Over the clips that both judges saw; None where there is none."""
    shares = []
    for key in one.keys() & other.keys():
        counts = _counts(one[key]), _counts(other[key])
        if counts[0] is not None and counts[1] is not None:
            shares.append(metrics.agreement(counts[0], counts[1], _every(one[key]), _every(other[key])))
    return float(np.mean(shares)) if shares else None


def _every(verdict: Row) -> int:
    return int(json.loads(verdict["settings"] or "{}").get("every", 1))


def _scores(store: Store, judge: str) -> dict[str, dict[Any, float]]:
    """CountAcc per strategy and prompt."""
    rows, verdicts = python_rows(store.rows()), {row["key"]: row for row in store.evaluations(judge).to_pylist()}
    if not verdicts:
        raise InputError(f"{store.root!r} has no verdicts of {judge!r}: run `numina evaluate {store.root}` first")
    found = {}
    for strategy in strategies_of(store, rows):
        some = outcomes(strategy, rows, verdicts, Acceptance.recorded(store))
        if scores := _per_prompt(some, [outcome.accuracy for outcome in some]):
            found[strategy.name] = scores
    return found
