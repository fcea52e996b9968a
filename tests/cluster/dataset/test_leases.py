"""What drivers tell each other about their work: hints that die with their holder, whatever anybody's clock says."""

import json
import multiprocessing
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from cluster.dataset.leases import LEASE_SECONDS, Leases
from cluster.dataset.store import Store
from numina.errors import OutputError
from tests.cluster.dataset.outputs import key_of

KEYS = [key_of(number) for number in range(6)]


def lease_file(root: Path, store: Store) -> Path:
    return root / f"leases/{store.owner}.json"


def age(path: Path, seconds: float) -> None:
    made = path.stat().st_mtime - seconds
    os.utime(path, (made, made))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_lease_is_seen_by_others_until_it_is_released(tmp_path: Path) -> None:
    """Others see whose key it is; a new lease takes the place of the old; one's own is not in one's way."""
    a, b = Store(str(tmp_path)), Store(str(tmp_path))
    assert b.leased() == {}
    a.lease(KEYS[:2])
    assert a.leased() == {}
    assert a.others() == []
    assert b.leased() == dict.fromkeys(KEYS[:2], a.owner)
    assert b.others() == [a.owner]
    a.lease(KEYS[1:3])
    assert b.leased() == dict.fromkeys(KEYS[1:3], a.owner)
    a.lease([])
    assert (b.leased(), b.others()) == ({}, [a.owner])
    a.release()
    a.release()
    assert b.others() == []
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_lease_that_is_not_renewed_ends(tmp_path: Path) -> None:
    """After LEASE_SECONDS it counts no more; renewing it makes it count again."""
    a, b = Store(str(tmp_path)), Store(str(tmp_path))
    a.lease(KEYS)
    age(lease_file(tmp_path, a), LEASE_SECONDS - 5)
    assert b.others() == [a.owner]
    age(lease_file(tmp_path, a), 10)
    assert (b.leased(), b.others()) == ({}, [])
    a.lease(KEYS)
    assert b.others() == [a.owner]


@pytest.mark.parametrize("days", [-1, 1])
def test_a_wrong_clock_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """A holder whose clock is a day off sees living leases as living and dead ones as dead, and is seen by others."""
    right, old = Store(str(tmp_path)), Store(str(tmp_path))
    right.lease(KEYS[:1])
    old.lease(KEYS[1:2])
    age(lease_file(tmp_path, old), LEASE_SECONDS + 10)
    true_time = time.time
    with monkeypatch.context() as skewed:
        skewed.setattr(time, "time", lambda: true_time() + 86400 * days)
        wrong = Store(str(tmp_path))
        assert wrong.leased() == {KEYS[0]: right.owner}
        assert wrong.take(KEYS[:3], []) == KEYS[1:3]
    assert right.leased() == dict.fromkeys(KEYS[1:3], wrong.owner)


def hold(root: str, ready: Any) -> None:
    Store(root).lease(KEYS)
    ready.set()
    time.sleep(60)


def test_a_killed_holders_lease_ends_at_once(tmp_path: Path) -> None:
    """On its own machine a dead process holds nothing back, also while nobody has asked for its exit status."""
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    holder = context.Process(target=hold, args=(str(tmp_path), ready))
    holder.start()
    assert ready.wait(60)
    store = Store(str(tmp_path))
    assert store.leased().keys() == set(KEYS)
    os.kill(holder.pid or 0, 9)
    deadline = time.monotonic() + 10
    while store.leased() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.leased() == {}
    holder.join()
    assert store.take(KEYS, []) == KEYS


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    """Pid and start time together name a process; a pid of another machine says nothing here."""
    a, b = Store(str(tmp_path)), Store(str(tmp_path))
    a.lease(KEYS)
    edit(lease_file(tmp_path, a), process_started=1)
    assert b.others() == []
    edit(lease_file(tmp_path, a), machine="another", pid=2**22 + 1)
    assert b.others() == [a.owner]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"keys": []}', '{"host": "h", "pid": "x", "keys": []}', "\x00" * 100]
)
def test_what_is_not_a_lease_is_passed_over(tmp_path: Path, content: str) -> None:
    """A crash of the machine may leave an empty file: it is nobody's lease."""
    store, other = Store(str(tmp_path)), Store(str(tmp_path))
    other.lease(KEYS[:1])
    (tmp_path / "leases/0000.json").write_text(content)
    (tmp_path / "leases/ab").mkdir()
    assert store.leased() == {KEYS[0]: other.owner}
    assert store.take(KEYS, []) == KEYS[1:]


def test_keys_are_taken_once(tmp_path: Path) -> None:
    """Who comes later gets what is free, in its own order, and keeps what it held."""
    a, b = Store(str(tmp_path)), Store(str(tmp_path))
    assert a.take(KEYS[:3], []) == KEYS[:3]
    assert b.take([KEYS[4], *KEYS[:4]], [KEYS[5]]) == [KEYS[4], KEYS[3]]
    assert a.leased() == dict.fromkeys(KEYS[3:], b.owner)
    assert a.take(KEYS, KEYS[:1]) == KEYS[:3]


class Interrupted(Leases):
    """Leases before whose first writing another holder writes the same."""

    other: Store | None = None

    def lease(self, keys: Collection[str], *, cleaning: bool = False) -> None:
        if self.other is not None:
            self.other.lease(keys)
            self.other = None
        super().lease(keys, cleaning=cleaning)


def test_of_two_at_once_the_smaller_token_keeps_the_key(tmp_path: Path) -> None:
    """Both wrote before either read: exactly one of them goes on, and the other's lease no longer has the key."""
    first, second = sorted((Store(str(tmp_path)) for _ in range(2)), key=lambda store: store.owner)
    for store, other, mine in ((first, second, KEYS), (second, first, [])):
        leases = Interrupted(store.files, store.owner)
        leases.other = other
        assert leases.take(KEYS, []) == mine
        assert set(other.leased()) == set(mine)
        store.release()
        other.release()


def test_a_run_does_not_start_amid_a_clean_up(tmp_path: Path) -> None:
    """It says who cleans up, and starts when that has ended."""
    store, cleaner = Store(str(tmp_path)), Store(str(tmp_path))
    cleaner.open_run({})
    cleaner.leases.lease((), cleaning=True)
    with pytest.raises(OutputError, match=f"clean-up works alone:\n.*process {os.getpid()}, since 20"):
        store.open_run({})
    cleaner.release()
    store.open_run({})
