"""Jobs of the quick model as processes of their own: what a test does to them is done from outside."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import psutil

from cluster.prompts.write import make_prompts
from tests.forks import called, family

NUMBERS = ("two", "three", "four", "five")


def numbered_prompts(number: int) -> list[dict[str, str]]:
    return [
        {"id": str(i), "prompt": f"{NUMBERS[i % 4]} red circles on a grey background, take {i}"} for i in range(number)
    ]


class Job:
    """A driver's process and its children, started again by the same command."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []  # of all jobs, for who cleans up after a test that failed
    rank = "ray::QuickRank"  # what its ranks' processes are called

    def __init__(
        self,
        folder: Path,
        prompts: Iterable[dict[str, str]],
        *overrides: str,
        environment: dict[str, str] | None = None,
    ):
        self.folder = folder
        self.environment = {**os.environ, **(environment or {})}
        if not (folder / "prompts.parquet").exists():
            make_prompts(prompts, str(folder / "prompts.parquet"))
        places = [f"prompts={folder}/prompts.parquet", f"output={folder}/out", "model.device=cpu"]
        self.command = [sys.executable, "-m", "tests.faults.quick_job", f"{folder}/diary", *places, *overrides]

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, env=self.environment)
        self.started.append(self.process)

    def run(self, timeout: float = 400) -> int:
        """Runs to the end; the exit status."""
        self.start()
        return self.wait(timeout)

    def wait(self, timeout: float = 400) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            orphans = family(self.process.pid)
            self.process.kill()
            psutil.wait_procs(orphans, timeout=60)
            raise AssertionError(f"the job didn't end: {self.log()[-3000:]}") from None

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def ranks(self) -> list[psutil.Process]:
        """Those that are at work or on their way to it."""
        return sorted(called(self.rank, family(self.process.pid)), key=lambda process: process.pid)

    def diary(self) -> list[str]:
        """Every call that the gangs computed."""
        path = self.folder / "diary"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_line(self, text: str, times: int, timeout: float = 200) -> float | None:
        """Seconds until the log has so many lines with this text; None when the job ended before."""
        began = time.monotonic()
        while self.log().count(text) < times:
            if self.process.poll() is not None:
                return None
            assert time.monotonic() - began < timeout, self.log()[-3000:]
            time.sleep(0.02)
        return time.monotonic() - began

    def wait_for_work(self, calls: int, timeout: float = 200) -> bool:
        """Until the gangs computed so many calls more; False when the job is over."""
        began, goal = time.monotonic(), len(self.diary()) + calls
        while len(self.diary()) < goal:
            if self.process.poll() is not None:
                return False
            assert time.monotonic() - began < timeout, self.log()[-3000:]
            time.sleep(0.02)
        return True
