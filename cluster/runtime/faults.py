"""What an error means for a clip: another try, none, or the end of the job."""

from __future__ import annotations

from enum import Enum

import torch
import torch.distributed as dist
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RaySystemError,
    RayTaskError,
    RpcError,
    WorkerCrashedError,
)
from ray.exceptions import OutOfMemoryError as HostMemoryError

from numina.errors import GangError, InputError, OutputError, StorageError

RETRYABLE: tuple[tuple[type[BaseException], str], ...] = (
    (RayActorError, "a rank's process died or can't be reached: killed, crashed, or its node was lost"),
    (WorkerCrashedError, "the process of a task beside the gangs died"),
    (HostMemoryError, "Ray ended the process because its node ran out of memory, which others may have taken"),
    (NodeDiedError, "a task's node was lost"),
    (ObjectLostError, "frames or maps went with the node that held them, or could not be fetched from it"),
    (ObjectStoreFullError, "a node had no room for frames, until others are written"),
    (OutOfDiskError, "a node's own disk had no room for frames; the output's is a StorageError"),
    (torch.OutOfMemoryError, "GPU memory ran out: it may have been in pieces, or another process's"),
    (MemoryError, "host memory ran out, which others may have taken"),
    (dist.DistError, "a collective failed or timed out: another rank died or hangs"),
    (RuntimeError, "gloo and CUDA tell lost peers and broken devices by nothing more special"),
    (GangError, "our own finding: a gang was silent, or a clip took longer than it may"),
    (OSError, "a node's own disk or network, not the output's"),
)
"""The errors after which a clip is tried again, each with its reason. Any other is a bug or bad input: another try
would end alike, so the clip is recorded as failed at once."""

CLUSTER_LOST: tuple[type[BaseException], ...] = (LocalRayletDiedError, RaySystemError, RpcError)
"""What Ray says when its head, or this node's part of it, is gone."""

STOPPING: tuple[type[BaseException], ...] = (StorageError, OutputError, *CLUSTER_LOST)
"""The errors that no clip is blamed for: the job stops, and the same command resumes it."""


class Verdict(Enum):
    """What becomes of a clip after an error."""

    RETRY = "try again"
    GIVE_UP = "no other try would end otherwise"
    REFUSED = "the input is at fault; the process that said so is well"
    STOP = "the job can't go on"


def cause_of(error: BaseException) -> BaseException:
    """What was raised in the process that a Ray error comes from."""
    return error.cause if isinstance(error, RayTaskError) and error.cause is not None else error


def judge(error: BaseException) -> Verdict:
    """What an error of a clip's stage means for that clip."""
    cause = cause_of(error)
    if isinstance(cause, STOPPING):
        return Verdict.STOP
    if isinstance(cause, InputError):
        return Verdict.REFUSED
    if isinstance(cause, NotImplementedError):  # a RuntimeError by descent only
        return Verdict.GIVE_UP
    return Verdict.RETRY if isinstance(cause, tuple(kind for kind, _ in RETRYABLE)) else Verdict.GIVE_UP


def reason(error: BaseException) -> str:
    """The cause that a Ray error carries, without the remote traceback."""
    cause = cause_of(error)
    return f"{type(cause).__name__}: {cause}"[:2000]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out."""
    return isinstance(cause_of(error), torch.OutOfMemoryError)
