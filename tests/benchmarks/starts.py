"""CPU seconds that processes take until they can work: a command, a driver, a task's process, a rank, a Ray.

    python -m tests.benchmarks.starts [--runs 3]

Prints the least of the runs, user and system time together: what a machine's other work changes least.
"""

import argparse
import subprocess
import sys
import time
from resource import RUSAGE_CHILDREN, getrusage

import psutil
import ray

RANK = """
import gc, sys
import cluster.workers.rank
from pipelines.models.registry import uncollected
if sys.argv[1:] == ["collecting"]:
    gc.disable = lambda: None
with uncollected():
    import pipelines.attention.engines, pipelines.models.wan, pipelines.sampling.generate, pipelines.sampling.warmup
"""
PROCESSES = {
    "`numina --help`": ["-m", "cluster.cli", "--help"],
    "a driver's imports": ["-c", "import cluster.runtime.run"],
    "a task's imports": ["-c", "import cluster.workers.tasks, numina.correct, pipelines.sampling.write"],
    "a rank's imports": ["-c", RANK],
    "a rank's imports, with garbage collection": ["-c", RANK, "collecting"],
}


def of_process(words: list[str]) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_ray() -> float:
    """Of all processes of a Ray of two cores, with the two idle workers that it starts."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    time.sleep(5)  # until they are up
    took = sum(sum(process.cpu_times()[:2]) for process in psutil.Process().children(recursive=True))
    ray.shutdown()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    for name, words in PROCESSES.items():
        print(f"| {name} | {min(of_process(words) for _ in range(runs)):.2f} |", flush=True)
    print(f"| a Ray | {min(of_ray() for _ in range(runs)):.2f} |")


if __name__ == "__main__":
    main()
