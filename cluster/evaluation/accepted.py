"""How often the judge of a job's verified strategies has said yes in its output so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import packed, split
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
    strategies = pa.array(sorted(verified), pa.string())
    own = set[bytes]()
    for rows in store.row_files.stream(["key", "strategy"]):
        own.update(split(packed([rows.filter(pc.is_in(rows["strategy"], strategies))], "key")))
    rule, judged, accepted = Acceptance.of(job.verify), 0, 0
    name = judge_config(job.verify.judge, job.judge).name
    for verdicts in store.verdict_tables(name, ["key", "count_accuracy"]):
        accuracies = verdicts["count_accuracy"].to_pylist()
        mine = [
            accuracy for key, accuracy in zip(split(packed([verdicts], "key")), accuracies, strict=True) if key in own
        ]
        judged += len(mine)
        accepted += sum(map(rule.accepts, mine))
    return accepted / judged if accepted else None
