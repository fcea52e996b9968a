"""A real all-reduce between processes of this machine: NCCL between its GPUs, gloo where a job's ranks are on CPUs."""

import multiprocessing
import signal
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from cluster.doctor.check import Finding, State, fails, ok, trouble, warning
from cluster.doctor.needs import Needs
from numina.errors import MachineError

CUDA_BYTES, CPU_BYTES = 256 * 2**20, 16 * 2**20  # that are added up
ROUNDS = 5
PATIENCE = 20.0  # seconds for ranks to meet, and to reach each other
MOST_CPU_RANKS = 4


def all_reduce(needs: Needs) -> Finding:
    """Between all GPUs that a gang may take, or between a few CPU processes."""
    import torch

    gpus = torch.cuda.device_count() if needs.may_use_gpu else 0
    if gpus >= 2:
        return _measured("cuda", gpus)
    if gpus == 1 and not (needs.job and needs.ranks > 1):
        return ok("one GPU: nothing to reach")
    if needs.needs_gpu and needs.ranks > 1:
        found = f"NCCL wasn't tried: a gang has {needs.ranks} ranks, and this machine has {gpus} GPUs"
        return warning(found, "the job's preflight tries it between the nodes")
    if needs.ranks > 1:
        return _measured("cpu", min(needs.ranks, MOST_CPU_RANKS))
    return ok("no ranks to reach")


def _measured(device: str, ranks: int) -> Finding:
    context = multiprocessing.get_context("fork")  # nothing has touched CUDA in this process
    receiver, sender = context.Pipe(duplex=False)
    host, port = "127.0.0.1", _free_port()
    own = [
        context.Process(target=_rank, args=(device, rank, ranks, host, port, sender), daemon=True)
        for rank in range(ranks)
    ]
    for process in own:
        process.start()
    sender.close()
    try:
        answers = [receiver.recv() if receiver.poll(PATIENCE) else None for _ in range(ranks)]
    except EOFError:
        answers = [None]
    finally:
        for process in own:
            process.kill()
    errors = [answer for answer in answers if isinstance(answer, MachineError)]
    rates = [answer for answer in answers if isinstance(answer, float)]
    if errors:
        return trouble(errors[0], State.FAILS)
    if len(rates) < ranks:
        said = f"{ranks} ranks on {device} gave no answer within {PATIENCE:.0f} s"
        return fails(said, "run again with NCCL_DEBUG=INFO, NCCL_P2P_DISABLE=1 or NCCL_SHM_DISABLE=1 to see what hangs")
    backend = "NCCL" if device == "cuda" else "gloo"
    whose = "GPUs" if device == "cuda" else "CPU ranks"
    return ok(f"{backend} between {ranks} {whose}: all-reduce of {min(rates):.2g} GB/s")


def _free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _rank(device: str, rank: int, ranks: int, host: str, port: int, sender: Connection) -> None:
    """Sends bytes per second of one rank, as NCCL's tests count an all-reduce's bus bandwidth: 2 (R - 1) / R, in GB/s;
    or what is wrong."""
    import torch
    import torch.distributed as dist

    from pipelines.parallel.group import join_group

    try:
        sender.send(_rate(device, rank, ranks, host, port, torch, dist, join_group))
    except MachineError as error:
        sender.send(error)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        sender.send(MachineError(f"an all-reduce between {ranks} ranks failed ({said})", "run with NCCL_DEBUG=INFO"))
    signal.pause()  # until it is killed: NCCL's goodbye waits for ranks that failed


def _rate(device: str, rank: int, ranks: int, host: str, port: int, torch: Any, dist: Any, join_group: Any) -> float:
    patience = timedelta(seconds=PATIENCE)
    store = dist.TCPStore(host, port, is_master=rank == 0, wait_for_workers=False, timeout=patience)
    own = f"cuda:{rank}" if device == "cuda" else "cpu"
    join_group(store, own, rank, ranks, patience, PATIENCE)
    size = CUDA_BYTES if device == "cuda" else CPU_BYTES
    numbers = torch.zeros(size // 4, device=own)
    dist.all_reduce(numbers)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(numbers)
    if device == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    dist.barrier()
    return float(size * ROUNDS / took * 2 * (ranks - 1) / ranks / 1e9)
