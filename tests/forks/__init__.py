"""Ray's workers of the tests are forked from one process that imported torch, diffusers and transformers once.

A rank takes 5 CPU seconds for these imports, and the tests start hundreds of ranks and task processes. They are real
processes of a real Ray: only their libraries come from a fork, and our own packages are imported by each anew.

    raylet ─► python default_worker.py ─► sitecustomize.py ─► server.py ─► fork ─► default_worker.py
                                          says who it is       imports once

The first Python ends when the fork has taken its place: Ray knows a worker by its id, and its process by what it says
of itself. So it is for every Ray that the tests' process or one below it has started. A worker whose environment
differs in more than Ray's variables, one that sees other disks and one of another user begin as ever; so do those of a
Ray that SLURM started. They do as well if anything goes wrong. Those with other variables of the model hub are forks
of a second process, which has imported nothing that reads these.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

HERE = Path(__file__).parent


@contextmanager
def forked_workers() -> Iterator[None]:
    """For all Rays that this process, or one below it, starts inside."""
    with tempfile.TemporaryDirectory(prefix="forks-", dir="/tmp") as folder:
        os.environ["NUMINA_FORKS"] = f"{os.getpid()}:{folder}"
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *([before] if before else [])])
        servers = [
            subprocess.Popen([sys.executable, str(HERE / "server.py"), f"{folder}/{name}"]) for name in ("all", "bare")
        ]
        try:
            yield
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait()
            del os.environ["NUMINA_FORKS"]
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before


def family(pid: int) -> list[psutil.Process]:
    """All processes below one, with the workers of its Rays, whose parent is the server."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    raylets = {str(process.pid) for process in below}
    place = os.environ.get("NUMINA_FORKS", "").partition(":")[2]  # none where no tests run
    for note in Path(place).glob("[0-9]*") if place else ():
        raylet, _, server = note.read_text().partition(" ")
        with suppress(psutil.NoSuchProcess):
            if raylet in raylets and str((fork := psutil.Process(int(note.name))).ppid()) == server:
                below.append(fork)
    return below


def words(process: psutil.Process) -> list[str]:
    """Its command, or what it calls itself; nothing once it has ended, which it may do between any two looks."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def called(start: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    """The living ones among them whose command begins so."""
    return [process for process in processes if "".join(words(process)[:1]).startswith(start)]
