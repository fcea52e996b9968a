"""Gangs on a cluster that grows with what is asked for: Ray's own autoscaler, and nodes with real raylets."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.runtime.run import run_job
from tests.cluster.conftest import PROMPTS
from tests.cluster.runtime.autoscaled import Autoscaled
from tests.slurm.conftest import wait_until

CLIPS = 120
IDLE = 3.0  # seconds until a node is taken back


@pytest.fixture
def autoscaled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick_model: None) -> Iterator[Autoscaled]:
    """A head with one core for mp4s, and up to four nodes for a rank each. Clips come faster than they are written."""
    monkeypatch.setenv("NUMINA_QUICK_SECONDS", "0.05")
    monkeypatch.setenv("NUMINA_DIARY", f"{tmp_path}/diary")
    cluster = Autoscaled(head_cpus=1, node_cpus=2, most=4, idle=IDLE)
    yield cluster
    ray.shutdown()
    cluster.end()


@pytest.mark.slow
def test_the_autoscaler_brings_a_node_for_each_gang(
    autoscaled: Autoscaled, tiny_job: Callable[..., JobConfig], tmp_path: Path
) -> None:
    """No node has room at first. As many are started as there may be gangs, not one for mp4s that wait; each clip is
    made once; after the job nothing is asked for any more, and the nodes are taken back."""
    own = ["cluster.cpus_per_rank=2", "strategies=[numina]", "parallel.ulysses=1", f"samples={CLIPS // len(PROMPTS)}"]
    job = tiny_job(f"cluster.address={autoscaled.address}", *own, "parallel.gangs_max=2")
    homes: set[str] = set()  # of ranks that worked

    def look(now: JobProgress) -> None:
        homes.update(name for name, doing in now.gangs.items() if "identify" in doing)

    outcome = run_job(prepare(job), look)
    assert (outcome.done, outcome.failed, outcome.total, outcome.retries) == (CLIPS, 0, CLIPS, 0)
    assert homes == {"gang-0", "gang-1"}
    calls = Counter((tmp_path / "diary").read_text().splitlines())
    assert set(calls.values()) == {1}
    assert Counter(Store(job.output).rows()["id"].to_pylist()) == {str(row["id"]): CLIPS // 2 for row in PROMPTS}
    assert autoscaled.launched == 2, autoscaled.log()
    wait_until(lambda: autoscaled.nodes() == 1, 60, autoscaled.log)
    assert autoscaled.launched == 2, autoscaled.log()
