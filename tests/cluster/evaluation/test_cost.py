"""What an output cost: all time is in one place, by kind of GPU, and what was lost is in none twice."""

from pathlib import Path

import pytest

from cluster.dataset.store import Store
from cluster.evaluation.cost import CPU, cost_of
from cluster.evaluation.outcomes import rank_seconds
from tests.cluster.export.exports import a_row, a_verdict

H100, OLDER = "NVIDIA H100 80GB HBM3", {"rank_seconds": None, "gpu_seconds": None}


def test_time_is_told_by_kind_per_accepted_clip_and_as_lost(tmp_path: Path) -> None:
    """Two clips on GPUs, one of them refused after a try that failed; one given up; seconds of a failure record that
    an older version wrote without them are 0."""
    store = Store(str(tmp_path / "out"), single_writer=True)
    store.open_run({"steps": 4})
    assert cost_of(store) is None
    good, bad = a_row(store, 0, "two cats", 0, "numina"), a_row(store, 1, "three dogs", 0, "numina")
    own = {"rank_seconds": 3600.0, "gpu_seconds": 3600.0, "gpu_name": H100}
    for row, lost in ((good, 0.0), (bad, 720.0)):
        store.commit(row | own | {"lost_seconds": lost})
    store.fail("ab" * 16, {"error": "lost", "rank_seconds": 360.0})
    store.fail("cd" * 16, {"error": "lost"})
    cost = cost_of(store)
    assert cost is not None
    assert (cost.clips, cost.accepted, cost.rejected, cost.failed, cost.given_up) == (2, None, 0.0, 720.0, 360.0)
    for row, right in ((good, True), (bad, False)):
        store.put_evaluation("counter", row["key"], a_verdict(row["targets"], right))
    cost = cost_of(store)
    assert cost is not None
    assert (cost.by_kind, cost.unit) == ({H100: 7200.0}, "GPU-hours")
    assert (cost.accepted, cost.rejected, cost.spent, cost.lost) == (1, 3600.0, 8280.0, 4680.0)
    assert cost.sentence() == (
        f"2.3 GPU-hours ({H100}), 2.3 per accepted clip; lost: 1 to clips that weren't accepted,"
        " 0.2 to tries that failed, 0.1 to clips given up"
    )


@pytest.mark.parametrize("kept", [{"rank_seconds": 5.0}, {"rank_seconds": None, "gpu_seconds": 7.0}, OLDER])
def test_a_rows_seconds_are_those_that_summaries_count(tmp_path: Path, kept: dict[str, float | None]) -> None:
    """Also of rows that older versions wrote, with fewer columns."""
    store = Store(str(tmp_path / "out"), single_writer=True)
    store.open_run({"steps": 4})
    timings = {"identify": 4.0, "layout": 100.0, "guide": 8.0, "write": 100.0}
    row = a_row(store, 0, "two cats", 0, "numina") | {"timings": timings, "ulysses": 2, "cfg": 2} | kept
    store.commit(row)
    cost = cost_of(store)
    assert cost is not None
    [(kind, seconds)] = cost.by_kind.items()
    assert seconds == rank_seconds(store.rows().to_pylist()[0])
    assert (kind == CPU) == (kept.get("gpu_seconds", 2.0) is None)
