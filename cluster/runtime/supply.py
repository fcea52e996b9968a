"""What a driver may begin next, found ahead of it in a thread of its own, so that no gang waits for storage.

worklist ─► not committed meanwhile ─► leased for this driver ─► ready ─► begun ─► finished
                                                └─► another driver's: looked at again after the walk
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Self

from cluster.dataset.leases import LEASE_SECONDS

if TYPE_CHECKING:
    from cluster.dataset.store import Store
    from cluster.job.tasks import ClipTask

LOOK_AGAIN_SECONDS = 5.0  # between two looks at what another driver leases
LOOKS_AT_ONCE = 16  # existence checks under way: each is a round trip on an object store
IDLE_SECONDS = 0.5


class Supply:
    """The tasks of a worklist that this driver may begin, `ahead` of them or a quarter fewer looked up beforehand.
    `begin` gives them where they aren't known yet.

    Use as a context: the thread ends, and the leases are released, at its end.
    """

    def __init__(self, tasks: Iterator[ClipTask] | None, store: Store, *, ahead: int) -> None:
        self.elsewhere = 0  # tasks of the walk that another driver committed
        self._tasks = tasks
        self._store = store
        self.ahead = ahead  # may change
        self._ready: deque[ClipTask] = deque()
        self._met: deque[ClipTask] = deque()  # leased by another driver when they were looked at
        self._held: set[str] = set()  # keys ready or begun: what this driver leases
        self._walked = self._looking = self._closed = self._ended = False
        self._error: BaseException | None = None
        self._leased_at = self._looked_at = self._asked_at = time.monotonic()
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supply", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._ended = True
        self._wanted.set()
        self._thread.join()
        self._store.release()

    def begin(self, tasks: Iterator[ClipTask]) -> None:
        """The tasks are known."""
        self._tasks = tasks
        self._wanted.set()

    @property
    def over(self) -> bool:
        """Whether nothing is ready and nothing will be. Raises what the walk or the storage raised."""
        self._asked_at = time.monotonic()
        with self._lock:
            if self._error is not None:
                raise self._error
            return not self._ready and (self._closed or (self._walked and not self._met and not self._looking))

    def next(self) -> ClipTask | None:
        """The next task, or None while none is ready."""
        with self._lock:
            task = self._ready.popleft() if self._ready else None
        self._wanted.set()
        return task

    def finished(self, key: str) -> None:
        """The task is committed or given up: nobody needs to be kept off it."""
        with self._lock:
            self._held.discard(key)

    def close(self) -> None:
        """Offers nothing more; what was begun stays leased until the context ends."""
        with self._lock:
            self._closed = True
            self._held -= {task.key for task in self._ready}
            self._ready.clear()

    # --- the thread ---

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(LOOKS_AT_ONCE) as looks:
                while not self._ended:
                    if chunk := self._chunk():
                        self._offer(chunk, looks)
                        continue
                    self._renew()
                    self._wanted.wait(IDLE_SECONDS)
                    self._wanted.clear()
        except BaseException as error:  # raised again where the driver asks whether this is over
            with self._lock:
                self._error = error

    def _chunk(self) -> list[ClipTask]:
        """The next tasks to look at: of the walk, then those that another driver leased a while ago."""
        room = self.ahead - len(self._ready)
        if self._closed or self._tasks is None or room < max(1, self.ahead // 4):
            return []
        self._looking = True
        if not self._walked:
            chunk = list(islice(self._tasks, room))
            self._walked = not chunk
            self._looking = bool(chunk)
            return chunk
        if not self._met or time.monotonic() - self._looked_at < LOOK_AGAIN_SECONDS:
            self._looking = False
            return []
        self._looked_at = time.monotonic()
        return [self._met.popleft() for _ in range(min(room, len(self._met)))]

    def _offer(self, chunk: list[ClipTask], looks: ThreadPoolExecutor) -> None:
        """Leases what another driver doesn't, and only then looks what is committed: the other may have ended since."""
        mine = set(self._store.take([task.key for task in chunk], set(self._held)))
        self._leased_at = time.monotonic()
        leased = [task for task in chunk if task.key in mine]
        committed = looks.map(self._store.is_committed, [task.key for task in leased])
        wanted = [
            replace(task, there=True) if there else task
            for task, there in zip(leased, committed, strict=True)
            if not there or task.verified
        ]
        with self._lock:
            self._looking = False
            self.elsewhere += len(leased) - len(wanted)
            if self._closed:
                return
            self._ready.extend(wanted)
            self._held |= {task.key for task in wanted}
            self._met.extend(task for task in chunk if task.key not in mine)

    def _renew(self) -> None:
        """Keeps the leases fresh, unless the driver itself hangs; none before it knows its tasks: the output isn't
        opened yet."""
        if self._tasks is None:
            return
        now = time.monotonic()
        if now - self._leased_at > LEASE_SECONDS / 3 and now - self._asked_at < LEASE_SECONDS / 2:
            with self._lock:
                held = set(self._held)
            self._store.lease(held)
            self._leased_at = now
