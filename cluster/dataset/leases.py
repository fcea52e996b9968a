"""Who works on what: one file per driver, renewed while it lives.

    OUT/leases/{owner}.json     host, pid and the keys that this driver works on; its age is what makes it living

A lease is a hint that saves double work, never a lock: two drivers may start one key, and the commit alone decides
whose row is seen. Ages go by the storage's clock, so that a driver whose own clock is wrong is a driver like any other.
"""

import json
import math
import os
import socket
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cluster.storage.protocol import Files
from numina.errors import OutputError

LEASE_SECONDS = 60.0  # without a renewal for so long, a lease counts no more

_CLOCK_SECONDS = 300.0  # after so long the storage's clock is read again


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What another holder's file says."""

    owner: str
    host: str
    pid: int
    since: str
    keys: tuple[str, ...]
    cleaning: bool
    age: float  # seconds since its last renewal, by the storage's clock
    running: bool | None  # whether its process runs; None where this machine can't know

    @property
    def living(self) -> bool:
        """Its holder can be taken to work on its keys."""
        return self.age < LEASE_SECONDS and self.running is not False

    @property
    def dead(self) -> bool:
        """Its holder will write no more: not so while its process runs, however long ago it renewed the lease."""
        return not self.living and not self.running

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}, since {self.since}, last seen {max(0.0, self.age):.0f} s ago"


class Leases:
    """The lease of one holder, and its view of the others'."""

    def __init__(self, files: Files, owner: str) -> None:
        self._files = files
        self._owner = owner
        self._clock = _StorageClock(files)
        self._since = datetime.now(UTC).isoformat(timespec="seconds")

    def lease(self, keys: Collection[str], *, cleaning: bool = False) -> None:
        """Say that this holder works on these keys, and no others, from now on. Again to change or to renew it."""
        process = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        process |= {"process_started": process_started(os.getpid()), "since": self._since}
        content = json.dumps({**process, "cleaning": cleaning, "keys": sorted(keys)}) + "\n"
        self._files.replace(_lease_name(self._owner), content.encode(), durable=False)

    def take(self, keys: Sequence[str], held: Collection[str]) -> list[str]:
        """Lease what others haven't of `keys`, beside the `held` ones; the keys that this holder may start, in order.

        Two that lease a key at once both see it, and the smaller owner token keeps it. What the other finished just
        before is leased by nobody: ask `is_committed` after this, not before.
        """
        taken = self.leased()
        free = [key for key in keys if key not in taken]
        self.lease([*held, *free])
        taken = self.leased() if free else {}
        mine = [key for key in free if self._owner < taken.get(key, "g")]  # "g" is above all tokens, which are hex
        if len(mine) < len(free):
            self.lease([*held, *mine])
        return mine

    def leased(self) -> dict[str, str]:
        """Key → owner token of every key that another living holder leases; of two, the smaller token."""
        by_token = sorted(self.living(), key=lambda lease: lease.owner, reverse=True)
        return {key: lease.owner for lease in by_token for key in lease.keys}

    def release(self) -> None:
        """Lease nothing any more."""
        self._files.remove(_lease_name(self._owner))

    def living(self) -> list[Lease]:
        """The leases of all others that can be taken to be at work."""
        leases = (self._read(name, oldest=LEASE_SECONDS) for name in self._others())
        return [lease for lease in leases if lease is not None and lease.living]

    def in_the_way(self) -> list[Lease]:
        """The leases of all others that aren't known to be dead."""
        leases = (self._read(name) for name in self._others())
        return [lease for lease in leases if lease is not None and not lease.dead]

    def dead(self) -> list[str]:
        """Names of the files of holders that will write no more, and of old ones that can't be read."""
        return [name for name in self._others() if self._is_dead(name)]

    def refuse(self, leases: Iterable[Lease], why: str) -> None:
        """Raises OutputError that says who holds these leases, when there are any."""
        shown = [f"  {lease}" for lease in leases]
        if shown:
            raise OutputError(
                f"output {self._files.root!r} is in use, and {why}:\n" + "\n".join(shown) + "\n"
                "wait until it ends, or stop it; "
                f"the lease of a process that died on another machine expires after {LEASE_SECONDS:.0f} s"
            )

    def _others(self) -> list[str]:
        names = [f"leases/{name}" for name in self._files.names("leases") if name.endswith(".json")]
        return [name for name in names if name != _lease_name(self._owner)]

    def _is_dead(self, name: str) -> bool:
        lease = self._read(name)
        if lease is not None:
            return lease.dead
        try:
            return self._clock.now() - self._files.stat(name).modified > LEASE_SECONDS
        except FileNotFoundError:
            return False

    def _read(self, name: str, *, oldest: float = math.inf) -> Lease | None:
        """None for a lease that is older, that isn't whole (a crash may leave one empty), or that is gone."""
        try:
            age = self._clock.now() - self._files.stat(name).modified
            if age >= oldest:
                return None
            content: dict[str, Any] = json.loads(self._files.read(name))
            return Lease(
                owner=name.removeprefix("leases/").removesuffix(".json"),
                host=str(content["host"]),
                pid=int(content["pid"]),
                since=str(content.get("since", "an unknown time")),
                keys=tuple(content["keys"]),
                cleaning=bool(content.get("cleaning")),
                age=age,
                running=_running(content),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


class _StorageClock:
    """The storage's clock, read now and then; in between this machine's monotonic one, which nobody sets."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._read: tuple[float, float] | None = None  # storage's time, monotonic time

    def now(self) -> float:
        if self._read is None or time.monotonic() - self._read[1] > _CLOCK_SECONDS:
            self._read = self._files.clock(), time.monotonic()
        return self._read[0] + time.monotonic() - self._read[1]


def _lease_name(owner: str) -> str:
    return f"leases/{owner}.json"


# --- whether a process runs ---


def _running(content: dict[str, Any]) -> bool | None:
    if content.get("machine") != _machine():
        return None
    pid = int(content["pid"])
    if pid <= 0:
        raise ValueError(f"{pid} names no process")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's: it runs
        pass
    started = process_started(pid)
    return started == content["process_started"] if started is not None else not Path("/proc/self/stat").exists()


def process_started(pid: int) -> int | None:
    """When the process was started, in ticks since boot; None when it ended, or where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # ended, and nobody asked for its exit status yet


@cache
def _machine() -> str:
    """Names the processes among which a pid means something: containers of one host name may not see each other's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
