"""What an error means for a clip."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from ray import exceptions
from ray.exceptions import RayTaskError

from cluster.runtime.faults import CLUSTER_LOST, RETRYABLE, STOPPING, Handling, cause_of, handling_of, reason
from numina.errors import ClipError, DamageError, GangError, InputError, OutputError, PromptError, StorageError
from numina.stage import Stage
from tests.cluster.runtime import peers


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
        torch.AcceleratorError,
        GangError,
        OSError,
    ]
    assert all(len(reason) > 20 for _, reason in RETRYABLE)
    assert (StorageError, DamageError, OutputError, *CLUSTER_LOST) == STOPPING


@pytest.mark.parametrize(
    ("error", "handling"),
    [
        (exceptions.ActorDiedError(), Handling.RETRY),
        (exceptions.ActorUnavailableError("later", None), Handling.RETRY),
        (RayTaskError("guide", "", torch.OutOfMemoryError("97 GiB")), Handling.RETRY),
        (RayTaskError("guide", "", dist.DistBackendError("NCCL")), Handling.RETRY),
        (RayTaskError("guide", "", RuntimeError("Connection closed by peer")), Handling.RETRY),
        (RayTaskError("write", "", OSError(28, "No space left on device")), Handling.RETRY),
        (RayTaskError("guide", "", NotImplementedError("ring")), Handling.GIVE_UP),
        (RayTaskError("guide", "", RuntimeError("[enforce fail at gloo/pair.cc:456] 256 vs 16")), Handling.GIVE_UP),
        (RayTaskError("guide", "", RuntimeError("CUDA driver error: device is gone")), Handling.RETRY),
        (RayTaskError("guide", "", RuntimeError("mat1 and mat2 shapes cannot be multiplied")), Handling.GIVE_UP),
        (RayTaskError("guide", "", TypeError("a bug")), Handling.GIVE_UP),
        (RayTaskError("guide", "", KeyError("a bug")), Handling.GIVE_UP),
        (ClipError("black", Stage.DECODE), Handling.GIVE_UP),
        (RayTaskError("identify", "", PromptError("cut off")), Handling.REFUSED),
        (InputError("said without Ray"), Handling.REFUSED),
        (RayTaskError("write", "", StorageError("full")), Handling.STOP),
        (RayTaskError("rule", "", OutputError("judged with other settings")), Handling.STOP),
        (RayTaskError("write", "", DamageError("torn")), Handling.STOP),
        (exceptions.LocalRayletDiedError(), Handling.STOP),
    ],
)
def test_an_error_is_handled_by_its_cause(error: BaseException, handling: Handling) -> None:
    """Storage trouble blames no clip, bad input and bugs get no second try, lost processes do."""
    assert handling_of(error) is handling


def test_a_shape_bug_is_no_lost_peer() -> None:
    """Both are plain RuntimeErrors of torch: another try of a bug would end alike."""
    for bug in (
        lambda: torch.ones(2, 3) @ torch.ones(2, 3),
        lambda: torch.ones(2).view(3),
        lambda: torch.cat([torch.ones(2, 3), torch.ones(3, 2)]),
        lambda: torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8), torch.ones(1, 4, 3, 3)),
    ):
        with pytest.raises(RuntimeError) as raised:
            bug()
        assert type(raised.value) is RuntimeError
        assert handling_of(RayTaskError("guide", "", raised.value)) is Handling.GIVE_UP


@pytest.mark.parametrize("ending", [*peers.ENDINGS])
def test_a_lost_gloo_peer_is_worth_another_try(ending: str) -> None:
    """What gloo raises in the rank that is left, of a peer that was killed and of one that is silent."""
    spawn = multiprocessing.get_context("spawn")
    said, port = spawn.SimpleQueue(), spawn.Value("i", 0)
    ranks = [spawn.Process(target=peers.meet, args=(rank, port, ending, said), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    ranks[0].join(timeout=60)
    assert not said.empty(), "the rank that is left raised nothing"
    name, message = said.get()
    error = {"RuntimeError": RuntimeError}.get(name) or getattr(dist, name)
    assert handling_of(RayTaskError("guide", "", error(message))) is Handling.RETRY, message
    ranks[1].kill()


def test_a_reason_is_the_cause_without_the_traceback() -> None:
    """What goes into a failure record is one line, of bounded length."""
    error = RayTaskError("guide", "Traceback: a page of it", ValueError("x" * 5000))
    assert isinstance(cause_of(error), ValueError)
    assert reason(error).startswith("ValueError: xxx")
    assert len(reason(error)) == 2000
