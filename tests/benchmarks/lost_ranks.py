"""What the loss of a rank costs a job on GPUs: until it is noticed, its memory is free, and a gang stands again.

    python -m tests.benchmarks.gangs build --model 1.3b --folder /tmp/w13
    python -m tests.benchmarks.lost_ranks --folder /tmp/w13 parallel.ulysses=2
    python -m tests.benchmarks.lost_ranks --config testbed --timeout 10 parallel.ulysses=2 model.device=cpu

A job of `numina run` in a process of its own, with one gang; ranks are killed (SIGKILL) and stopped (SIGSTOP, which the
watchdog of `--timeout` seconds must notice) while clips are made. Seconds count from the signal. `free` is when every
GPU's memory in use is back at what it was before the job, as another process sees it, plus at most 1 GiB. In the end
every row must be there once with its whole video, and nothing be recorded as failed.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from cluster.dataset.store import Store
from pipelines.testbed.world import heldout_prompts
from pipelines.video.mp4 import decode_mp4
from tests.faults.jobs import Job
from tests.forks import family

GIB = 2**30
LOST, STANDS = "is lost and will be replaced", "is ready after"  # what the driver logs of a gang
TOOK = re.compile(r"is ready after ([\d.]+) s: (.*)")


class RealJob(Job):
    """`numina run` with the model's own ranks."""

    rank = "ray::Rank"

    def __init__(self, folder: Path, config: str, clips: int, *overrides: str):
        prompts = [{"id": str(number), "prompt": one.text} for number, one in enumerate(heldout_prompts(clips, 0))]
        super().__init__(folder, prompts)
        places = [f"prompts={folder}/prompts.parquet", f"output={folder}/out", "cluster.address=local"]
        self.command = [sys.executable, "-m", "cluster.cli", "run", "--config", config, *places, *overrides]

    def rows(self) -> int:
        """Clips that are committed."""
        out = str(self.folder / "out")
        return Store(out).rows().num_rows if (self.folder / "out" / "run.json").exists() else 0

    def wait_for_clips(self, number: int, timeout: float = 300) -> None:
        """Until so many clips are committed."""
        began = time.monotonic()
        while self.rows() < number:
            assert self.process.poll() is None, self.log()[-3000:]
            assert time.monotonic() - began < timeout, self.log()[-3000:]
            time.sleep(0.2)


def in_use() -> list[float]:
    """GiB in use on every GPU, by whomever."""
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append((total - free) / GIB)
    return found


def lose(job: RealJob, fault: str, chance: random.Random, before: list[float]) -> dict[str, float]:
    """Kills or stops one rank of a job at work; seconds from then."""
    ranks, lost, stood = job.ranks(), job.log().count(LOST), job.log().count(STANDS)
    at_work = in_use()
    os.kill(chance.choice(ranks).pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    began, seen = time.monotonic(), dict[str, float]()
    while "stands" not in seen:
        assert job.process.poll() is None, job.log()[-3000:]
        assert time.monotonic() - began < 300, job.log()[-3000:]
        log, now = job.log(), time.monotonic() - began
        if "noticed" not in seen and log.count(LOST) > lost:
            seen["noticed"] = now
        if "free" not in seen and all(used <= less + 1 for used, less in zip(in_use(), before, strict=True)):
            seen["free"] = now
        if log.count(STANDS) > stood:
            seen["stands"] = now
        time.sleep(0.02)
    took, parts = TOOK.findall(job.log())[-1]
    print(f"{fault}: GiB in use before {shown(before)}, at work {shown(at_work)}, now {shown(in_use())}; {parts}")
    return seen | {"of it loading": float(took)}


def shown(values: list[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values) or "–"


def check(job: RealJob, clips: int) -> None:
    store = Store(str(job.folder / "out"))
    rows = store.rows().to_pylist()
    assert len({(row["id"], row["strategy"]) for row in rows}) == len(rows) == clips, len(rows)
    assert not store.failures()
    for row in rows:
        decode_mp4(store.read(row["file_name"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="wan1.3b")
    parser.add_argument("--folder", type=Path, help="the model's, where it isn't the config's own")
    parser.add_argument("--faults", nargs="*", default=["killed", "stopped"], choices=["killed", "stopped"])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--timeout", type=float, default=20.0, help="cluster.step_timeout, seconds")
    parser.add_argument("overrides", nargs="*", help="of the job, e.g. parallel.ulysses=2 generation.steps=10")
    options = parser.parse_args()
    chance, before = random.Random(0), in_use()
    model = [f"model.path={options.folder}"] if options.folder else []
    settings = [f"cluster.step_timeout={options.timeout}", "strategies=[numina]", *model, *options.overrides]
    with tempfile.TemporaryDirectory() as work:
        job = RealJob(Path(work), options.config, options.clips, *settings)
        job.start()
        try:
            told = []
            for number, fault in enumerate(options.faults):
                job.wait_for_clips(number + 1)
                time.sleep(1 + chance.random())
                told.append((fault, lose(job, fault, chance, before)))
            assert job.wait() == 0, job.log()[-3000:]
        finally:
            left = family(job.process.pid)
            job.process.kill()
            psutil.wait_procs(left, timeout=30)
        check(job, options.clips)
        print(job.log()[-1500:])
    ended = time.monotonic()
    while any(used > less + 1 for used, less in zip(in_use(), before, strict=True)) and time.monotonic() - ended < 30:
        time.sleep(0.1)
    print(f"GiB in use after the job: {shown(in_use())}; {options.clips} rows, each once")
    for fault, seen in told:
        print(f"a rank {fault}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in seen.items()))


if __name__ == "__main__":
    main()
