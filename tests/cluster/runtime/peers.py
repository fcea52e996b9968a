"""Two gloo ranks of which the second is lost; by itself, so that a process imports no more than torch."""

import os
import signal
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

ENDINGS = ("killed", "silent")


def meet(rank: int, port: Any, ending: str, said: Any) -> None:
    """One of the two. Rank 0 tells the class and the message of what the loss of the other raises."""
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port.value = store.port
    else:
        while not port.value:
            time.sleep(0.05)
        store = dist.TCPStore("127.0.0.1", port.value, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=3))
    dist.all_reduce(torch.ones(4))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL if ending == "killed" else signal.SIGSTOP)
    try:
        dist.all_reduce(torch.ones(4))
    except Exception as error:
        said.put((type(error).__name__, str(error)))
