"""Checks are run side by side; one that raises, crashes or hangs is a line like the others."""

import faulthandler
import os
import signal
import time
from pathlib import Path

import psutil

from cluster.doctor.check import Check, Finding, State, examine, ok, warning
from cluster.doctor.checks import CHECKS
from cluster.doctor.needs import Needs
from numina.errors import MachineError, OutputError

HERE = __name__
NEEDS = Needs(output="/somewhere")


def works(needs: Needs) -> Finding:
    print("noise that nobody asked for")
    return ok(f"output {needs.output}")


def is_slow_work(needs: Needs) -> Finding:
    time.sleep(0.3)
    return warning("s3://key:secret@bucket is far", "move s3://key:secret@bucket")


def lacks(needs: Needs) -> Finding:
    raise MachineError("the driver is old", "update it")


def refuses(needs: Needs) -> Finding:
    raise OutputError("output 'x' let two writers create one file: no promise; use a POSIX folder")


def has_a_bug(needs: Needs) -> Finding:
    raise KeyError("never\nmind")


def crashes(needs: Needs) -> Finding:
    faulthandler.disable()  # pytest's
    os.kill(os.getpid(), signal.SIGSEGV)
    return ok("never")


def ends(needs: Needs) -> Finding:
    os._exit(7)


def hangs(needs: Needs) -> Finding:
    Path(str(needs.prompts)).write_text(str(os.getpid()))
    time.sleep(60)
    return ok("never")


def test_every_end_of_a_check_is_a_line(tmp_path: Path) -> None:
    """In the order of the list, with a remedy wherever something is wrong, without secrets; nothing is left running."""
    names = [works, is_slow_work, lacks, refuses, has_a_bug, crashes, ends, hangs]
    checks = {own.__name__: Check(place=f"{HERE}:{own.__name__}", seconds=2.0) for own in names}
    began = time.monotonic()
    results = examine(checks, Needs(output="/somewhere", prompts=str(tmp_path / "pid")))
    assert time.monotonic() - began < 8
    assert [result.name for result in results] == list(checks)
    found = {result.name: (result.state, result.found, result.remedy) for result in results}
    assert found["works"] == (State.OK, "output /somewhere", "")
    assert found["is_slow_work"] == (State.WARNING, "s3://***@bucket is far", "move s3://***@bucket")
    assert found["lacks"] == (State.FAILS, "the driver is old", "update it")
    assert found["refuses"][1:] == (
        "output 'x' let two writers create one file: no promise",
        "use a POSIX folder",
    )
    assert found["has_a_bug"][1] == "the check itself failed (KeyError: 'never\\nmind')"
    assert found["crashes"][:2] == (State.FAILS, "the check's process crashed (SIGSEGV)")
    assert found["ends"][:2] == (State.FAILS, "the check's process crashed (exit status 7)")
    assert found["hangs"][:2] == (State.FAILS, "the check gave no answer within 2 s")
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert all(remedy for state, _, remedy in found.values() if state is not State.OK)


def test_a_check_that_nobody_needs_is_left_out() -> None:
    """By what the job needs."""
    checks = {"works": Check(place=f"{HERE}:works", when=lambda needs: needs.needs_gpu)}
    assert examine(checks, NEEDS) == []
    assert len(examine(checks, Needs(device="cuda"))) == 1


def test_a_hang_is_told_within_half_a_minute() -> None:
    """Checks run side by side."""
    assert max(check.seconds for check in CHECKS.values()) < 30
