"""Stopping without loss: a signal asks a job to finish what is under way and begin nothing new."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # a scheduler's, a terminal's, SLURM's before its time limit


class Drain:
    """Listens for SIGNALS while it is entered. The first one asks to finish within `grace` seconds, a second one to
    stop at once. Outside the main thread, where Python delivers no signals, it never asks."""

    def __init__(self, grace: float):
        self.grace = grace
        self._asked_at: float | None = None
        self._at_once = False
        self.signal = ""  # the name of the last one
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals, also from a library that took them since: Ray does, when it is initialised."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            handler = signal.signal(number, self._hear)
            self._before.setdefault(number, handler)

    @property
    def asked(self) -> bool:
        """Whether to begin nothing new."""
        return self._asked_at is not None

    @property
    def over(self) -> bool:
        """Whether to leave what is still under way."""
        return self._asked_at is not None and (self._at_once or time.monotonic() - self._asked_at > self.grace)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Only notes it: a handler may have interrupted any line, one of logging's own too."""
        self._at_once = self.asked
        self.signal = signal.Signals(number).name
        self._asked_at = self._asked_at or time.monotonic()
