"""Which preflights have passed on this machine: empty files in the user's cache folder, never in an output."""

import contextlib
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import torch

from cluster.workers.code import code_digest


def mark_of(spec: Any) -> Path:
    """The file that says so of one code, model, way to run it and machine."""
    gpus = torch.cuda.get_device_name() if spec.device == "cuda" and torch.cuda.is_available() else "cpu"
    libraries = (torch.__version__, torch.version.cuda)
    known = (
        code_digest(),
        spec.model_path,
        spec.model_revision,
        spec.loras,
        spec.dtype,
        spec.parallel,
        spec.memory,
        spec.preflight,
        socket.gethostname(),
        gpus,
        _driver(),
        libraries,
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return cache / "numina" / "preflight" / hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()


def has_passed(spec: Any) -> bool:
    """Whether it has passed here before."""
    with contextlib.suppress(OSError, RuntimeError):  # no home folder
        return mark_of(spec).is_file()
    return False


def note_passed(spec: Any) -> None:
    """From now on it has; where no cache can be written, it is done again at every start."""
    with contextlib.suppress(OSError, RuntimeError):
        mark = mark_of(spec)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _driver() -> str:
    """The NVIDIA driver's version, as the kernel has it."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().partition("\n")[0]
    except OSError:
        return ""
