"""The summary clip by clip, in plain Python: what the one by columns must equal, to the last bit."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from cluster.dataset.store import Store
from cluster.evaluation.outcomes import Outcome, Row, outcomes, strategies_of
from cluster.evaluation.readings import BANDS, Band
from cluster.evaluation.summary import LOOKS, Group, JudgeSummary, StrategySummary, Summary
from cluster.job.acceptance import Acceptance
from cluster.rows import python_rows
from numina import metrics

GROUPS = ("noun", "count", "nouns", "model")

MEASURES: dict[str, Callable[[np.ndarray | None, Sequence[int]], float]] = {
    "count_accuracy": metrics.count_accuracy,
    "within_one_accuracy": metrics.within_one_accuracy,
    "all_frames_exact": metrics.all_frames_exact,
    "mean_absolute_error": metrics.mean_absolute_error,
    "signed_bias": metrics.signed_bias,
    "count_stability": lambda detected, asked: metrics.count_stability(detected),
}


def summarize(store: Store) -> Summary:
    """The figures of an output's rows and all verdicts on them."""
    rows = python_rows(store.rows())
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


def reading_bands(rows: Sequence[Row], verdicts: Mapping[str, Row]) -> list[Band]:
    """The bands that hold any noun whose plain clip is judged, in ascending order."""
    plain = {_clip(row): verdicts[row["key"]] for row in rows if row["key"] in verdicts and not row["guided"]}
    found: dict[int, list[bool]] = {}
    for row in rows:
        if row["confidences"] and (seen := plain.get(_clip(row))) and seen["detected"]:
            for identified, confidence, noun in zip(
                row["identified"], row["confidences"], seen["detected"], strict=True
            ):
                if noun["frames"]:
                    found.setdefault(_band(confidence), []).append(identified["count"] == _commonest(noun["frames"]))
    return [
        Band(least=BANDS[band], most=BANDS[band + 1], nouns=len(right), right=sum(right) / len(right))
        for band, right in sorted(found.items())
    ]


def _clip(row: Row) -> tuple[Any, ...]:
    targets = tuple((target["noun"], target["count"]) for target in row["targets"])
    return row["prompt"], row["negative_prompt"], row["seed"], targets


def _band(confidence: float) -> int:
    return max(band for band, least in enumerate(BANDS[:-1]) if confidence >= least)


def _commonest(frames: Iterable[int]) -> int:
    return Counter(frames).most_common(1)[0][0]
