"""Gangs on several nodes: Ray's own cluster of processes on one machine, each node with cores for two ranks."""

from collections.abc import Callable, Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.job.worklist import open_worklist
from cluster.observability.progress import JobProgress
from cluster.runtime.driver import Driver
from cluster.runtime.fleet import ray_cluster
from cluster.runtime.gang import Gang, GangState
from pipelines.video.mp4 import decode_mp4
from tests.cluster.runtime.nodes import QUICK

Job = Callable[..., JobConfig]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without cores, and two nodes of two: no core is left beside four ranks."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def job(tiny_job: Job, nodes: Cluster) -> Job:
    """A job on that cluster, of plain clips."""
    return lambda *overrides: tiny_job(f"cluster.address={nodes.address}", "strategies=[baseline]", *overrides)


def run(job: JobConfig, look: Callable[[Driver], None] = lambda driver: None) -> Driver:
    """Runs a job, and looks at its driver at every change."""
    prepared, store = prepare(job), Store(job.output)
    nothing = store.committed_index()
    worklist = open_worklist(prepared, nothing, nothing)
    store.open_run(prepared.identity())
    with ray_cluster(prepared):
        driver = Driver(prepared, store, lambda: worklist, JobProgress(), lambda progress: look(driver))
        driver.run()
    return driver


def homes(gang: Gang) -> list[str]:
    """The nodes of a gang's ranks, in rank order."""
    return [arrival.node for arrival in sorted(gang.arrivals, key=lambda arrival: arrival.rank)]


def check_rows(job: JobConfig, number: int) -> None:
    store = Store(job.output)
    rows = store.rows().to_pylist()
    assert len({row["key"] for row in rows}) == len(rows) == number
    assert not store.failures()
    for row in rows:
        assert len(decode_mp4(store.read(row["file_name"]))) == row["num_frames"]


@pytest.mark.slow
def test_a_gang_larger_than_a_node_parts_between_branches(job: Job) -> None:
    """Two branches of two Ulysses ranks each: every pair has a node to itself. With no core left beside them, layouts
    and mp4s are made all the same."""
    small = job("parallel.cfg=2", "parallel.ulysses=2", "strategies=[numina]", "limit=1")
    [gang] = run(small).fleet.gangs.values()
    first, second, third, fourth = homes(gang)
    assert first == second != third == fourth
    check_rows(small, 1)


@pytest.mark.slow
def test_gangs_stay_inside_a_node_and_survive_its_loss(job: Job, nodes: Cluster) -> None:
    """Two gangs of two take a node each. Both nodes are lost in mid-job: once another one joins, one gang stands there
    and makes what is left, while the other one waits for a place."""
    lossy = job("parallel.gangs=2", "parallel.ulysses=2", "samples=3", "cluster.end_timeout=1")
    before: list[list[str]] = []

    def exchange_the_nodes(driver: Driver) -> None:
        gangs = driver.fleet.gangs.values()
        if not before and all(gang.state == GangState.STANDING for gang in gangs):
            before.extend(homes(gang) for gang in gangs)
            for node in list(nodes.worker_nodes):
                nodes.remove_node(node, allow_graceful=False)
        elif before and not nodes.worker_nodes and all(gang.state == GangState.PLACING for gang in gangs):
            nodes.add_node(num_cpus=2)

    driver = run(lossy, exchange_the_nodes)
    (first, second), (third, fourth) = before
    assert first == second != third == fourth
    [after] = [gang for gang in driver.fleet.gangs.values() if gang.arrivals]
    assert set(homes(after)) == {node.node_id for node in nodes.worker_nodes}
    check_rows(lossy, 6)
