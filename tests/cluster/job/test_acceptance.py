"""What a verdict means for a verified sample is decided once: for a job, its resumption and its readers."""

from typing import Any

import pyarrow as pa
import pytest

from cluster.job.acceptance import Acceptance, Decision
from cluster.job.strategy import VerifyConfig
from cluster.rows import EVALUATION_SCHEMA

RULE = Acceptance(accept=0.9, strengths=(1.0, 1.5, 2.25))
KEYS = [f"{number:032x}" for number in range(3)]
CHAIN = "c" * 32


@pytest.mark.parametrize(
    ("attempt", "accuracy", "decision"),
    [
        (0, 1.0, Decision.ACCEPTED),
        (2, 0.9, Decision.ACCEPTED),
        (0, 0.89, Decision.NEXT_ATTEMPT),
        (1, None, Decision.NEXT_ATTEMPT),  # a judge that doesn't count
        (2, 0.89, Decision.REJECTED),
        (2, None, Decision.REJECTED),
    ],
)
def test_a_clip_is_accepted_or_the_next_attempt_is_due(
    attempt: int, accuracy: float | None, decision: Decision
) -> None:
    """Until none is left; only then the sample is settled without a clip."""
    assert RULE.decide(attempt, accuracy) is decision
    assert decision.settled is (decision is not Decision.NEXT_ATTEMPT)
    assert RULE.accepts(accuracy) is decision.accepted


def verdict(number: int, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    own = {"key": KEYS[number], "chain": CHAIN, "attempt": number, "strength": RULE.strengths[number]}
    return own | {"count_accuracy": accuracy} | changes


@pytest.mark.parametrize(
    ("verdicts", "settled"),
    [
        ([verdict(0, 0.2), verdict(1, 0.95)], True),
        ([verdict(0, 0.2), verdict(1, 0.3), verdict(2, 0.4)], True),
        ([verdict(0, 0.2), verdict(1, 0.3)], False),
        ([verdict(0, 1.0, strength=1.5)], False),  # of other settings
        ([verdict(0, 1.0, chain="")], False),  # of a clip that wasn't verified
        ([verdict(0, 1.0, chain=None)], False),
        ([verdict(0, 1.0, key="f" * 32)], False),  # of a row that isn't there
        ([verdict(0, 0.2), verdict(1, None), verdict(2, None)], True),  # of a judge that doesn't count
        ([verdict(2, 1.0, attempt=3)], False),  # one more than this rule has
        ([verdict(0, 1.0, attempt=None)], True),  # of a version that had no attempts
    ],
)
def test_a_chain_is_settled_by_what_the_job_itself_would_decide(verdicts: list[dict[str, Any]], settled: bool) -> None:
    """By verdicts on rows that are there, of attempts that this rule asks for."""
    committed = {bytes.fromhex(key) for key in KEYS}
    expected = {bytes.fromhex(CHAIN)} if settled else frozenset()
    names = ["key", "chain", "attempt", "strength", "count_accuracy"]
    schema = pa.schema([EVALUATION_SCHEMA.field(name) for name in names])
    assert RULE.settled([pa.Table.from_pylist(verdicts, schema=schema)], committed) == expected
    apart = [pa.Table.from_pylist([verdict], schema=schema) for verdict in verdicts]
    assert RULE.settled(apart, committed) == expected


def test_the_rule_of_a_job_is_that_of_its_settings() -> None:
    """Stronger retries, too."""
    verify = VerifyConfig(accept=0.8, attempts=3, retry="stronger", strengthen=2.0)
    assert Acceptance.of(verify) == Acceptance(accept=0.8, strengths=(1.0, 2.0, 4.0))


def test_later_attempts_do_not_count_after_an_accepted_one() -> None:
    """Others may have been made by a seed search."""
    assert RULE.first_accepted([0.2, None, 0.9, 1.0]) == 2
    assert RULE.first_accepted([0.2, None]) is None
