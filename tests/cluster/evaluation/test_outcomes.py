"""Outcomes: which clips of an output a strategy would keep, and what they cost, from rows and verdicts alone."""

from typing import Any

import pytest

from cluster.evaluation.outcomes import Outcome, outcomes, rank_seconds
from cluster.job.strategy import SearchConfig, VerifyConfig, parse_strategy
from cluster.rows import ROW_SCHEMA

SECONDS = {"identify": 2.0, "layout": 50.0, "guide": 3.0, "write": 70.0}


def a_row(attempt: int, strategy: str = "numina", **columns: Any) -> dict[str, Any]:
    """A clip of one prompt; it took its rank 5 s."""
    own = {
        "key": f"{strategy}-{attempt}-{columns.get('strength', 1.0)}",
        "prompt": "two cats",
        "targets": [{"noun": "cats", "count": 2}],
        "strategy": strategy,
        "sample": 0,
        "attempt": attempt,
        "strength": 1.0,
        "chain": "c" * 32,
        "timings": SECONDS,
    }
    return dict.fromkeys(ROW_SCHEMA.names) | own | columns


def made(name: str, rows: list[dict[str, Any]], scores: dict[str, float], attempts: int = 3, **verify: Any) -> Outcome:
    strategy = parse_strategy(
        name, ["baseline", "numina"], SearchConfig(seeds=attempts), VerifyConfig(attempts=attempts, **verify)
    )
    [outcome] = outcomes(strategy, rows, {key: {"count_accuracy": score} for key, score in scores.items()})
    return outcome


ROWS = [a_row(attempt) for attempt in (2, 0, 1)]
SCORES = {"numina-0-1.0": 0.5, "numina-1-1.0": 0.95, "numina-2-1.0": 1.0}


@pytest.mark.parametrize(
    ("name", "kept", "accepted", "cost"),
    [("numina", 0, False, 5.0), ("numina+verified", 1, True, 10.0), ("numina+seed_search", 2, True, 15.0)],
)
def test_the_same_clips_make_several_strategies(name: str, kept: int, accepted: bool, cost: float) -> None:
    """One clip; attempts until one is accepted, and no further; the best of all. Each pays for what it looked at."""
    outcome = made(name, ROWS, SCORES)
    assert (outcome.kept["attempt"], outcome.accepted, outcome.cost) == (kept, accepted, cost)


def test_a_rejected_sample_keeps_its_best_attempt_unaccepted() -> None:
    """The first of equals; it paid for all."""
    outcome = made("numina+verified", ROWS, dict.fromkeys(SCORES, 0.5))
    assert (outcome.kept["attempt"], outcome.accepted, outcome.cost) == (0, False, 15.0)


def test_what_isnt_judged_is_neither() -> None:
    """Accepted is unknown, not false."""
    outcome = made("numina", ROWS, {})
    assert (outcome.accuracy, outcome.accepted) == (None, None)


def test_stronger_attempts_are_told_from_other_seeds() -> None:
    """Of one output that has both."""
    stronger = a_row(1, strength=1.5)
    scores = SCORES | {stronger["key"]: 1.0}
    outcome = made("numina+verified", [*ROWS, stronger], scores, attempts=2, retry="stronger")
    assert [row["key"] for row in outcome.rows] == ["numina-0-1.0", "numina-1-1.5"]


def test_strategies_and_samples_stay_apart() -> None:
    """Plain clips aren't NUMINA's; a row of an older output is a chain of its own."""
    rows = [
        *ROWS,
        a_row(0, "baseline"),
        a_row(0, chain=None, strength=None, sample=1) | {"key": "old", "attempt": None},
    ]
    numina = parse_strategy("numina", ["numina"], SearchConfig(), VerifyConfig())
    assert [outcome.kept["key"] for outcome in outcomes(numina, rows, {})] == ["numina-0-1.0", "old"]


def test_cost_is_gpu_seconds_or_the_ranks_own() -> None:
    """What was done beside the gang isn't the gang's."""
    assert rank_seconds(a_row(0, gpu_seconds=80.0)) == 80.0
    assert rank_seconds(a_row(0)) == 5.0
    assert rank_seconds(a_row(0, ulysses=2, cfg=2, ring=1)) == 20.0
