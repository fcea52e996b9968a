"""Ray's workers of the tests are forked from one process that imported torch, diffusers and transformers once.

A rank takes 5 CPU seconds for these imports, and the tests start hundreds of ranks and task processes. They are real
processes of a real Ray: only their libraries come from a fork, and our own packages are imported by each anew.

    raylet ─► python default_worker.py ─► sitecustomize.py ─► server.py ─► fork ─► default_worker.py
                                          says who it is       imports once

The first Python ends when the fork has taken its place: Ray knows a worker by its id, and its process by what it says
of itself. A worker whose environment differs in more than Ray's variables, one of another user and one of a Ray that
another process started begin as ever. They do as well if anything goes wrong.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


@contextmanager
def forked_workers() -> Iterator[None]:
    """For all Rays that this process starts inside."""
    with tempfile.TemporaryDirectory(prefix="forks-", dir="/tmp") as folder:
        os.environ["NUMINA_FORKS"] = f"{os.getpid()}:{folder}/socket"
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *([before] if before else [])])
        server = subprocess.Popen([sys.executable, str(HERE / "server.py"), f"{folder}/socket"])
        try:
            yield
        finally:
            server.terminate()
            server.wait()
            del os.environ["NUMINA_FORKS"]
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before
