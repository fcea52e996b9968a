"""What becomes of clips when something fails."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from cluster.observability.progress import JobProgress
from cluster.runtime.flight import Flight, GangTimes
from cluster.runtime.queues import Queues
from cluster.runtime.recovery import Recovery
from numina.errors import InputError


class Recorded:
    """A store that notes which clips failed."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def fail(self, key: str, record: dict[str, Any]) -> None:
        self.keys.append(key)


@pytest.mark.parametrize(
    ("draining", "error", "failed"),
    [
        (False, RayActorError(), ["a"]),
        (True, RayActorError(), []),  # its machine may have gone: the next run tries again
        (True, InputError("unfit"), ["a"]),  # would end alike
    ],
)
def test_a_job_that_stops_blames_no_clip_for_a_lost_process(
    draining: bool, error: Exception, failed: list[str]
) -> None:
    store, queues, progress = Recorded(), Queues(batch=1, trials=1), JobProgress()
    progress.draining = draining
    row = SimpleNamespace(prompt="three red circles", index=0)
    flight = Flight([SimpleNamespace(key="a", there=False, row=row, chain_digest="")])  # type: ignore[list-item]
    rounds, metrics = SimpleNamespace(given_up=lambda task: []), SimpleNamespace()
    metrics.retried = metrics.failed = lambda name: None
    parts: Any = {"rounds": rounds, "metrics": metrics, "store": store, "progress": progress}
    unused: Any = dict.fromkeys(["supply", "fleet"])
    recovery = Recovery(queues=queues, times=GangTimes(), attempts=1, **parts, **unused)
    queues.flights.append(flight)
    recovery.fail(flight, error)
    assert store.keys == failed
