"""What a driver has begun, and what waits."""

from types import SimpleNamespace
from typing import Any

from cluster.runtime.flight import Flight
from cluster.runtime.queues import Held, Queues
from numina.stage import Stage


def test_tasks_beside_the_gangs_wait_for_a_core() -> None:
    """Ray is given no more than there are cores for, layouts first; a batch that was handed back starts none."""
    queues, started = Queues(batch=1, trials=1), list[str]()

    def task(name: str) -> Any:
        return lambda: started.append(name) or name

    batches = {name: Flight([SimpleNamespace(key=name)]) for name in ("mp4", "another", "lost", "layout")}  # type: ignore[list-item]
    for name, flight in batches.items():
        queues.flights.append(flight)
        queues.send_beside(flight, Stage.LAYOUT if name == "layout" else Stage.WRITE, task(name))
    queues.held.append(Held(None, task("rows")))
    queues.forget(batches["lost"])
    queues.start_held(2)
    assert started == ["layout", "mp4"]
    queues.start_held(2)
    assert len(started) == 2
    del queues.waiting["layout"]  # type: ignore[arg-type]
    queues.start_held(2)
    assert started == ["layout", "mp4", "another"]
    queues.start_held(None)
    assert started == ["layout", "mp4", "another", "rows"]
