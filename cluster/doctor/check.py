"""A check, what it finds, and how checks are run: side by side, each in a process that may crash or hang."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from multiprocessing.connection import Connection, wait
from pkgutil import resolve_name
from typing import Any

from cluster.doctor.needs import Needs
from cluster.observability.logs import redact
from numina.errors import MachineError, NuminaError


class State(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARNING = "warning"  # it works, slowly or not for every job
    FAILS = "fails"  # a run will fail by it


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence on what is here, and what to do where that isn't enough."""

    state: State
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    return Finding(state=State.OK, found=found)


def warning(found: str, remedy: str) -> Finding:
    return Finding(state=State.WARNING, found=found, remedy=remedy)


def fails(found: str, remedy: str) -> Finding:
    return Finding(state=State.FAILS, found=found, remedy=remedy)


def trouble(error: NuminaError, state: State = State.FAILS) -> Finding:
    """What an error of the run itself says: problem; remedy."""
    if isinstance(error, MachineError):
        return Finding(state=state, found=error.problem, remedy=error.remedy)
    problem, _, remedy = str(error).rpartition("; ")
    return Finding(state=state, found=problem or remedy, remedy=remedy if problem else "")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table: `place`, MODULE:FUNCTION, gets what the job needs and gives a Finding, or raises a
    NuminaError, which fails."""

    place: str
    when: Callable[[Needs], bool] = lambda needs: True  # whether a job needs it
    seconds: float = 10.0  # that it may take
    late: State = State.FAILS  # what it means that it takes longer
    everywhere: bool = True  # on every node of a cluster; else where the driver runs


@dataclass(frozen=True, kw_only=True)
class Result:
    """A check's line."""

    name: str
    state: State
    found: str
    remedy: str
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(checks: dict[str, Check], needs: Needs) -> list[Result]:
    """Runs the checks that a job needs, all at once, in processes forked from this one; in their order.

    A check that raises, crashes or takes longer than it may is a line like the others.
    """
    return Examination(checks, needs).results()


class Examination:
    """Checks at work. This process may do other things, such as imports, before it asks for their results."""

    def __init__(self, checks: dict[str, Check], needs: Needs) -> None:
        context = multiprocessing.get_context("fork")
        self._asked = {name: check for name, check in checks.items() if check.when(needs)}
        self._running: dict[Connection, tuple[str, Any, float]] = {}
        sys.stdout.flush(), sys.stderr.flush()  # or a child prints again what waits in the buffers
        for name, check in self._asked.items():
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(check, needs, sender), daemon=False)
            process.start()
            sender.close()
            self._running[receiver] = (name, process, time.monotonic())

    def results(self) -> list[Result]:
        """In the checks' order, once all have answered or are late."""
        found: dict[str, Result] = {}
        asked, running = self._asked, self._running
        while running:
            now = time.monotonic()
            left = min(asked[name].seconds - (now - began) for name, _, began in running.values())
            ready = wait([*running], timeout=max(0.0, left))
            late = [receiver for receiver, (name, _, began) in running.items() if _over(asked[name], began)]
            for receiver in [own for own in running if own in ready] or late:
                name, process, began = running.pop(receiver)
                finding = _received(receiver, process, asked[name])
                took = time.monotonic() - began
                found[name] = Result(
                    name=name,
                    state=finding.state,
                    found=redact(finding.found),
                    remedy=redact(finding.remedy),
                    seconds=round(took, 2),
                )
        return [found[name] for name in asked]


def _over(check: Check, began: float) -> bool:
    return time.monotonic() - began >= check.seconds


def _received(receiver: Connection, process: Any, check: Check) -> Finding:
    """What a check's process sent; or that it crashed, or hangs. Afterwards it is gone."""
    try:
        finding: Finding | None = receiver.recv() if receiver.poll() else None
        hangs = finding is None
    except EOFError:
        finding, hangs = None, False
    if hangs:
        process.terminate()  # so that it may clean up
    process.join(timeout=1.0 if hangs or finding is None else 5.0)
    if process.exitcode is None:
        process.kill()
        process.join()
    if finding is not None:
        return finding
    if hangs:
        said = f"the check gave no answer within {check.seconds:.0f} s"
        return Finding(
            state=check.late, found=said, remedy="see whether this machine is busy, or what the check needs hangs"
        )
    code = process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return fails(f"the check's process crashed ({how})", "a library of it was built for another machine: install anew")


def _answer(check: Check, needs: Needs, sender: Connection) -> None:
    """The check's process. What libraries print is dropped: the table alone is shown."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    try:
        finding = resolve_name(check.place)(needs)
    except NuminaError as error:
        finding = trouble(error)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        finding = fails(f"the check itself failed ({said})", "tell the authors; the job may still run")
    sender.send(finding)
    sender.close()
