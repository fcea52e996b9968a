"""What verdicts come to: each strategy's metrics with their intervals, in all and per noun, count, model.

Written to `evaluations/summary.json` (all of it) and `summary.parquet` (a line per metric and group). The unit of
every interval and comparison is the prompt: samples of one prompt are averaged first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster.dataset.segments import parquet_bytes
from cluster.evaluation.clips import Clips, read_clips, spread
from cluster.evaluation.judged import MEASURES, Evidence, Judged, agreement, read_evidence, read_judged
from cluster.evaluation.kept import Kept, kept_by, strategies_made
from cluster.evaluation.readings import Band, reading_bands
from cluster.evaluation.rows import file_names
from cluster.job.acceptance import Acceptance
from numina import metrics
from numina.errors import InputError, OutputError
from numina.metrics import Difference, Interval

if TYPE_CHECKING:
    from cluster.dataset.store import Store

LOOKS = ("clip_score", "temporal_consistency")
Looks = dict[str, np.ndarray]  # by LOOKS' names, of each clip; NaN where it wasn't measured


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
    groups: Sequence[Group]  # all, then by noun, count, number of nouns, model
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


def summarize(store: Store, evidence: Evidence | None = None) -> Summary:
    """The figures of an output's rows and all verdicts on them, where `evidence` hasn't them already.

    Raises OutputError where there are none.
    """
    evidence = evidence or read_evidence(store)
    clips = evidence.clips
    if not len(clips):
        raise OutputError(f"output {store.root!r} holds no rows: give a folder that `numina run` wrote to")
    counting = [own for own in evidence.judges if own.counts]
    looks = _looks(evidence.judges)
    made = strategies_made(store, clips)
    acceptance = Acceptance.recorded(store)
    found = []
    for own in counting:
        per_strategy = [kept_by(strategy, clips, own.accuracy, own.failed, acceptance) for strategy in made]
        found.append(
            JudgeSummary(
                judge=own.judge,
                settings=own.settings,
                strategies=_strategies([some for some in per_strategy if len(some)], clips, own, looks),
                problems=_problems(store, clips, own),
                readings=reading_bands(clips, own),
            )
        )
    return Summary(
        output=store.root,
        rows=len(clips),
        plain=int(clips.plain.sum()),
        cost_unit="GPU-seconds" if clips.on_gpus else "CPU rank-seconds",
        judges=found,
        agreement={
            f"{one.judge}, {other.judge}": share
            for one, other in combinations(counting, 2)
            for share in [agreement(one, other, clips)]
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


def _strategies(made: Sequence[Kept], clips: Clips, own: Judged, looks: Looks) -> list[StrategySummary]:
    accuracies = [_accuracies(some, clips) for some in made]
    return [
        _strategy(some, clips, own, looks, scores, (made[0], accuracies[0]))
        for some, scores in zip(made, accuracies, strict=True)
    ]


def _strategy(
    some: Kept, clips: Clips, own: Judged, looks: Looks, accuracies: _Means, first: tuple[Kept, _Means]
) -> StrategySummary:
    judged = some.clip[~some.plain & ~np.isnan(some.accuracy)]
    counted = ~some.plain
    groups = [_group("all", "", judged, None, clips, own, looks)]
    targets = spread(clips.starts[judged], clips.targets[judged])
    of = np.repeat(judged, clips.targets[judged])
    for by, values, names in (("noun", clips.noun, clips.nouns), ("count", clips.asked, None)):
        for value, members in _parts(values[targets]):
            name = str(value) if names is None else names[value]
            groups.append(_group(by, name, of[members], targets[members], clips, own, looks))
    for by, values, names in (("nouns", clips.targets, None), ("model", clips.model, clips.models)):
        for value, members in _parts(values[judged]):
            name = str(value) if names is None else names[value]
            groups.append(_group(by, name, judged[members], None, clips, own, looks))
    against = {}
    if first[0] is not some and (difference := _difference(accuracies, first[1], clips)):
        against[first[0].strategy] = difference[1]
    return StrategySummary(
        strategy=some.strategy,
        groups=groups,
        judged=len(judged),
        missing=int(own.failed[judged].sum()),
        accepted=int(some.accepted[counted].sum()),
        rejected=int(some.rejected[counted].sum()),
        attempts=int(some.attempts[counted].sum()),
        cost=sum(some.cost[counted].tolist()),
        plain=int(some.plain.sum()),
        against=against,
    )


def _parts(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each value in ascending order, with the places that have it."""
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=True)


def _group(
    by: str,
    value: str,
    members: np.ndarray,
    targets: np.ndarray | None,
    clips: Clips,
    own: Judged,
    looks: Looks,
) -> Group:
    """Of kept clips, whole or of each the noun at a place."""
    units = _Units(clips.unit[members])
    measures: dict[str, Interval] = {}
    for name in MEASURES:
        values = own.whole[name][members] if targets is None else own.single[name][targets]
        if len(members):
            measures[name] = metrics.bootstrap_interval(units.means(values))
    for name, measured in looks.items():
        values = measured[members]
        there = ~np.isnan(values)
        if there.any():
            means = _Units(clips.unit[members[there]]).means(values[there])
            measures[name] = metrics.bootstrap_interval(means)
    return Group(by=by, value=value, prompts=len(units), clips=len(members), measures=measures)


class _Units:
    """Clips by their prompts, these in the order of their first clip."""

    def __init__(self, units: np.ndarray) -> None:
        self.units, firsts, places = np.unique(units, return_index=True, return_inverse=True)
        order = np.argsort(firsts, kind="stable")
        self.units = self.units[order]
        self._places = np.empty(len(order), np.int64)
        self._places[order] = np.arange(len(order))
        self._places = self._places[places]

    def __len__(self) -> int:
        return len(self.units)

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean over each prompt's clips."""
        sums = np.bincount(self._places, weights=values, minlength=len(self))
        return np.asarray(sums / np.bincount(self._places, minlength=len(self)))


@dataclass(frozen=True)
class _Means:
    """CountAcc of prompts: their numbers, a clip of each, and the mean over its samples."""

    units: np.ndarray
    clips: np.ndarray
    means: np.ndarray


def _accuracies(some: Kept, clips: Clips) -> _Means:
    there = ~np.isnan(some.accuracy)
    members = some.clip[there]
    units = _Units(clips.unit[members])
    firsts = np.sort(np.unique(clips.unit[members], return_index=True)[1])
    return _Means(units.units, members[firsts], units.means(some.accuracy[there]))


def _difference(ours: _Means, its: _Means, clips: Clips) -> tuple[int, Difference] | None:
    """The number of prompts in common and what `ours` have more on them; None where there is none."""
    _, one, other = np.intersect1d(ours.units, its.units, assume_unique=True, return_indices=True)
    if not len(one):
        return None
    if len(one) <= metrics.RESAMPLED:  # resampling depends on the order
        order = sorted(range(len(one)), key=lambda place: str(clips.unit_of(int(ours.clips[one[place]]))))
        one, other = one[order], other[order]
    return len(one), metrics.paired_difference(ours.means[one], its.means[other])


# --- verdicts ---


def _looks(read: Iterable[Judged]) -> Looks:
    """What CLIP said of each clip, of whichever judge measured it; NaN where none did."""
    found: Looks = {}
    for own in read:
        there = ~np.isnan(own.clip_score)
        for name in LOOKS:
            values = getattr(own, name)
            found[name] = np.where(there, values, found[name]) if name in found else np.where(there, values, np.nan)
    return found


def _problems(store: Store, clips: Clips, own: Judged) -> list[tuple[str, str]]:
    """File names of what could not be judged, with the reason, by key."""
    if not own.problems:
        return []
    places = sorted(own.problems)
    names = file_names(store, clips, np.array(places))
    return [(names[place], own.problems[place]) for place in places]


def _scores(store: Store, judge: str) -> dict[str, dict[Any, float]]:
    """CountAcc per strategy and prompt."""
    clips = read_clips(store)
    own = read_judged(store, judge, clips)
    if not own.judged.any():
        raise InputError(f"{store.root!r} has no verdicts of {judge!r}: run `numina evaluate {store.root}` first")
    found, acceptance = {}, Acceptance.recorded(store)
    for strategy in strategies_made(store, clips):
        scores = _accuracies(kept_by(strategy, clips, own.accuracy, own.failed, acceptance), clips)
        if len(scores.units):
            units = map(clips.unit_of, scores.clips.tolist())
            found[strategy.name] = dict(zip(units, scores.means.tolist(), strict=True))
    return found
