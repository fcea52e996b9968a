"""What an error means for a clip: another try, none, or the end of the job."""

from __future__ import annotations

import re
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

from numina.errors import DamageError, GangError, InputError, OutputError, StorageError

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
    (
        torch.AcceleratorError,
        "a GPU or its driver failed: a fresh process may do without the fault, or without the GPU",
    ),
    (GangError, "our own finding: a gang was silent, or a clip took longer than it may"),
    (OSError, "a node's own disk or network, not the output's"),
)
"""The errors after which a clip is tried again, each with its reason. Any other is a bug or bad input: another try
would end alike, so the clip is recorded as failed at once."""

LOST_PEER = re.compile(
    r"gloo/"  # the place in its source that gloo's errors begin with
    r"|\b(?:Connection (?:closed|reset|refused)|Broken pipe|Socket (?:closed|timeout))\b"
    r"|\bNCCL (?:error|communicator was aborted)"
    r"|\bCUDA (?:driver )?error|\bcu(?:DNN|BLAS) error|\bCU(?:DNN|BLAS)_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR)"
)
"""What a plain RuntimeError of torch says where a peer or a device is lost: gloo and some libraries of CUDA raise
nothing more special. A wrong shape, which is a RuntimeError too, says nothing of the kind."""

CLUSTER_LOST: tuple[type[BaseException], ...] = (LocalRayletDiedError, RaySystemError, RpcError)
"""What Ray says when its head, or this node's part of it, is gone."""

STOPPING: tuple[type[BaseException], ...] = (StorageError, DamageError, OutputError, *CLUSTER_LOST)
"""The errors that no clip is blamed for: the job stops, and the same command resumes it."""


class Handling(Enum):
    """What becomes of a clip after an error."""

    RETRY = "try again"
    GIVE_UP = "no other try would end otherwise"
    REFUSED = "the input is at fault; the process that said so is well"
    STOP = "the job can't go on"


def cause_of(error: BaseException) -> BaseException:
    """What was raised in the process that a Ray error comes from."""
    return error.cause if isinstance(error, RayTaskError) and error.cause is not None else error


def handling_of(error: BaseException) -> Handling:
    """What an error of a clip's stage means for that clip."""
    cause = cause_of(error)
    if isinstance(cause, STOPPING):
        return Handling.STOP
    if isinstance(cause, InputError):
        return Handling.REFUSED
    again = isinstance(cause, tuple(kind for kind, _ in RETRYABLE)) or _says_lost(cause)
    return Handling.RETRY if again else Handling.GIVE_UP


def _says_lost(error: BaseException) -> bool:
    """Whether a plain RuntimeError speaks of a lost peer or device. What gloo *enforces* is the shape of a message."""
    said = str(error)
    return type(error) is RuntimeError and "enforce fail" not in said and LOST_PEER.search(said) is not None


def reason(error: BaseException) -> str:
    """The cause that a Ray error carries, without the remote traceback."""
    cause = cause_of(error)
    return f"{type(cause).__name__}: {cause}"[:2000]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out."""
    return isinstance(cause_of(error), torch.OutOfMemoryError)
