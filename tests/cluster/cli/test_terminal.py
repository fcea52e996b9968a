"""What a job's progress looks like: live on a real terminal, a few lines where there is none, nothing beside JSON."""

import fcntl
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from cluster.cli.terminal import ProgressLines, by_state, duration, in_words
from cluster.observability.progress import JobProgress, main_state

DRIVE = """
import logging, sys, time
from cluster.observability import logs
from cluster.observability.progress import JobProgress, main_state
from cluster.cli.terminal import job_progress, tell

logs.set_up(sys.argv[1])
began = time.monotonic()
now = JobProgress(checked=120_000)
with job_progress() as report:
    report(now)
    now.total, now.generated, now.completed, now.began = 40, 12, 12, time.monotonic() - 1000
    for step in range(int(sys.argv[2])):
        now.done, now.failed = 12 + step, 1
        now.gangs = {f"gang-{n}": "identify + layout" if n else "loading" for n in range(int(sys.argv[3]))}
        report(now)
        time.sleep(0.02)
    logging.getLogger("cluster.runtime.fleet").warning("gang-1 is lost [red]")
    now.draining = True
    time.sleep(0.3)
    report(now)
tell(f"stopped after {time.monotonic() - began} s")
"""


def on_a_terminal(*arguments: str, stderr: int | None = None) -> str:
    """What the driven job writes to a real terminal of 100 columns, escape sequences and all."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-c", DRIVE, *arguments]
    process = subprocess.Popen(command, stdout=theirs, stderr=stderr or theirs, stdin=theirs, env=environment)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait(timeout=30) == 0, written.decode()
    return written.decode()


def plain(written: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)


def test_a_terminal_shows_a_live_picture() -> None:
    """Checked prompts first, then a bar with counts, pace and a line per gang; log lines go above it, as they are."""
    written = on_a_terminal("text", "30", "2")
    shown = plain(written)
    assert "checking prompts: 120 000" in shown
    assert re.search(r"videos ━+╺━+ \d\d/40 1 failed 43 videos per hour, \d\d min to go", shown)
    assert re.search(r"gang-0 +loading", shown)
    assert re.search(r"gang-1 +identify \+ layout", shown)
    assert re.search(r"^.*WARNING gang-1 is lost \[red\]\r$", shown, re.MULTILINE)
    assert "stopping: finishing clips in progress" in shown
    assert shown.rstrip().splitlines()[-1].startswith("stopped after")
    assert "\x1b[?25h" in written, "the cursor is back"


def test_a_live_picture_is_drawn_four_times_a_second_at_most() -> None:
    """60 reports within 1.5 s, where the machine is quick: rich takes milliseconds of a core for each picture."""
    shown = plain(on_a_terminal("text", "60", "2"))
    seconds = re.search(r"stopped after (\S+) s", shown)
    assert seconds
    assert shown.count("videos ━") <= min(4 * float(seconds[1]) + 3, 40)


def test_many_gangs_are_summed_up() -> None:
    """With 64 gangs, how many do what, in one line."""
    shown = plain(on_a_terminal("text", "2", "64"))
    assert "64 gangs: 63 identify, 1 loading" in shown
    assert "gang-12" not in shown


def test_a_log_file_beside_a_terminal_has_the_lines(tmp_path: os.PathLike[str]) -> None:
    """`2> log`: the picture stays on the terminal, lines go to the file."""
    path = os.path.join(tmp_path, "log")
    with open(path, "wb") as log:
        shown = plain(on_a_terminal("text", "2", "2", stderr=log.fileno()))
    with open(path) as log:
        assert "gang-1 is lost" in log.read()
    assert "lost" not in shown
    assert "13/40" in shown


def test_json_has_no_picture() -> None:
    """With log_format=json all that is written is objects, also on a terminal, the summary too."""
    lines = [json.loads(line) for line in on_a_terminal("json", "2", "2").splitlines()]
    assert lines[-1]["message"].startswith("stopped after")
    assert {"numina.progress", "cluster.runtime.fleet"} == {line["logger"] for line in lines}


def test_without_a_terminal_there_are_lines() -> None:
    """Through a pipe: first and last state on stderr, the summary on stdout, no escape sequence."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, "text", "20", "2"], capture_output=True, text=True, check=True, timeout=30
    )
    assert re.fullmatch(r"stopped after \S+ s\n", done.stdout)
    assert "\x1b" not in done.stderr
    said = [line.split(" ", 3)[3] for line in done.stderr.splitlines() if " INFO " in line]
    assert said[0] == "120,000 prompts checked"
    assert re.fullmatch(r"12 of 40 videos, 1 failed; 43 videos per hour, 3\d min to go; 1 loading, 1 identify", said[1])
    assert said[2].startswith("31 of 40 videos")
    assert said[2].endswith("stopping: finishing clips in progress")
    assert len(said) == 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A hand on the time."""
    now = [1000.0]
    monkeypatch.setattr("cluster.cli.terminal.time.monotonic", lambda: now[0])
    return now


def test_lines_are_few(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """One in ten seconds at most, and only where a video was done or failed; what gangs do alone is no line."""
    caplog.set_level(logging.INFO, "numina.progress")
    lines, now = ProgressLines(), JobProgress(total=10, began=1000.0)
    lines.show(now)
    for second in range(60):
        clock[0] += 1
        now.gangs = {"gang-0": f"state {second}"}
        now.done = second // 20
        lines.show(now)
    lines.end()
    assert [message.split(" videos")[0] for message in caplog.messages] == ["0 of 10", "1 of 10", "2 of 10"]


def test_words() -> None:
    """States without the layout that is computed elsewhere, times in their largest unit."""
    assert main_state("layout + denoise") == "denoise"
    assert main_state("layout") == "layout"
    assert by_state({"a": "guide", "b": "idle", "c": "guide + layout"}) == "2 guide, 1 idle"
    assert [duration(s) for s in (5, 119, 120, 7199, 7200, 172800)] == [
        "5 s",
        "119 s",
        "2 min",
        "120 min",
        "2.0 h",
        "2.0 days",
    ]
    assert in_words(JobProgress(total=3, done=1)) == "1 of 3 videos, 0 failed"
