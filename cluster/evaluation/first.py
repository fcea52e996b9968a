"""The first prompts of an output with what each strategy made of them: what a terminal shows of any number of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.evaluation.clips import Clips
from cluster.evaluation.judged import Judged
from cluster.evaluation.kept import kept_by, strategies_made
from cluster.evaluation.outcomes import Outcome, outcomes
from cluster.evaluation.rows import rows_of, verdicts_of
from cluster.job.acceptance import Acceptance
from cluster.rows import python_rows

if TYPE_CHECKING:
    from cluster.dataset.store import Store


@dataclass(frozen=True, kw_only=True)
class First:
    """Outcomes of the first samples that ask for counts, with one judge's verdicts on them."""

    made: Mapping[str, Sequence[Outcome]]  # by strategy, those that have clips
    verdicts: Mapping[str, Mapping[str, Any]]
    of: int  # samples in all


def first_outcomes(store: Store, clips: Clips, own: Judged, most: int) -> First:
    """Of at most so many samples, in the order of `Outcome.sample`."""
    strategies, acceptance = strategies_made(store, clips), Acceptance.recorded(store)
    kept = [kept_by(strategy, clips, own.accuracy, own.failed, acceptance) for strategy in strategies]
    clip = np.concatenate([np.zeros(0, np.int64), *(some.clip[~some.plain] for some in kept)])
    samples, firsts = np.unique(clips.sample[clip], return_index=True)
    shown = samples[np.argsort(clips.order[clip[firsts]], kind="stable")[:most]]
    places = np.flatnonzero(np.isin(clips.sample, shown))
    rows, verdicts = python_rows(rows_of(store, clips, places)), verdicts_of(store, own.judge, clips, places)
    made = {
        strategy.name: outcomes(strategy, rows, verdicts, acceptance)
        for strategy, some in zip(strategies, kept, strict=True)
        if len(some)
    }
    return First(made=made, verdicts=verdicts, of=len(samples))
