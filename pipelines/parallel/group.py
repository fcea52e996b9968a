"""A gang's process group: joined, tried by one small collective, and what is said if ranks can't reach each other."""

import os
import socket
import threading
from datetime import timedelta
from pathlib import Path
from shutil import disk_usage

import torch
import torch.distributed as dist

from numina.errors import MachineError

REACH_SECONDS = 60.0  # for the first collective of ranks that are all there
NCCL_SHARED = 256 * 2**20  # bytes of /dev/shm below which NCCL's buffers of a few GPUs may not fit
SHARED = Path("/dev/shm")


def join_group(
    store: dist.Store, device: str, rank: int, ranks: int, patience: timedelta, reach: float = REACH_SECONDS
) -> None:
    """Joins the default process group of a gang, `device` cuda (NCCL) or cpu (gloo), and adds up one number over it.

    `patience` is for ranks that start later than others; once all are there, they must reach each other in `reach`
    seconds. Raises MachineError where they don't.
    """
    backend = "nccl" if device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
        _try_group(device, ranks, reach)
    except (dist.DistError, RuntimeError) as error:
        raise reach_trouble(backend, str(error)) from error


def _try_group(device: str, ranks: int, reach: float) -> None:
    """One all-reduce. In a thread: NCCL waits for ranks that it can't reach, and can't be interrupted."""
    failed: list[Exception] = []

    def add_up() -> None:
        try:
            if torch.device(device).index is not None:  # a thread begins with the first GPU
                torch.cuda.set_device(device)
            one = torch.ones(1, device=device)
            dist.all_reduce(one)
            if one.item() != ranks:
                raise RuntimeError(f"{ranks} ranks added up to {one.item():g}")
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=add_up, daemon=True)
    thread.start()
    thread.join(reach)
    if thread.is_alive():
        raise RuntimeError(f"no answer within {reach:.0f} s")
    if failed:
        raise failed[0]


def reach_trouble(backend: str, said: str) -> MachineError:
    """What is wrong, after what torch said when ranks met."""
    name = f"{backend.upper()}_SOCKET_IFNAME"
    asked, here = os.environ.get(name), [interface for _, interface in socket.if_nameindex()]
    problem = f"ranks can't reach each other over {'NCCL' if backend == 'nccl' else backend} ({_last_line(said)})"
    if asked and not _named(asked, here):
        return MachineError(
            f"{problem}: {name} is {asked!r}, and this machine has {', '.join(here)}",
            "set it to the interface that all nodes share, or unset it",
        )
    if backend == "nccl" and ("shared memory" in said or "/dev/shm" in said) and small_shared_memory():
        return shared_memory_trouble()
    return MachineError(
        problem,
        f"set {name} to an interface that all nodes share (here: {', '.join(here)}), open all ports between the nodes,"
        f" and {'run with NCCL_DEBUG=INFO for details' if backend == 'nccl' else 'check that the host name resolves'}",
    )


def _named(asked: str, here: list[str]) -> bool:
    """Whether a variable such as NCCL_SOCKET_IFNAME names an interface: by prefixes, after = whole, after ^ others."""
    if asked.startswith("^"):
        return True
    names = asked.removeprefix("=").split(",")
    exact = asked.startswith("=")
    return any(own == name if exact else own.startswith(name) for name in names for own in here)


def small_shared_memory() -> bool:
    """Whether /dev/shm may be too small for NCCL, and for the frames that Ray keeps in it."""
    return SHARED.is_dir() and disk_usage(SHARED).total < NCCL_SHARED


def shared_memory_trouble() -> MachineError:
    """What is said of a /dev/shm that is too small."""
    return MachineError(
        f"/dev/shm has {disk_usage(SHARED).total / 2**20:.0f} MiB, which NCCL and Ray's object store share",
        "start the container with --shm-size=16g or --ipc=host",
    )


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"
