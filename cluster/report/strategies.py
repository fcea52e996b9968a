"""What each strategy made of the prompts, by one judge: which clip it keeps, and what it paid for all its tries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.dataset.store import Store
from cluster.evaluation.clips import Clips
from cluster.evaluation.judged import Evidence, Judged, nothing_judged
from cluster.evaluation.kept import Kept, kept_by, strategies_made
from cluster.evaluation.outcomes import outcomes
from cluster.job.acceptance import Acceptance
from cluster.job.strategy import Strategy
from cluster.report.clips import ShownClip


@dataclass(frozen=True, kw_only=True)
class Sums:
    """One judge's view of all clips: what each strategy keeps, the baseline first, of those that have clips."""

    judged: Judged  # of the name "" where no judge has counted
    kept: Mapping[str, Kept]
    strategies: Sequence[Strategy]


def sums_by_judge(store: Store, evidence: Evidence) -> dict[str, Sums]:
    """By each judge that counts; by "" where none has."""
    acceptance = Acceptance.recorded(store)
    made = sorted(strategies_made(store, evidence.clips), key=lambda strategy: strategy.name != "baseline")
    counting = [own for own in evidence.judges if own.counts] or [nothing_judged("", evidence.clips)]
    return {own.judge: _sums(made, evidence.clips, own, acceptance) for own in counting}


def _sums(made: Sequence[Strategy], clips: Clips, own: Judged, acceptance: Acceptance) -> Sums:
    kept = {strategy.name: kept_by(strategy, clips, own.accuracy, own.failed, acceptance) for strategy in made}
    some = {name: found for name, found in kept.items() if len(found)}
    return Sums(judged=own, kept=some, strategies=[strategy for strategy in made if strategy.name in some])


@dataclass(frozen=True, kw_only=True)
class Result:
    """A strategy's clip of one prompt and sample."""

    clip: ShownClip
    accepted: bool | None  # by the judge; None where it hasn't seen the clip
    cost: float  # rank-seconds of all attempts


Results = Mapping[str, Sequence[Result]]
"""By strategy, the baseline first; of the clips that are shown."""


def results_of(store: Store, clips: Sequence[ShownClip], sums: Mapping[str, Sums]) -> dict[str, Results]:
    """By judge what its sums are made of, of shown clips."""
    acceptance = Acceptance.recorded(store)
    return {judge: _results(own.strategies, clips, judge, acceptance) for judge, own in sums.items()}


def _results(strategies: Sequence[Strategy], clips: Sequence[ShownClip], judge: str, acceptance: Acceptance) -> Results:
    by_key = {clip.row["key"]: clip for clip in clips}
    rows = [clip.row for clip in clips]
    evaluations = {key: clip.verdicts[judge].evaluation for key, clip in by_key.items() if judge in clip.verdicts}
    return {
        strategy.name: [
            Result(clip=by_key[outcome.kept["key"]], accepted=outcome.accepted, cost=outcome.cost)
            for outcome in outcomes(strategy, rows, evaluations, acceptance)
        ]
        for strategy in strategies
    }
