"""How often the judge of a job's verified strategies has said yes in its output so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.dataset.store import Store
from cluster.job.acceptance import Acceptance
from cluster.job.judge import judge_config
from cluster.job.strategy import ACCEPTED

if TYPE_CHECKING:
    from cluster.job.config import JobConfig


def accepted_share(job: JobConfig) -> float | None:
    """The share of judged attempts that were accepted, in [0, 1]; None where none was judged, or none accepted."""
    store = Store(job.output, single_writer=True)
    if store.run_config() is None:
        return None
    verified = {strategy.base for strategy in job.all_strategies if strategy.select == ACCEPTED}
    own = {row["key"] for row in store.rows().select(["key", "strategy"]).to_pylist() if row["strategy"] in verified}
    verdicts = store.evaluations(judge_config(job.verify.judge, job.judge).name).select(["key", "count_accuracy"])
    judged = [row["count_accuracy"] for row in verdicts.to_pylist() if row["key"] in own]
    accepted = sum(Acceptance.of(job.verify).decide(0, accuracy or 0.0).accepted for accuracy in judged)
    return accepted / len(judged) if accepted else None
