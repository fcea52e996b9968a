"""Who waits for which clip: one that several tasks ask for is made once, and verified samples go from attempt to
attempt until a judge accepts one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.job.acceptance import Chain, Ruling

if TYPE_CHECKING:
    from cluster.job.names import TaskNames
    from cluster.job.tasks import ClipTask


class Rounds:
    """The clips that a driver has under way. The supply knows a verified sample by its first attempt's key alone."""

    def __init__(self, names: TaskNames) -> None:
        self._names = names
        self._waiting: dict[str, list[ClipTask]] = {}  # key under way → the tasks that ask for it
        self._made: set[str] = set()  # keys of later attempts that this driver committed
        self._first: dict[str, str] = {}  # key of a later attempt → the first one's

    def enter(self, task: ClipTask) -> ClipTask | None:
        """The task if its clip is to be made or, with `there`, is made; None where it is under way for another."""
        if task.there:
            return task
        if task.key in self._made:
            return replace(task, there=True)
        waiting = self._waiting.setdefault(task.key, [])
        waiting.append(task)
        return task if len(waiting) == 1 else None

    def committed(self, key: str) -> list[ClipTask]:
        """All tasks that waited for a clip, which is there now."""
        waited = self._waiting.pop(key, [])
        if any(task.attempt for task in waited):
            self._made.add(key)
        return [replace(task, there=True) for task in waited]

    def given_up(self, task: ClipTask) -> list[ClipTask]:
        """All tasks that waited for a clip, which can't be had."""
        return self._waiting.pop(task.key, [task])

    def chain(self, task: ClipTask) -> Chain:
        """What a judge is asked about a verified task."""
        return Chain(tuple(attempt.key for attempt in self._names.attempts(task)), task.attempt)

    def next_attempt(self, task: ClipTask, ruling: Ruling) -> ClipTask | None:
        """The attempt that follows a ruling; None where the sample is settled."""
        if ruling.decision.settled:
            return None
        following = self._names.attempts(task)[ruling.attempt + 1]
        self._first[following.key] = self._first.pop(task.key, task.key) if task.attempt else task.key
        return following

    def supplied(self, task: ClipTask) -> str:
        """The key by which the supply knows a task that is over."""
        return self._first.pop(task.key, task.key) if task.verified else task.key
