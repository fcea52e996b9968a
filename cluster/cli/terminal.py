"""What a job's progress looks like: live on a terminal, lines of the log elsewhere; and bars of shorter work."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.observability.logs import are_json, redact
from cluster.observability.progress import JobProgress, main_state

if TYPE_CHECKING:
    from cluster.observability.status import Status

console = Console(emoji=False)

REFRESH_SECONDS = 0.25  # at least, between two pictures of a live display
LINE_SECONDS = 10.0  # at least, between two lines of a log
GANGS_SHOWN = 12  # with more of them, how many do what

log = logging.getLogger("numina.progress")

Report = Callable[[JobProgress], None]


@contextmanager
def job_progress() -> Iterator[Report]:
    """Shows how far a job is: a live display on a terminal, else lines of the log."""
    if console.is_terminal and not are_json():
        with _live() as show:
            yield show
    else:
        lines = ProgressLines()
        try:
            yield lines.show
        finally:
            lines.end()


def say(text: str = "") -> None:
    """Prints a line as it is, but for secrets: what prompts and paths hold in brackets isn't markup."""
    console.print(redact(text), soft_wrap=True, highlight=False, markup=False)


def tell(message: str) -> None:
    """A line of a job's summary: of the log, where that is JSON, so that all output is."""
    if are_json():
        log.info("%s", message)
    else:
        say(message)


# --- on a terminal ---


@contextmanager
def _live() -> Iterator[Report]:
    # Drawn by whoever reports, not by a thread of its own: that would read counts while the driver changes them.
    # A stderr that goes to a file stays there.
    live = Live(console=console, auto_refresh=False, redirect_stderr=sys.stderr.isatty())
    shown_at, latest = 0.0, JobProgress()

    def show(now: JobProgress) -> None:
        nonlocal shown_at, latest
        latest = now
        if time.monotonic() - shown_at >= REFRESH_SECONDS:
            live.update(picture(now), refresh=True)
            shown_at = time.monotonic()

    with live:
        try:
            yield show
        finally:
            live.update(_bar_line(latest) if latest.total else Text(""), refresh=True)


def picture(now: JobProgress) -> RenderableType:
    """A job as a few lines: checked prompts at first, then a bar, what the gangs do, and whether it stops."""
    lines: list[RenderableType] = []
    if now.total:
        lines.append(_bar_line(now))
    elif now.checked:
        lines.append(Text(f"checking prompts: {now.checked:,}".replace(",", " ")))
    if len(now.gangs) > GANGS_SHOWN:
        lines.append(Text(f"{len(now.gangs)} gangs: {by_state(now.gangs)}", style="dim"))
    elif now.gangs:
        table = Table.grid(padding=(0, 2))
        for name, state in now.gangs.items():
            table.add_row(Text(f"  {name}", style="dim"), Text(state))
        lines.append(table)
    if now.draining:
        lines.append(Text("stopping: finishing clips in progress", style="yellow"))
    return Group(*lines)


def _bar_line(now: JobProgress) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=False)
    bar = ProgressBar(total=now.total, completed=min(now.total, now.done + now.failed), width=40)
    failed = Text(f"{now.failed} failed", style="red" if now.failed else "dim")
    grid.add_row(Text("videos"), bar, Text(f"{now.done}/{now.total}"), failed, Text(pace(now), style="dim"))
    return grid


# --- in a log ---


class ProgressLines:
    """Lines of the log: the first and the last state, and what changed between them, one in LINE_SECONDS at most."""

    def __init__(self) -> None:
        self._said_at = float("-inf")
        self._said: tuple[int, ...] = ()
        self._latest: JobProgress | None = None

    def show(self, now: JobProgress) -> None:
        """Says how far it is, if that is worth a line. What gangs do isn't, without a video done or failed."""
        self._latest = now
        begins = bool(now.total) and (not self._said or self._said[0] == 0)
        stops = now.draining and bool(self._said) and not self._said[-1]
        due = time.monotonic() - self._said_at >= LINE_SECONDS
        if begins or stops or (due and _counts(now) != self._said):
            self._say(now)

    def end(self) -> None:
        """Says the last state, if that wasn't said."""
        if self._latest is not None and _counts(self._latest) != self._said:
            self._say(self._latest)

    def _say(self, now: JobProgress) -> None:
        self._said_at, self._said = time.monotonic(), _counts(now)
        log.info("%s", in_words(now))


def _counts(now: JobProgress) -> tuple[int, ...]:
    return now.total, now.done, now.failed, now.checked if not now.total else 0, now.draining


def in_words(now: JobProgress) -> str:
    """A job in one line."""
    if not now.total:
        return "; ".join(filter(None, [f"{amount(now.checked, 'prompts')} checked", by_state(now.gangs)]))
    parts = [f"{now.done} of {now.total} videos, {now.failed} failed", pace(now), by_state(now.gangs)]
    return "; ".join(filter(None, parts)) + ("; stopping: finishing clips in progress" if now.draining else "")


# --- both ---


def by_state(gangs: Mapping[str, str]) -> str:
    """How many gangs do what, the commonest first: `61 denoise, 2 loading`."""
    return ", ".join(f"{count} {state}" for state, count in Counter(map(main_state, gangs.values())).most_common())


def amount(number: int, things: str) -> str:
    """`1 clip`, `1,000 clips`: a number of what is named in the plural, by an s at its end."""
    return f"{number:,} {things.removesuffix('s') if number == 1 else things}"


def duration(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"


def rate(per_hour: float) -> str:
    """Videos an hour, in words."""
    return f"{per_hour:.{0 if per_hour >= 10 else 1}f} videos per hour"


def pace(now: "JobProgress | Status") -> str:
    """Rate and remaining time, once there is a rate."""
    if not now.rate_per_hour:
        return ""
    eta = f", {duration(now.eta_seconds)} to go" if now.eta_seconds else ""
    return f"{rate(now.rate_per_hour)}{eta}"


# --- shorter work ---


def _progress_bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a report of done and total; nothing where there is no terminal."""
    with _progress_bar() as shown:
        task = shown.add_task(description, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def step_progress() -> Iterator[Callable[[str, int, int], None]]:
    """One bar per stage of a clip."""
    with _progress_bar() as shown:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done)

        yield show
