"""From a job's start to its first clip: when gangs begin to start, when they stand, when all prompts are checked.

    python -m tests.benchmarks.start [--rows 200000] [--model FOLDER]

A fresh job over a set of different short prompts on a Ray of its own, with one gang of one CPU rank; it is stopped at
its first clip. Prints seconds.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.job.config import load_job
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.runtime.run import run_job

NOUNS = ("circles", "squares", "triangles", "crosses")
NUMBERS = ("two", "three", "four", "five", "six")


class FirstClipError(Exception):
    """All was seen."""


def a_set(rows: int, folder: str) -> str:
    prompts = [
        f"{NUMBERS[n % 5]} red {NOUNS[n % 4]} and {NUMBERS[n % 3]} blue {NOUNS[(n + 1) % 4]}, scene {n} of a park"
        for n in range(rows)
    ]
    path = Path(folder) / "set.parquet"
    pq.write_table(pa.table({"id": [str(row) for row in range(rows)], "prompt": prompts}), path, row_group_size=10_000)
    return str(path)


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--rows", type=int, default=200_000)
    given.add_argument("--model", default="testbed")
    options = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, seen = a_set(options.rows, folder), dict[str, float]()
        settings = ["strategies=[baseline]", "parallel.ulysses=1", "generation.steps=1", "model.device=cpu"]
        job = load_job("demo", [f"prompts={path}", f"output={folder}/out", f"model.path={options.model}", *settings])
        began = time.monotonic()

        def watch(now: JobProgress) -> None:
            states = set(now.gangs.values())
            told = {
                "gangs begin to start": bool(states),
                "a gang stands": bool(states - {"placing", "loading", "compiling"}),
                "all rows are checked": now.total > 0,
                "the first clip is there": now.generated > 0,
            }
            for name, true in told.items():
                if true and name not in seen:
                    seen[name] = time.monotonic() - began
                    print(f"{seen[name]:8.1f} s  {name}", flush=True)
            if now.generated:
                raise FirstClipError

        prepared = prepare(job)
        print(f"{time.monotonic() - began:8.1f} s  the first rows are checked", flush=True)
        try:
            run_job(prepared, watch)
        except FirstClipError:
            print(f"{options.rows:,} rows, {options.rows / seen['all rows are checked']:,.0f} rows a second")


if __name__ == "__main__":
    main()
