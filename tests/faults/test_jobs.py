"""What can happen to a job beside lost processes: it is stopped, started twice, given bad prompts or a full disk."""

import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from cluster.dataset.store import Store
from cluster.job.config import load_job
from cluster.job.prepared import prepare
from cluster.workers.tasks import Output, store_of
from numina.errors import StorageError
from tests.faults.jobs import Job, numbered_prompts
from tests.forks import family

pytestmark = pytest.mark.slow
AT_WORK = "'gang-0': 'denoise'"  # in the log of a job
QUICK = ["parallel.ulysses=1", "strategies=[baseline]"]


def rows(folder: Path) -> list[str]:
    return [row["id"] for row in Store(str(folder / "out")).rows().to_pylist()]


def test_a_signal_drains_a_job(tmp_path: Path) -> None:
    """What is under way is committed, nothing new is begun, the exit status says that work is left, no process is;
    the same command does the rest, and nothing twice."""
    job = Job(tmp_path, numbered_prompts(60), *QUICK)
    job.start()
    assert job.wait_for_work(5)
    children = family(job.process.pid)
    begun = len(job.diary())
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.wait() == 3
    assert len(job.diary()) <= begun + 3  # those in flight, and one that was just begun
    assert 5 <= len(rows(tmp_path)) == len(job.diary()) < 60
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert "SIGTERM: finishing clips in progress" in job.log()
    assert job.run() == 0
    assert len(rows(tmp_path)) == 60
    assert set(Counter(job.diary()).values()) == {1}


def test_a_second_signal_and_the_grace_end_a_drain(tmp_path: Path) -> None:
    """A clip that doesn't end is left: by a second signal at once, or when the grace is over."""
    endless = [{"id": "endless", "prompt": "three red circles, endless"}]
    job = Job(tmp_path, endless, *QUICK, "cluster.grace=2")
    for signals, limit in ((2, 0.4), (1, 2.0)):
        before = job.log().count(AT_WORK)
        job.start()
        assert job.wait_for_line(AT_WORK, before + 1) is not None, job.log()
        began = time.monotonic()
        for _ in range(signals):
            os.kill(job.process.pid, signal.SIGTERM)
            time.sleep(0.2)
        assert job.wait() == 3
        assert time.monotonic() - began < limit + 60.0  # what it takes Ray to end on a busy machine


def test_bad_prompts_cost_themselves_alone(tmp_path: Path) -> None:
    """One that kills its rank gets three tries, one that runs for ever as many as are left it, a bug none: each is
    recorded with its reason, the others are made, and the exit status says so."""
    prompts = [
        {"id": "poison", "prompt": "three red circles, poison"},
        {"id": "bug", "prompt": "three red circles, bug"},
        *numbered_prompts(10),
        {"id": "endless", "prompt": "two red circles, endless"},
    ]
    job = Job(tmp_path, prompts, *QUICK, "cluster.clip_timeout=2", "cluster.attempts=3")
    assert job.run() == 1
    assert sorted(rows(tmp_path)) == sorted(str(number) for number in range(10))
    records = {record["prompt"].split(", ")[1]: record for [record] in Store(str(tmp_path / "out")).failures().values()}
    assert {name: record["tries"] for name, record in records.items()} == {"poison": 3, "bug": 1, "endless": 3}
    assert "ActorDiedError" in records["poison"]["error"]
    assert records["bug"]["error"] == "KeyError: 'a bug'"
    assert "cluster.clip_timeout=2" in records["endless"]["error"]


def test_a_job_in_which_nothing_works_is_stopped(tmp_path: Path) -> None:
    """Not a million failure records: a bug that every clip meets ends the job, and says how to go on."""
    job = Job(tmp_path, [{"id": str(i), "prompt": f"three red circles, bug {i}"} for i in range(60)], *QUICK)
    assert job.run() == 1
    assert "20 clips in a row failed, the last one with KeyError: 'a bug'" in job.log()
    assert len(Store(str(tmp_path / "out")).failures()) == 20


def test_two_drivers_on_one_output_share_the_work(tmp_path: Path) -> None:
    """The same command started twice at once: every row once, and hardly a clip computed twice (goal: 2 %)."""
    slow = {"NUMINA_QUICK_SECONDS": "0.3"}  # so that both are at work before one has done it all
    first = Job(tmp_path, numbered_prompts(80), *QUICK, environment=slow)
    first.start()
    second = Job(tmp_path, [], *QUICK, environment=slow)
    second.start()
    assert (first.wait(), second.wait()) == (0, 0)
    assert len(rows(tmp_path)) == 80
    twice = len(first.diary()) - 80
    made = [int(found) for found in re.findall(r"(\d+) generated", first.log())]
    print(f"\n{twice} of 80 clips computed by both drivers, which made {made}")
    assert twice <= 2
    assert min(made) > 10  # both had their share


def test_a_full_disk_stops_the_job_and_blames_no_clip(small_disk: Path, tmp_path: Path) -> None:
    """The job ends with the reason; when there is room again the same command does what is left."""
    subprocess.run(["mount", "-o", "remount,size=384k", str(small_disk)], check=True)
    job = Job(tmp_path, numbered_prompts(60), *QUICK)
    assert job.run() == 1
    assert (
        "No space left on device; free some space or restore the storage, then run the same command to resume"
        in job.log()
    )
    assert not Store(str(small_disk)).failures()
    assert 5 < len(rows(tmp_path)) < 60
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert job.run() == 0
    assert len(rows(tmp_path)) == 60


def test_the_loss_of_the_head_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its head a cluster is gone: the driver says so and ends, instead of waiting for ever; on another cluster
    the same command does what is left."""
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}  # Ray's own is a minute
    monkeypatch.setenv("NUMINA_DIARY", str(tmp_path / "diary"))  # for the cluster's processes
    for seconds, lost in (("1.0", True), ("0.02", False)):
        monkeypatch.setenv("NUMINA_QUICK_SECONDS", seconds)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            address = f"cluster.address={cluster.address}"
            job = Job(tmp_path, numbered_prompts(40), *QUICK, address, environment=patience)
            job.start()
            assert job.wait_for_work(5)
            if lost:
                began = time.monotonic()
                cluster.head_node.kill_gcs_server()
                assert job.wait() not in (0, 3)
                print(f"\nthe driver ended {time.monotonic() - began:.1f} s after its head")
                assert len(rows(tmp_path)) < 40
            else:
                assert job.wait() == 0
        finally:
            cluster.shutdown()
    assert len(rows(tmp_path)) == 40


def test_an_output_that_a_worker_does_not_see_is_refused(tmp_path: Path) -> None:
    """A row that is written to a disk of a worker's own would be lost: the worker looks for the run first."""
    output = Output.of(prepare(load_job("demo", [f"output={tmp_path}/elsewhere"])))
    with pytest.raises(StorageError, match=r"isn't there on node .* all nodes share"):
        store_of(output)
    output.store().open_run(output.prepared.identity())
    assert store_of(output).run_config()
