"""Nodes that join and leave in mid-job: clips an hour before and after, and what a node that leaves costs.

    python -m tests.benchmarks.elastic --clips 150 --seconds 6

Nodes are Ray's own processes on this machine, each with room for one rank. A clip's denoising is a rank's sleep of
`--seconds`, so that four nodes can be twice as fast as two on two cores. All else is real: Ray, gangs, mp4s, commits.
"""

import argparse
import logging
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

import cluster.workers.rank
from cluster.dataset.store import Store
from cluster.job.config import load_job
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.prompts.write import make_prompts
from cluster.runtime.run import run_job
from tests.cluster.runtime.nodes import QUICK, drain
from tests.faults.jobs import numbered_prompts
from tests.faults.quick_job import QuickRank

FOLLOWS = 60.0  # seconds after two nodes joined, from when on the pace counts
WINDOW = 60.0  # seconds in which it is counted
RANK_CPUS = 2  # that a rank reserves: a node each, and none on the head, whose core is for mp4s
NOTICE = 60  # seconds that the node that leaves is given


class Watched:
    """A job whose nodes this changes while it runs: two at first, two that join, one that leaves."""

    def __init__(self, nodes: Cluster):
        self.nodes = nodes
        self.first_clip = self.joined = self.left = 0.0  # when, by time.time
        self.added: list[Any] = []

    def __call__(self, now: JobProgress) -> None:
        moment = time.time()
        standing = sum(state not in ("placing", "loading", "ending", "leaving") for state in now.gangs.values())
        if not self.first_clip and standing == 2 and now.generated:
            self.first_clip = moment
        elif self.first_clip and not self.joined and moment > self.first_clip + WINDOW:
            self.added = [self.nodes.add_node(num_cpus=RANK_CPUS) for _ in range(2)]
            self.joined = time.time()
        elif self.joined and not self.left and moment > self.joined + FOLLOWS + WINDOW:
            self.left = moment
            drain(self.nodes.address, self.added[0].node_id, NOTICE)


def per_hour(times: list[float], begin: float) -> float:
    """Clips an hour between the first and the last commit in a window."""
    inside = sorted(moment for moment in times if begin <= moment <= begin + WINDOW)
    return (len(inside) - 1) / (inside[-1] - inside[0]) * 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=6.0, help="that a rank sleeps for a clip")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    cluster.workers.rank.Rank = QuickRank  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as work:
        os.environ |= {"NUMINA_QUICK_SECONDS": str(options.seconds), "NUMINA_DIARY": f"{work}/diary"}
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                nodes.add_node(num_cpus=RANK_CPUS)
            make_prompts(numbered_prompts(options.clips), f"{work}/prompts.parquet")
            places = [f"prompts={work}/prompts.parquet", f"output={work}/out", f"cluster.address={nodes.address}"]
            own = [
                f"cluster.cpus_per_rank={RANK_CPUS}",
                "strategies=[baseline]",
                "parallel.ulysses=1",
                "model.device=cpu",
            ]
            watched = Watched(nodes)
            outcome = run_job(prepare(load_job("demo", [*places, *own])), watched)
            times = [moment.timestamp() for moment in Store(f"{work}/out").rows()["committed_at"].to_pylist()]
        finally:
            ray.shutdown()
            nodes.shutdown()
        calls = Counter(Path(f"{work}/diary").read_text().splitlines())
    assert watched.left, "the job ended before a node left: give more --clips"
    before, after = per_hour(times, watched.first_clip), per_hour(times, watched.joined + FOLLOWS)
    print(f"two nodes: {before:.0f} clips an hour; two more, {FOLLOWS:.0f} s after they joined: {after:.0f}", end="")
    print(f", {after / before:.2f} times as many")
    print(f"one of four leaves with {NOTICE} s of notice: {options.clips - outcome.done} clips lost,", end=" ")
    print(f"{sum(calls.values()) - len(calls)} redone, {outcome.retries} tries failed")


if __name__ == "__main__":
    main()
