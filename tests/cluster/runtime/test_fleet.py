"""A job's gangs as a whole: how many lost starts it takes until one is given up, and when that ends the job."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayError, RayTaskError

from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.runtime.fleet import Fleet
from cluster.runtime.gang import GangState
from cluster.runtime.run import run_job
from numina.errors import GangError, MachineError, ModelError

Job = Callable[..., JobConfig]


class FakeGang:
    """A gang without processes."""

    spec: Any = None
    silent = False
    download = ""

    def __init__(self, name: str, stage: str, *, overdue: bool = False):
        self.name, self.state, self.overdue = name, stage, overdue

    def lateness(self) -> str:
        return f"{self.name} is late"

    def kill(self) -> list[Any]:
        self.state = GangState.ENDING
        return []

    def free(self) -> None:
        pass

    def roomless(self) -> None:
        pass

    def start(self) -> list[Any]:
        return []

    def fresh(self) -> "FakeGang":
        return FakeGang(self.name, GangState.LOADING)


def fleet_of(job: JobConfig, *gangs: FakeGang) -> Any:
    fleet: Any = Fleet(prepare(job))
    fleet.gangs = {gang.name: gang for gang in gangs}
    return fleet


def test_a_job_goes_on_without_a_gang_that_never_stands(tiny_job: Job) -> None:
    """Every lost start is followed by another, up to `attempts`; then the others go on; the last one ends the job."""
    fleet = fleet_of(
        tiny_job("cluster.attempts=3"), FakeGang("gang-0", GangState.STANDING), FakeGang("gang-1", GangState.LOADING)
    )
    for _ in range(2):
        fleet._false_start(fleet.gangs["gang-1"], RayError("lost"))
        assert fleet.gangs["gang-1"].state == GangState.LOADING
    fleet._false_start(fleet.gangs["gang-1"], RayError("lost"))
    assert list(fleet.gangs) == ["gang-0"]
    fleet.prepared = prepare(tiny_job("cluster.attempts=1"))
    with pytest.raises(GangError, match="gang-0 could not start: RayError: lost"):
        fleet._false_start(fleet.gangs["gang-0"], RayError("lost"))


def test_what_no_new_process_would_mend_ends_the_job_at_once(tiny_job: Job) -> None:
    """A model that can't be loaded: the reason is the model's, after one start."""
    fleet = fleet_of(tiny_job(), FakeGang("gang-0", GangState.LOADING), FakeGang("gang-1", GangState.LOADING))
    with pytest.raises(GangError, match="gang-1 could not start: ModelError: no file holds blocks"):
        fleet._false_start(fleet.gangs["gang-1"], RayTaskError("load", "", ModelError("no file holds blocks")))


def test_a_gang_waits_for_a_place_as_long_as_another_one_works(tiny_job: Job) -> None:
    """A lost node may come back, an autoscaler's may take long; without a gang at work or on its way there, a place is
    waited for no longer than `start_timeout`."""
    working, homeless = FakeGang("gang-0", GangState.STANDING), FakeGang("gang-1", GangState.PLACING, overdue=True)
    fleet = fleet_of(tiny_job(), working, homeless)
    assert list(fleet.watch()) == []
    assert homeless.state == GangState.PLACING
    working.state = GangState.LOADING
    assert list(fleet.watch()) == []
    assert homeless.state == GangState.PLACING
    working.state = GangState.PLACING
    assert list(fleet.watch()) == []
    assert list(fleet.gangs) == ["gang-0"]
    working.overdue = True
    with pytest.raises(GangError, match="gang-0 is late"):
        list(fleet.watch())


def test_a_job_that_no_node_has_room_for_is_told_at_once(joining_job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """A node may join, so it waits; but it says for what."""
    job = joining_job("model.device=cuda", "model.dtype=float32", "parallel.ulysses=1", "cluster.start_timeout=3")
    with pytest.raises(GangError, match="found no place within"):
        run_job(prepare(job))
    assert "gang-0 waits for a node with 1 CPU, 1 GPU; the cluster's largest has 4 CPU" in caplog.text


def test_what_a_machine_lacks_is_not_tried_again_before_anything_has_worked(tiny_job: Job) -> None:
    """The first gang's first start ends the job; once a gang has stood, it is one of the losses that are retried."""
    error = MachineError("CUDA_VISIBLE_DEVICES is ''", "unset it")
    fleet = fleet_of(tiny_job("cluster.attempts=3"), FakeGang("gang-0", GangState.LOADING))
    with pytest.raises(GangError, match="gang-0 could not start: MachineError: CUDA_VISIBLE_DEVICES is ''; unset it"):
        fleet._false_start(fleet.gangs["gang-0"], error)
    fleet = fleet_of(tiny_job("cluster.attempts=3"), FakeGang("gang-0", GangState.LOADING))
    fleet.stood = True
    fleet._false_start(fleet.gangs["gang-0"], error)
    assert fleet.gangs["gang-0"].state == GangState.LOADING
