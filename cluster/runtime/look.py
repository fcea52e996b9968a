"""The look at a job's prompt set, in a thread of its own: gangs start meanwhile, once there is something to make.

rows ─► checked ─► one is left: gangs may start ─► … ─► all are checked: clips may be made, or what is wrong
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from cluster.job.worklist import Worklist

SHORT_SECONDS = 0.5  # a look that ends sooner after the first row that is left is waited for


class Looking(Protocol):
    """What finds a job's worklist; see `worklist.open_worklist`."""

    def __call__(
        self, *, report: Callable[[int], None], found: Callable[[], None], stopped: Callable[[], bool]
    ) -> Worklist | None: ...


class Look:
    """Use as a context: it ends with it. `stopped` says whether to end it earlier."""

    def __init__(self, looking: Looking, stopped: Callable[[], bool]) -> None:
        self.checked = 0  # rows
        self._looking = looking
        self._stopped = stopped
        self._closed = False
        self._found, self._over = threading.Event(), threading.Event()
        self._worklist: Worklist | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="look", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        self._thread.join()

    @property
    def over(self) -> bool:
        """Whether all rows were looked at."""
        return self._over.is_set()

    def finds_work(self, seconds: float) -> bool:
        """Waits so long for a row whose video is to be made, and for the end of a look that ends soon."""
        return self._found.wait(seconds) and (self._over.wait(SHORT_SECONDS) or True)

    def worklist(self) -> Worklist | None:
        """What was found; None while it isn't over, or where it was stopped. Raises what the look raised."""
        if self._error is not None:
            raise self._error
        return self._worklist

    def _run(self) -> None:
        try:
            self._worklist = self._looking(
                report=self._report, found=self._found.set, stopped=lambda: self._closed or self._stopped()
            )
        except BaseException as error:  # raised again where the worklist is asked for
            self._error = error
        finally:
            self._over.set()
            self._found.set()

    def _report(self, rows: int) -> None:
        self.checked = rows
