"""What each strategy made of the prompts, by one judge: which clip it keeps, and what it paid for all its tries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.dataset.store import Store
from cluster.evaluation.outcomes import outcomes, strategies_of
from cluster.job.acceptance import Acceptance
from cluster.job.strategy import Strategy
from cluster.report.clips import ShownClip


@dataclass(frozen=True, kw_only=True)
class Result:
    """A strategy's clip of one prompt and sample."""

    clip: ShownClip
    accepted: bool | None  # by the judge; None where it hasn't seen the clip
    cost: float  # rank-seconds of all attempts


Results = Mapping[str, Sequence[Result]]
"""By strategy, the baseline first; those that have no clip yet aren't there."""


def results_by_judge(store: Store, clips: Sequence[ShownClip], judges: Sequence[str]) -> dict[str, Results]:
    """By each judge; by "" where none has counted."""
    strategies = strategies_of(store, [clip.row for clip in clips])
    acceptance = Acceptance.recorded(store)
    return {judge: _results(strategies, clips, judge, acceptance) for judge in judges or [""]}


def _results(strategies: Sequence[Strategy], clips: Sequence[ShownClip], judge: str, acceptance: Acceptance) -> Results:
    by_key = {clip.row["key"]: clip for clip in clips}
    rows = [clip.row for clip in clips]
    evaluations = {key: clip.verdicts[judge].evaluation for key, clip in by_key.items() if judge in clip.verdicts}
    found = {
        strategy.name: [
            Result(clip=by_key[outcome.kept["key"]], accepted=outcome.accepted, cost=outcome.cost)
            for outcome in outcomes(strategy, rows, evaluations, acceptance)
        ]
        for strategy in sorted(strategies, key=lambda strategy: strategy.name != "baseline")
    }
    return {name: results for name, results in found.items() if results}
