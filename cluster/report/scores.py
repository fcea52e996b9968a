"""The table of strategies: how well each meets the counts, and what a clip costs that does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.report.clips import prompt_key
from cluster.report.strategies import Result, Results
from numina.metrics import Interval, bootstrap_interval


@dataclass(frozen=True, kw_only=True)
class StrategyScore:
    """A strategy's line in the table; None where nothing was measured."""

    strategy: str
    clips: int
    judged: int
    accuracy: float | None  # mean CountAcc of the judged clips
    interval: Interval | None  # of that mean, 95 %, over prompts; None for one prompt
    exact: float | None  # share of the judged clips that are right in every frame
    plain: int  # clips whose prompts ask for no count: in no figure about counts
    accepted: int  # clips that the judge would put in a dataset
    layout_right: float | None  # share of nouns whose identified count is the asked one
    cost: float  # rank-seconds per clip, all attempts, mean
    cost_per_accepted: float | None  # rank-seconds of all clips for each accepted one
    temporal_consistency: float | None
    clip_score: float | None


def scores_of(results: Results, judge: str) -> list[StrategyScore]:
    """A line per strategy."""
    return [_score(strategy, members, judge) for strategy, members in results.items()]


def _score(strategy: str, results: Sequence[Result], judge: str) -> StrategyScore:
    by_prompt = _accuracies(results, judge)
    accuracies = [accuracy for values in by_prompt for accuracy in values]
    cost = sum(result.cost for result in results)
    counted = [result for result in results if result.clip.row["targets"]]
    accepted = sum(result.accepted is True for result in counted)
    clips = [result.clip for result in results]
    return StrategyScore(
        strategy=strategy,
        clips=len(results),
        judged=len(accuracies),
        accuracy=mean(accuracies),
        interval=bootstrap_interval([sum(v) / len(v) for v in by_prompt]) if len(by_prompt) > 1 else None,
        exact=mean([accuracy == 1 for accuracy in accuracies]),
        plain=len(results) - len(counted),
        accepted=accepted,
        layout_right=mean([right for clip in clips for right in _layout_right(clip.row)]),
        cost=cost / len(results),
        cost_per_accepted=sum(result.cost for result in counted) / accepted if accepted else None,
        temporal_consistency=mean([c.temporal_consistency for c in clips if c.temporal_consistency is not None]),
        clip_score=mean([clip.clip_score for clip in clips if clip.clip_score is not None]),
    )


def _accuracies(results: Sequence[Result], judge: str) -> list[list[float]]:
    """CountAcc of the clips that the judge counted in, by prompt."""
    by_prompt: dict[tuple[object, ...], list[float]] = {}
    for result in results:
        verdict = result.clip.verdicts.get(judge)
        if verdict is not None and verdict.accuracy is not None:
            by_prompt.setdefault(prompt_key(result.clip.row), []).append(verdict.accuracy)
    return list(by_prompt.values())


def _layout_right(row: Mapping[str, object]) -> list[bool]:
    identified, targets = row["identified"], row["targets"]
    if not isinstance(identified, list) or not isinstance(targets, list):
        return []
    counts = {noun["noun"]: noun["count"] for noun in identified}
    return [counts[target["noun"]] == target["count"] for target in targets if target["noun"] in counts]


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None
