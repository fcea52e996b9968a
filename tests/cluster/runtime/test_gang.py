"""Gangs on a real local Ray: placed as a whole, heard of while they work, gone when they end."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch

from cluster.dataset.leases import process_started
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.runtime.fleet import Fleet
from cluster.runtime.gang import Gang, end_gangs, end_processes
from cluster.runtime.placement import bundles
from cluster.workers.rank import GangSpec, size_told
from numina.errors import GangError
from pipelines.parallel.config import MemoryConfig, ParallelConfig
from pipelines.sampling.clip import Request
from tests.pipelines.conftest import GENERATION

SPEC = GangSpec(
    model_path="testbed",
    dtype="float32",
    device="cpu",
    generation=GENERATION,
    methods=(None,),
    parallel=ParallelConfig(ulysses=2),
    memory=MemoryConfig(),
    cpus_per_rank=1,
    start_timeout=60,
    log_format="text",
    step_timeout=2,
    end_timeout=10,
)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def stand(gang: Gang) -> list[str]:
    """The states that a starting gang goes through."""
    states = [gang.state]
    for reference in gang.start():
        gang.heard(reference, ray.get(reference))
        states.append(gang.state)
    return list(dict.fromkeys(states))


def seconds_until(happens: Callable[[], bool], timeout: float) -> float:
    began = time.monotonic()
    while not happens():
        assert time.monotonic() - began < timeout
        time.sleep(0.1)
    return time.monotonic() - began


@pytest.mark.usefixtures("local_ray")
def test_a_gang_stands_is_heard_and_ends(tiny_checkpoint: Path) -> None:
    """Its stages show in order. It is heard while it computes, and silent once a rank is stopped. When it has ended its
    processes are gone, also the stopped one, and its place is free."""
    gang = Gang("gang-0", replace(SPEC, model_path=str(tiny_checkpoint)))
    assert stand(gang) == ["placing", "loading", "standing"]
    assert gang.seconds["load"] > 0
    pids = [arrival.pid for arrival in gang.arrivals]
    assert sorted(arrival.rank for arrival in gang.arrivals) == [0, 1]
    assert len(set(pids)) == 2

    request = Request("clip", "two red circles", None, seed=1)
    _, receipts = gang.make("plain", [request], None)
    seconds_until(lambda: not gang.silent and len(ray.wait(receipts, num_returns=2, timeout=0)[0]) == 2, timeout=60)

    psutil.Process(pids[1]).suspend()
    assert seconds_until(lambda: gang.silent, timeout=10) > SPEC.step_timeout
    end_gangs([gang])
    seconds_until(lambda: not any(map(psutil.pid_exists, pids)), timeout=5)  # a kernel takes its time with threads
    seconds_until(lambda: ray.available_resources().get("CPU") == 3, timeout=5)


@pytest.mark.usefixtures("local_ray")
def test_a_gang_without_room_says_what_it_needs_and_what_there_is(tiny_job: Callable[..., JobConfig]) -> None:
    """Two ranks of two cores on a machine of three: an error within the timeout, in numbers, with the remedy."""
    fleet = Fleet(prepare(tiny_job("cluster.cpus_per_rank=2", "cluster.start_timeout=1")))
    fleet.start()
    message = r"gang-0 found no place within 1 s: it needs 1 × 4 CPU, .* largest node has 3 CPU.*parallel\.ulysses"
    with pytest.raises(GangError, match=message):
        seconds_until(lambda: bool(list(fleet.watch())), timeout=10)
    fleet.end()


def test_a_process_that_took_over_a_pid_is_left_alone() -> None:
    """A rank that has ended gives its number back, and another job's process may have it by now: the time at which a
    process was started tells them apart."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as stranger:
        started = process_started(stranger.pid)
        assert started is not None
        end_processes._function([(stranger.pid, started - 1), (stranger.pid, None)], 0.3)
        assert stranger.poll() is None
        end_processes._function([(stranger.pid, started)], 5.0)
        assert stranger.wait(timeout=5) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("parallel", "nodes", "parts"),
    [
        (ParallelConfig(cfg=2, ulysses=4), [(8, 64)], [8]),  # all on one node
        (ParallelConfig(cfg=2, ulysses=4), [(0, 64), (4, 64), (6, 64)], [4, 4]),  # a branch on each
        (ParallelConfig(cfg=2, ring=2, ulysses=4), [(8, 64)], [8, 8]),  # rings stay inside while branches can part
        (ParallelConfig(cfg=2, ring=2, ulysses=4), [(4, 64), (4, 64)], [4, 4, 4, 4]),
        (ParallelConfig(ring=3, ulysses=4), [(8, 64), (8, 64)], [4, 4, 4]),
        (ParallelConfig(ulysses=8), [(8, 4), (4, 64)], [8]),  # nowhere yet: a larger node may join
    ],
)
def test_ulysses_ranks_share_a_node(parallel: ParallelConfig, nodes: list[tuple[int, int]], parts: list[int]) -> None:
    """Few and large parts, in rank order: what swaps heads in every layer is never parted."""
    spec = replace(SPEC, device="cuda", parallel=parallel)
    found = bundles(spec, [{"GPU": gpus, "CPU": cpus} for gpus, cpus in nodes])
    assert found == [{"GPU": part, "CPU": part} for part in parts]


def test_running_out_of_memory_says_what_was_expected() -> None:
    """The planner's figure and what takes less, and still the error that is tried again."""
    for planned, said in ((71.32, r"; the planner expects 71\.3 GiB at most on every GPU"), (None, "")):
        wanted = pytest.raises(torch.OutOfMemoryError, match=rf"^2 GiB more{said}; memory\.shard=zero3, .* need less")
        with wanted, size_told(planned):
            raise torch.OutOfMemoryError("2 GiB more")
