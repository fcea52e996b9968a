"""A process killed at any step of a commit, a compaction or a clean-up loses nothing and leaves nothing half in sight.

The steps are found by recording one run, so they can't go stale. A kill after a step is a kill before the next one.
"""

import hashlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.dataset.garbage import collect_garbage
from cluster.dataset.segments import commit_name
from cluster.dataset.store import Store
from cluster.storage.posix import PosixFiles
from tests.cluster.dataset.outputs import CATS, key_of
from tests.cluster.dataset.test_garbage import littered, needed

LEVELS: dict[str, list[tuple[Any, str]]] = {
    "system": [
        (os, name) for name in ("open", "write", "fsync", "close", "link", "unlink", "mkdir", "replace", "rename")
    ],
    "files": [(PosixFiles, name) for name in ("create", "replace", "remove", "remove_folder")],
}
Step = Callable[[str, Callable[..., Any], tuple[Any, ...]], None]
CONFIG = {"steps": 50}
KEY = key_of(1)


def start_run(root: Path) -> None:
    Store(str(root)).open_run(CONFIG, asked=1)


def make_clip(root: Path, video: bytes = b"first" * 10_000, frames: int = 3) -> None:
    store = Store(str(root))
    file_name, sha256 = store.put_video(KEY, video)
    layout_file = store.put_layout(KEY, {"labels": np.zeros((frames, 4, 8, 8), np.int16)})
    row = {"key": KEY, "file_name": file_name, "video_sha256": sha256, "layout_file": layout_file}
    store.commit({**row, "prompt": "three cats", "targets": CATS, "strategy": "numina", "seed": 7})


def hold_lease(root: Path) -> None:
    store = Store(str(root))
    store.take([KEY], [])
    store.release()


def compact(root: Path) -> None:
    Store(str(root)).compact(at_least=1, most=1)
    Store(str(root)).compact_evaluations("exact", at_least=1)


def clean_up(root: Path) -> None:
    collect_garbage(Store(str(root)))


# --- the killing ---


def watch(level: str, step: Step) -> None:
    """Have `step` called before each call of the level's functions."""
    for owner, name in LEVELS[level]:
        setattr(owner, name, watched(name, getattr(owner, name), step))


def watched(name: str, real: Callable[..., Any], step: Step) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        step(name, real, arguments)
        return real(*arguments, **options)

    return call


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked child that does this work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_everywhere(job: Callable[[Path], None], level: str, base: Path, answer: Any) -> None:
    """Run the job on copies of `base`: once to record its steps, then killed before each, amid each write, after all.

    Runs in a process of its own without threads, which may fork. Answers with the recorded steps and the copies.
    """
    record = base.parent / "steps"

    def recorded() -> None:
        names = list[str]()
        watch(level, lambda name, real, arguments: names.append(name))
        job(base.parent / "whole")
        record.write_text("\n".join(names))

    shutil.copytree(base, base.parent / "whole")
    assert in_child(recorded) == 0
    steps = record.read_text().split()
    died = []
    moments = [(number, False) for number in range(len(steps) + 1)]
    moments += [(number, True) for number, name in enumerate(steps) if name == "write"]
    for number, half in moments:
        root = base.parent / f"{number:03}{'-half' if half else ''}"
        shutil.copytree(base, root)

        def killed(number: int = number, half: bool = half, root: Path = root) -> None:
            done = 0

            def step(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
                nonlocal done
                if done == number:
                    if half:
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1

            watch(level, step)
            job(root)
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(killed) == -signal.SIGKILL
        died.append(root)
    answer.put((steps, died))


def killed_copies(job: Callable[[Path], None], level: str, base: Path) -> tuple[list[str], list[Path]]:
    context = multiprocessing.get_context("forkserver")
    answer = context.Queue()
    process = context.Process(target=die_everywhere, args=(job, level, base, answer))
    process.start()
    steps, died = answer.get(timeout=120)
    process.join()
    print(f"\n{job.__name__}: {len(steps)} steps, {len(died)} kills")
    return steps, died


def check_nothing_torn(root: Path) -> None:
    """Every visible file is whole, and what a visible row names is there."""
    for path in root.rglob("[!.]*.*"):
        if path.suffix in (".mp4", ".npz"):
            assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == path.stem.split("-")[1]
        elif path.suffix == ".parquet":
            for row in pq.read_table(path).to_pylist():
                if "file_name" in row:
                    assert (root / row["file_name"]).is_file()
                    assert row["layout_file"] is None or Store(str(root)).read(row["layout_file"])


# --- the promises ---


def test_a_commit_recovers_from_a_kill_at_every_step(tmp_path: Path) -> None:
    """Before and after every file operation of video, layout and row, and amid each write: what is in sight is whole;
    the same clip made again is one row with one whole file; a clean-up leaves these files alone."""
    base = tmp_path / "base"
    start_run(base)
    steps, died = killed_copies(make_clip, "system", base)
    assert {"open", "write", "fsync", "close", "link", "unlink", "mkdir"} <= set(steps)
    assert steps.count("link") == steps.count("write") == 3
    assert len(died) == len(steps) + 1 + 3
    for root in died:
        check_nothing_torn(root)
        seen = Store(str(root)).rows().to_pylist()
        start_run(root)
        make_clip(root, video=b"second", frames=4)  # another driver's clip is never byte for byte the same
        (row,) = Store(str(root)).rows().to_pylist()
        assert seen in ([], [row])
        assert hashlib.sha256((root / row["file_name"]).read_bytes()).hexdigest() == row["video_sha256"]
        assert collect_garbage(Store(str(root))).files["videos"] <= 1
        assert Store(str(root)).rows().to_pylist() == [row]
        left = {path.relative_to(root).parts[0] for path in root.rglob("*") if path.is_file()}
        assert left == {"run.json", "runs", "videos", "layouts", "segments"}
        assert sum(path.is_file() for folder in ("videos", "layouts") for path in (root / folder).rglob("*")) == 2


@pytest.mark.parametrize("job", [start_run, hold_lease])
def test_a_start_and_a_lease_recover_from_a_kill_at_every_step(tmp_path: Path, job: Callable[[Path], None]) -> None:
    """The next run starts and its work is leased as if nothing had been there."""
    base = tmp_path / "base"
    base.mkdir()
    steps, died = killed_copies(job, "system", base)
    assert "replace" in steps or "link" in steps
    for root in died:
        store = Store(str(root))
        if job is start_run:
            store.open_run(CONFIG, asked=1)
            assert store.run_config() == CONFIG
        assert store.take([KEY], []) == [KEY]


@pytest.mark.parametrize("job", [compact, clean_up])
def test_the_offline_work_recovers_from_a_kill_at_every_step(tmp_path: Path, job: Callable[[Path], None]) -> None:
    """After a kill before and after each change of a file all rows are there with their files, verdicts and real
    failures, all keys and tasks are known; and a second run ends the work."""
    base = tmp_path / "base"
    store = littered(base)
    for number in range(7):  # an earlier clean-up removed what the segments held: those rows are in segments alone
        (base / commit_name(key_of(number))).unlink()
    for number in range(7):
        (base / f"evaluations/exact/{key_of(number)}.parquet").unlink()
    layouts = sorted(store.rows()["layout_file"].to_pylist())
    store.layouts.gather(layouts[:4])
    store.layouts.gather(layouts[3:9])
    for name in layouts[:8]:
        (base / name).unlink()
    before, index = needed(store), store.committed_index()
    steps, died = killed_copies(job, "files", base)
    assert "create" in steps
    assert ("remove" in steps) == (job is clean_up)
    for root in died:
        store = Store(str(root))
        assert needed(store) == before
        assert store.committed_index() == index
        check_nothing_torn(root)
        job(root)
        assert needed(store) == before
        assert store.committed_index() == index
        if job is clean_up:
            assert sum(collect_garbage(store).files.values()) == 0
        else:
            assert store.row_files.loose() == []
