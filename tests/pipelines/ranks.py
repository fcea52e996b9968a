"""Real processes with gloo, for what ranks do together on any machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Every rank is forked from one process that imported these once: diffusers alone takes each rank seconds.
mp.get_context("forkserver").set_forkserver_preload(["pipelines.models.wan", "pipelines.attention.engines"])


def processes(work: Callable[..., None], number: int, *arguments: Any) -> None:
    """Runs `work(number, *arguments)` in so many fresh processes and waits; an error in one is raised here."""
    mp.start_processes(work, arguments, nprocs=number, start_method="forkserver")


def spawn(work: Callable[..., None], ranks: int, folder: Path, *arguments: Any) -> None:
    """Runs `work(rank, *arguments)` in so many processes of one group; `folder` is where they meet."""
    folder.mkdir(exist_ok=True)
    processes(_rank, ranks, work, ranks, folder / "meet", arguments)


def _rank(rank: int, work: Callable[..., None], ranks: int, meet: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)
    work(rank, *arguments)
    dist.barrier()  # who leaves while others still talk to it may take them, or itself, down
    dist.destroy_process_group()
