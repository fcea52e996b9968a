"""What a driver may begin: every task once over all drivers, none that is done, none lost."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cluster.runtime.supply
from cluster.dataset.store import Store
from cluster.runtime.supply import Supply
from numina.errors import StorageError
from tests.cluster.dataset.outputs import a_row, key_of


def tasks(*numbers: int) -> Iterator[Any]:
    return iter([SimpleNamespace(key=key_of(number), verified=False) for number in numbers])


def drained(supply: Supply, *, seconds: float = 20.0) -> list[str]:
    """All keys that a supply offers until it is over."""
    keys: list[str] = []
    end = time.monotonic() + seconds
    while not supply.over:
        assert time.monotonic() < end
        if task := supply.next():
            keys.append(task.key)
        else:
            time.sleep(0.005)
    return keys


def test_tasks_come_in_order_and_end(tmp_path: Path) -> None:
    """One driver alone gets all, in the worklist's order, and leaves no lease behind."""
    store = Store(str(tmp_path))
    with Supply(tasks(*range(50)), store, ahead=8) as supply:
        assert drained(supply) == [key_of(number) for number in range(50)]
    assert Store(str(tmp_path)).leased() == {}


def test_no_more_than_ahead_is_leased(tmp_path: Path) -> None:
    """A driver leases what it begins soon, not the whole set: others find work."""
    with Supply(tasks(*range(50)), Store(str(tmp_path)), ahead=8) as supply:
        time.sleep(0.3)
        assert len(Store(str(tmp_path)).leased()) == 8
        first = supply.next()
        assert first is not None
        supply.finished(first.key)


def test_what_another_driver_committed_is_passed_over(tmp_path: Path) -> None:
    """Rows that appeared since the worklist was opened are counted, not made."""
    store, other = Store(str(tmp_path)), Store(str(tmp_path))
    for number in (0, 3):
        other.commit(a_row(key_of(number), other))
    with Supply(tasks(*range(5)), store, ahead=2) as supply:
        assert drained(supply) == [key_of(number) for number in (1, 2, 4)]
        assert supply.elsewhere == 2


def test_what_another_driver_leases_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three leased tasks one is committed by the other, two are given back: the job isn't over before that."""
    monkeypatch.setattr(cluster.runtime.supply, "LOOK_AGAIN_SECONDS", 0.1)
    store, other = Store(str(tmp_path)), Store(str(tmp_path))
    assert len(other.take([key_of(number) for number in (0, 1, 2)], ())) == 3
    with Supply(tasks(*range(5)), store, ahead=8) as supply:
        deadline = time.monotonic() + 10
        began = []
        while len(began) < 2 and time.monotonic() < deadline:
            began += [task.key] if (task := supply.next()) else []
        assert began == [key_of(3), key_of(4)]
        assert not supply.over
        other.commit(a_row(key_of(1), other))
        other.release()
        assert sorted(drained(supply)) == sorted([key_of(0), key_of(2)])
        assert supply.elsewhere == 1


def test_a_closed_supply_offers_nothing_and_keeps_what_was_begun(tmp_path: Path) -> None:
    """When a job drains, what it hasn't begun is free for others at the next renewal; what it has begun is not."""
    with Supply(tasks(*range(8)), Store(str(tmp_path)), ahead=4) as supply:
        while (first := supply.next()) is None:
            time.sleep(0.01)
        supply.close()
        assert supply.next() is None
        assert supply.over
        assert supply._held == {first.key}


def test_trouble_in_the_thread_is_the_drivers(tmp_path: Path) -> None:
    """Storage that is lost, or a prompt set that changed, ends the job with its own error."""

    def broken() -> Iterator[Any]:
        yield from tasks(0)
        raise StorageError("the set is gone")

    with Supply(broken(), Store(str(tmp_path)), ahead=8) as supply, pytest.raises(StorageError, match="set is gone"):
        drained(supply)


def test_nothing_is_leased_before_the_tasks_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at a prompt set takes longer than a lease; the output that leases lie in isn't opened before its end."""
    monkeypatch.setattr(cluster.runtime.supply, "LEASE_SECONDS", 0.0)
    monkeypatch.setattr(cluster.runtime.supply, "IDLE_SECONDS", 0.01)
    store = Store(str(tmp_path / "out"))
    with Supply(None, store, ahead=8) as supply:
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            assert not supply.over
            assert supply.next() is None
        assert not (tmp_path / "out").exists()
        supply.begin(tasks(*range(5)))
        assert drained(supply) == [key_of(number) for number in range(5)]
