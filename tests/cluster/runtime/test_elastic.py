"""How many gangs there are: by a rule, and on a real cluster whose nodes join, leave and die in mid-job."""

from collections import Counter
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.runtime.elastic import Elastic, wanted
from cluster.runtime.flight import Flight, GangTimes, now
from cluster.runtime.gang import GangState
from cluster.runtime.placement import Node, hosts, room
from cluster.runtime.queues import Queues
from cluster.runtime.recovery import Recovery
from cluster.runtime.run import run_job
from numina.stage import Stage
from pipelines.parallel.config import ParallelConfig
from tests.cluster.conftest import PROMPTS
from tests.cluster.runtime.nodes import QUICK, drain

PAIR = [{"CPU": 2.0, "GPU": 2.0}]  # a gang of two ranks on one node
PARTED = [{"CPU": 1.0, "GPU": 1.0}] * 2  # one whose ranks may be on two
CLIPS = 60


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ({"asked": 4, "placed": 1, "room": 0}, 4),  # a fixed number, wherever it has room
        ({"asked": 4, "placed": 2, "room": 0, "given_up": 1}, 3),
        ({"asked": None, "placed": 2, "room": 3}, 5),  # as many as there is room for
        ({"asked": None, "placed": 0, "room": 0}, 1),  # one that waits: the autoscaler hears of it
        ({"asked": None, "placed": 2, "room": 3, "work": 4}, 4),  # no more than there is work for
        ({"asked": None, "placed": 2, "room": 0, "work": 0}, 1),
        ({"asked": None, "placed": 1, "room": 1, "most": 6}, 6),  # the autoscaler is asked for the others
        ({"asked": None, "placed": 1, "room": 1, "most": 6, "work": 3}, 3),  # for no more than there is work for
        ({"asked": None, "placed": 8, "room": 8, "most": 6}, 6),  # a limit
        ({"asked": None, "placed": 2, "room": 3, "given_up": 2}, 3),  # a place where three starts failed isn't one
    ],
)
def test_there_are_as_many_gangs_as_have_room_and_work(given: dict[str, int | None], number: int) -> None:
    assert wanted(**given) == number  # type: ignore[arg-type]


def node(gpus: float, *, free: float | None = None, gone_at: float | None = None) -> Node:
    left = gpus if free is None else free
    return Node(id="", total={"CPU": 16.0, "GPU": gpus}, free={"CPU": 16.0, "GPU": left}, gone_at=gone_at)


def test_room_is_what_is_free_on_nodes_that_stay() -> None:
    """Ranks that must be together are; what helpers take comes first; a node that is to leave has no room."""
    assert room(PAIR, [node(8), node(8, free=5)]) == 6
    assert room(PAIR, [node(1), node(1)]) == 0
    assert room(PARTED, [node(1), node(1), node(1)]) == 1
    assert room(PAIR, [node(8)], first=[{"CPU": 1.0, "GPU": 0.5}] * 2) == 3
    assert room(PAIR, [node(8), node(8, gone_at=inf)]) == 4
    assert room([{"CPU": 2.0}], [node(0)]) == 8
    assert hosts([{"CPU": 2.0}], [node(0, free=0), node(0), node(0, gone_at=5.0)]) == 2


class FakeGang:
    """A gang without processes, on one node."""

    spec = SimpleNamespace(ranks=2, tests=False, together=(2,), need={"CPU": 1.0, "GPU": 1.0}, device="cuda")
    state = GangState.STANDING
    leaves_at: float | None = None

    def __init__(self) -> None:
        self.name, self.skipped = "gang-0", list[str]()
        self.arrivals = [SimpleNamespace(node="spot")]

    def make(self, method: str, *arguments: Any) -> tuple[Any, list[Any]]:
        return object(), [object()]

    def call(self, method: str, keys: list[str]) -> None:
        assert method == "skip"
        self.skipped += keys


class Waiting(FakeGang):
    """One without anything to do."""

    bundles: ClassVar = PAIR

    def __init__(self, name: str, state: GangState) -> None:
        super().__init__()
        self.name, self.state, self.placed = name, state, state is not GangState.PLACING


class FakeFleet:
    """One gang, and a node that may be told to leave."""

    spec = FakeGang.spec
    given_up = 0

    def __init__(self) -> None:
        self.gang = FakeGang()
        self.gangs = {"gang-0": self.gang}
        self.gone_at: float | None = None

    @property
    def all(self) -> list[FakeGang]:
        return list(self.gangs.values())

    def nodes(self) -> list[Node]:
        return [Node(id="spot", total={}, free={}, gone_at=self.gone_at)]

    def release(self, gang: FakeGang) -> None:
        self.gangs.clear()


@pytest.mark.parametrize(
    ("notice", "kept", "skipped"),
    [
        (inf, ["a", "b"], []),  # no deadline: both end
        (100.0, ["a", "b"], []),  # 10 + 20 s for each, so far
        (50.0, ["a"], ["b"]),  # the one that isn't begun is left out
        (20.0, [], ["a", "b"]),  # neither: the gang ends at once
        (1.0, [], ["a", "b"]),
    ],
)
def test_what_ends_before_its_node_leaves_is_finished(notice: float, kept: list[str], skipped: list[str]) -> None:
    """By the stages' means so far. A clip that is handed back counts no failed attempt; its time counts as lost."""
    fleet: Any = FakeFleet()
    queues, times = Queues(batch=1, trials=1), GangTimes()
    unused: Any = dict.fromkeys(["rounds", "supply", "store", "progress", "metrics"])
    recovery = Recovery(queues=queues, fleet=fleet, times=times, attempts=3, **unused)
    gang = fleet.gang
    for stage, seconds in ((Stage.IDENTIFY, 10.0), (Stage.GUIDE, 20.0)):
        times.ended(Flight([], gang=gang, stage=stage, since=now() - seconds), None)
    tasks = {name: SimpleNamespace(key=name, there=False) for name in "ab"}
    for task in tasks.values():
        queues.send(Flight([task]), gang, Stage.IDENTIFY, "identify")  # type: ignore[list-item]
    fleet.gone_at = now() + notice
    Elastic(fleet, recovery, ParallelConfig()).look(None, grows=False)
    assert [flight.tasks[0].key for flight in queues.flights] == kept
    assert (sorted(gang.skipped), sorted(task.key for task in queues.pending)) == (skipped, skipped)
    assert queues.least_busy([gang]) is None
    assert bool(fleet.gangs) == bool(kept)
    assert not queues.failed_tries
    assert set(queues.lost_seconds) == set(skipped)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"work": 9}, ["standing", "loading", "waiting"]),
        ({"work": 2}, ["standing", "loading"]),
        ({"work": 1}, ["standing"]),
        ({"work": 9, "grows": False}, ["standing", "loading"]),  # the autoscaler is asked for nothing more
    ],
)
def test_gangs_that_wait_for_a_place_go_first(given: dict[str, Any], kept: list[str]) -> None:
    """Where less is left to do than there are gangs, and where a job begins nothing new."""
    fleet: Any = FakeFleet()
    states = {"waiting": GangState.PLACING, "standing": GangState.STANDING, "loading": GangState.LOADING}
    fleet.gangs = {name: Waiting(name, state) for name, state in states.items()}
    fleet.helpers = []
    fleet.retire = fleet.release = lambda gang: fleet.gangs.pop(gang.name)
    unused: Any = dict.fromkeys(["rounds", "supply", "store", "progress", "metrics"])
    queues = Queues(batch=1, trials=1)
    recovery = Recovery(queues=queues, fleet=fleet, times=GangTimes(), attempts=3, **unused)
    Elastic(fleet, recovery, ParallelConfig(gangs_max=3)).look(**given)
    assert sorted(fleet.gangs) == sorted(kept)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick_model: None) -> Iterator[Cluster]:
    """A head with a core for mp4s, and a node for one rank, whose calls take 0.3 s and leave a line in a diary."""
    monkeypatch.setenv("NUMINA_QUICK_SECONDS", "0.3")
    monkeypatch.setenv("NUMINA_DIARY", f"{tmp_path}/diary")
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_gangs_follow_the_nodes(nodes: Cluster, tiny_job: Callable[..., JobConfig], tmp_path: Path) -> None:
    """Two nodes join, then one leaves with notice: no call is done twice. One is killed: only its clips are. Gangs are
    as many as the nodes each time, no try counts as failed but one of the killed gang's, and all rows are there."""
    own = ["cluster.cpus_per_rank=2", "strategies=[numina]", "parallel.ulysses=1", f"samples={CLIPS // len(PROMPTS)}"]
    job = tiny_job(f"cluster.address={nodes.address}", *own)
    added: list[object] = []
    seen: list[int] = []  # gangs that worked when a step was done
    steps = iter(range(4))
    step = next(steps)

    def twice() -> int:
        calls = Counter((tmp_path / "diary").read_text().splitlines())
        return sum(number - 1 for number in calls.values())

    def move_nodes(now: JobProgress) -> None:
        nonlocal step
        working = sum(state not in ("placing", "loading", "ending", "leaving") for state in now.gangs.values())
        if step == 0 and now.generated >= 3:
            added.extend(nodes.add_node(num_cpus=2) for _ in range(2))
        elif step == 1 and working == 3:
            drain(nodes.address, added[0].node_id, 60)  # type: ignore[attr-defined]
        elif step == 2 and working == 2 and len(now.gangs) == 2:
            assert (twice(), now.retries) == (0, 0)
            nodes.remove_node(added[1], allow_graceful=False)
        else:
            return
        seen.append(working)
        step = next(steps)

    outcome = run_job(prepare(job), move_nodes)
    assert seen == [1, 3, 2]
    assert (outcome.done, outcome.failed, outcome.total) == (CLIPS, 0, CLIPS)
    assert twice() <= 2 * job.cluster.clips_in_flight
    rows = Store(job.output).rows()
    assert len(rows) == len(set(rows["key"].to_pylist())) == CLIPS
    assert sum(rows["retries"].to_pylist()) <= 1
    assert 0 < sum(rows["lost_seconds"].to_pylist()) < 20
