"""The driver alone: what it costs per clip beside many gangs, and whether its memory stays flat.

    python -m tests.benchmarks.soak --clips 100000 --gangs 64
    python -m tests.benchmarks.soak --clips 20000 --gangs 64 --seconds 0.5

The driver, the supply with its leases and existence checks on a local disk, the prompt set and the worklist are the
real ones. Gangs, layout and writing are fakes in this process that are done at once (or after `--seconds` a call, to
see that nobody waits): what is left is the driver's own time. Two of three clips are right at first sight.
"""

import argparse
import heapq
import logging
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import psutil

from cluster.dataset.store import Store
from cluster.job.config import load_job
from cluster.job.prepared import prepare
from cluster.job.worklist import open_worklist
from cluster.observability.progress import JobProgress
from cluster.prompts.write import make_prompts
from cluster.runtime.driver import Driver
from cluster.runtime.fleet import Fleet
from cluster.runtime.gang import GangState
from cluster.workers import tasks as stages
from cluster.workers.tasks import Receipt
from numina.errors import GangError

RIGHT = SimpleNamespace(plan=None)
WRONG = SimpleNamespace(plan="plan")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class FakeGang:
    """A gang without processes: each of its calls takes so many seconds, one after the other."""

    silent = overdue = False
    leaves_at = None
    placed = True
    arrivals = ()
    state = GangState.STANDING
    spec = SimpleNamespace(ranks=1)

    def __init__(self, name: str, fleet: "FakeFleet", seconds: float):
        self.name, self.fleet, self.seconds, self.free_at = name, fleet, seconds, 0.0

    def make(self, method: str, *arguments: Any) -> tuple[Any, list[Any]]:
        self.free_at = max(self.free_at, time.monotonic()) + self.seconds
        return method, [self.fleet.later(self.free_at, None)]

    def call(self, method: str, *arguments: Any) -> None:
        pass


class FakeFleet(Fleet):
    """Workers in this process; a reference is a number, and what it holds is known from the start."""

    def __init__(self, prepared: Any, seconds: float):
        super().__init__(prepared)
        self.gangs = {
            f"gang-{number}": FakeGang(f"gang-{number}", self, seconds)  # type: ignore[misc]
            for number in range(prepared.job.parallel.gangs)
        }
        self.clock: list[tuple[float, int]] = []  # when which reference is done
        self.held: dict[int, Any] = {}
        self.made = 0
        self.idle = 0.0  # seconds in which the driver had nothing to do

    def start(self) -> None:
        pass

    def end(self) -> None:
        pass

    def watch(self) -> Iterator[tuple[Any, GangError]]:
        return iter(())

    def nodes(self) -> list[Any]:
        return []

    def put(self, value: Any) -> Any:
        return value

    def later(self, when: float, value: Any) -> Any:
        self.made += 1
        self.held[self.made] = value
        heapq.heappush(self.clock, (when, self.made))
        return self.made

    def wait(self, references: Sequence[Any], timeout: float) -> list[Any]:
        now = time.monotonic()
        until = min(self.clock[0][0] if self.clock else now + 0.001, now + timeout)
        if until > now:
            time.sleep(until - now)
            self.idle += until - now
        return [heapq.heappop(self.clock)[1]] if self.clock and self.clock[0][0] <= time.monotonic() else []

    def answer(self, reference: Any) -> Any:
        return self.held.pop(reference)

    def beside(self, stage: Any, cpus: float, *arguments: Any) -> Any:
        now = time.monotonic()
        if stage is stages.lay_out:
            _, tasks, _ = arguments
            return self.later(now, [(WRONG if int(task.key[:2], 16) % 3 == 0 else RIGHT, 0.1) for task in tasks])
        if stage is stages.write:
            _, drafts, *_ = arguments
            row = {"strategy": "numina", "guided": False, "steps": 50, "timings": {"denoise": 1.0}, "gpu_seconds": None}
            return self.later(now, [Receipt(key=draft.task.key, won=True, row=row) for draft in drafts])
        return self.later(now, None)


def make_set(path: str, rows: int) -> None:
    make_prompts(
        (
            {"id": f"{index:07d}", "prompt": f"{NUMBERS[2 + index % 7]} red circles on a grey background, take {index}"}
            for index in range(rows)
        ),
        path,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--gangs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.0, help="that a call of a gang takes")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    resident: list[tuple[int, float]] = []
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as work:
        make_set(f"{work}/prompts.parquet", options.clips)
        places = [f"prompts={work}/prompts.parquet", f"output={work}/out", "model.path=testbed", "model.device=cpu"]
        prepared = prepare(load_job("demo", [*places, "strategies=[numina]", f"parallel.gangs={options.gangs}"]))
        store, progress = Store(prepared.job.output), JobProgress()
        began = time.perf_counter()
        committed = store.committed_index()
        worklist = open_worklist(prepared, committed, store.given_up(committed))
        store.open_run(prepared.identity(), asked=worklist.asked)
        progress.total = worklist.total
        print(
            f"{progress.total} clips, {options.gangs} gangs; opened in {time.perf_counter() - began:.1f} s", flush=True
        )

        def report(now: JobProgress) -> None:
            share = now.generated / max(1, now.total)
            if share >= len(resident) / 4:
                resident.append((now.generated, process.memory_info().rss / 2**20))
                print(f"after {now.generated:7d} clips: {resident[-1][1]:.1f} MiB resident", flush=True)

        fleet = FakeFleet(prepared, options.seconds)
        driver = Driver(prepared, store, lambda: worklist, progress, report, fleet=fleet)
        began, worked = time.perf_counter(), time.process_time()
        driver.run()
        wall, worked = time.perf_counter() - began, time.process_time() - worked
    assert progress.generated == options.clips, progress
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{wall:.1f} s: {1000 * (wall - fleet.idle) / options.clips:.3f} ms a clip in the driver's loop,", end=" ")
    print(f"{1000 * worked / options.clips:.3f} ms of processor time, threads included; peak {peak:.0f} MiB")
    growth = resident[-1][1] - resident[1][1]
    print(f"growth from {resident[1][0]} to {resident[-1][0]} clips: {growth:.1f} MiB")


if __name__ == "__main__":
    main()
