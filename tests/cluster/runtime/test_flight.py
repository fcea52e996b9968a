"""What a gang did with its time: calls one after the other, by a clock that nobody sets."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

import cluster.runtime.flight
from cluster.runtime.flight import Flight, GangTimes, now
from numina.stage import Stage


class FakeGang:
    name = "gang-0"
    spec = SimpleNamespace(ranks=2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The driver's clock, to be set."""
    moment = [100.0]
    monkeypatch.setattr(cluster.runtime.flight, "now", lambda: moment[0])
    return moment


def flight(gang: Any, stage: Stage, since: float) -> Flight:
    return Flight([], gang=gang, stage=stage, since=since)


def test_a_queued_batch_begins_when_its_gang_is_free(clock: list[float]) -> None:
    """Two batches asked for at once: the second one's span begins where the first one's ends, a layout's where it was
    asked for; spans of one gang never overlap, and its busy share is theirs."""
    times, gang = GangTimes(), FakeGang()
    times.busy_shares(["gang-0"])
    first, second = flight(gang, Stage.IDENTIFY, 100.0), flight(gang, Stage.DENOISE, 100.0)
    clock[0] = 104.0
    times.ended(first, gang)
    assert times.began(second) == 104.0
    first.stage, first.since = Stage.LAYOUT, 104.0
    clock[0] = 105.0
    times.ended(first, None)
    times.ended(second, gang)
    assert [(span["stage"], span["place"], span["began"], span["seconds"]) for span in first.spans] == [
        ("identify", "gang-0", 100.0, 4.0),
        ("layout", "cpu", 104.0, 1.0),
    ]
    assert second.spans[0]["seconds"] == 1.0
    clock[0] = 110.0
    assert times.busy_shares(["gang-0"]) == {"gang-0": 0.5}


def test_a_gang_that_took_anothers_place_begins_anew(clock: list[float]) -> None:
    """What a lost gang did is not its successor's, and one that doesn't stand has no share."""
    times, gang = GangTimes(), FakeGang()
    times.busy_shares(["gang-0"])
    clock[0] = 110.0
    times.ended(flight(gang, Stage.DENOISE, 100.0), gang)
    times.lost(gang)
    assert times.busy_shares([]) == {}
    clock[0] = 120.0
    assert times.busy_shares(["gang-0"]) == {"gang-0": 0.0}


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip isn't late, nor a gang silent, because somebody set the machine's clock a day ahead."""
    before = now()
    assert abs(before - time.time()) < 5
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + 86400)
    assert now() - before < 5
