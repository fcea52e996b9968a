"""The table of strategies: how well each meets the counts, and what a clip costs that does."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cluster.evaluation.clips import Clips
from cluster.evaluation.judged import Evidence
from cluster.evaluation.kept import Kept
from cluster.report.strategies import Sums
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


def scores_of(sums: Sums, evidence: Evidence) -> list[StrategyScore]:
    """A line per strategy, over all clips."""
    looks = {name: _first_measured(evidence, name) for name in ("temporal_consistency", "clip_score")}
    return [_score(kept, evidence.clips, looks) for kept in sums.kept.values()]


def _score(kept: Kept, clips: Clips, looks: Mapping[str, np.ndarray]) -> StrategyScore:
    there = ~np.isnan(kept.accuracy)
    accuracies, pages = kept.accuracy[there], clips.page[kept.clip[there]]
    prompts = np.unique(pages, return_inverse=True)[1]
    by_prompt = np.bincount(prompts, weights=accuracies) / np.maximum(np.bincount(prompts), 1)
    counted = ~kept.plain
    accepted = int(kept.accepted[counted].sum())
    known = int(clips.layout_known[kept.clip].sum())
    return StrategyScore(
        strategy=kept.strategy,
        clips=len(kept),
        judged=len(accuracies),
        accuracy=mean(accuracies),
        interval=bootstrap_interval(by_prompt) if len(by_prompt) > 1 else None,
        exact=mean(accuracies == 1),
        plain=int(kept.plain.sum()),
        accepted=accepted,
        layout_right=int(clips.layout_right[kept.clip].sum()) / known if known else None,
        cost=float(kept.cost.sum()) / len(kept),
        cost_per_accepted=float(kept.cost[counted].sum()) / accepted if accepted else None,
        temporal_consistency=_mean_measured(looks["temporal_consistency"][kept.clip]),
        clip_score=_mean_measured(looks["clip_score"][kept.clip]),
    )


def _first_measured(evidence: Evidence, name: str) -> np.ndarray:
    """What the first judge that measured it says of each clip; NaN where none did."""
    found = np.full(len(evidence.clips), np.nan)
    for own in evidence.judges:
        values = getattr(own, name)
        found = np.where(np.isfinite(found), found, np.where(np.isfinite(values), values, np.nan))
    return found


def _mean_measured(values: np.ndarray) -> float | None:
    return mean(values[~np.isnan(values)])


def mean(values: np.ndarray) -> float | None:
    """None of nothing."""
    return float(values.mean()) if len(values) else None
