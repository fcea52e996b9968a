"""What an error means for a clip."""

import pytest
import torch
import torch.distributed as dist
from ray import exceptions
from ray.exceptions import RayTaskError

from cluster.runtime.faults import CLUSTER_LOST, RETRYABLE, STOPPING, Verdict, cause_of, judge, reason
from numina.errors import GangError, InputError, OutputError, PromptError, StorageError


def test_what_is_tried_again_is_this_and_no_more() -> None:
    """The list is a promise: whoever changes it changes this test, and says why."""
    assert [error for error, _ in RETRYABLE] == [
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.ObjectStoreFullError,
        exceptions.OutOfDiskError,
        torch.OutOfMemoryError,
        MemoryError,
        dist.DistError,
        RuntimeError,
        GangError,
        OSError,
    ]
    assert all(len(reason) > 20 for _, reason in RETRYABLE)
    assert (StorageError, OutputError, *CLUSTER_LOST) == STOPPING


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (exceptions.ActorDiedError(), Verdict.RETRY),
        (exceptions.ActorUnavailableError("later", None), Verdict.RETRY),
        (RayTaskError("guide", "", torch.OutOfMemoryError("97 GiB")), Verdict.RETRY),
        (RayTaskError("guide", "", dist.DistBackendError("NCCL")), Verdict.RETRY),
        (RayTaskError("guide", "", RuntimeError("Connection closed by peer")), Verdict.RETRY),
        (RayTaskError("write", "", OSError(28, "No space left on device")), Verdict.RETRY),
        (RayTaskError("guide", "", NotImplementedError("ring")), Verdict.GIVE_UP),
        (RayTaskError("guide", "", TypeError("a bug")), Verdict.GIVE_UP),
        (RayTaskError("guide", "", KeyError("a bug")), Verdict.GIVE_UP),
        (RayTaskError("identify", "", PromptError("cut off")), Verdict.REFUSED),
        (InputError("said without Ray"), Verdict.REFUSED),
        (RayTaskError("write", "", StorageError("full")), Verdict.STOP),
        (RayTaskError("write", "", OutputError("not shared")), Verdict.STOP),
        (exceptions.LocalRayletDiedError(), Verdict.STOP),
    ],
)
def test_an_error_is_judged_by_its_cause(error: BaseException, verdict: Verdict) -> None:
    """Storage trouble blames no clip, bad input and bugs get no second try, lost processes do."""
    assert judge(error) is verdict


def test_a_reason_is_the_cause_without_the_traceback() -> None:
    """What goes into a failure record is one line, of bounded length."""
    error = RayTaskError("guide", "Traceback: a page of it", ValueError("x" * 5000))
    assert isinstance(cause_of(error), ValueError)
    assert reason(error).startswith("ValueError: xxx")
    assert len(reason(error)) == 2000
