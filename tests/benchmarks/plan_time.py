"""How long `numina plan` takes for each of the published models, as whole processes: no weights, no prompts.

    python -m tests.benchmarks.plan_time [--repeats 5]

Prints the best wall time, and the processor time of that run: on a busy machine, what the plan itself takes.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

CONFIGS = ("wan1.3b", "wan14b", "wan2.2-5b", "cogvideox-5b")


def run(config: str, cache: str) -> tuple[float, float]:
    """Seconds of the clock, and of processors."""
    words = [sys.executable, "-m", "cluster.cli", "plan", "--config", config, "--gpus", "8", "--gpu", "h100"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        for config in CONFIGS:
            took, used = min(run(config, cache) for _ in range(options.repeats))
            print(f"{config:14} {took:5.2f} s, {used:5.2f} s of processor", flush=True)


if __name__ == "__main__":
    main()
