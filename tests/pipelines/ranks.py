"""Real processes with gloo, for what ranks do together on any machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def spawn(work: Callable[..., None], ranks: int, folder: Path, *arguments: Any) -> None:
    """Runs `work(rank, *arguments)` in so many processes of one group; `folder` is where they meet."""
    folder.mkdir(exist_ok=True)
    mp.spawn(_rank, (work, ranks, folder / "meet", arguments), nprocs=ranks)


def _rank(rank: int, work: Callable[..., None], ranks: int, meet: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)
    work(rank, *arguments)
    dist.barrier()  # who leaves while others still talk to it may take them, or itself, down
    dist.destroy_process_group()
