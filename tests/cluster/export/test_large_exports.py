"""Exports of many clips: rows are read some at a time and shards filled by several processes, and nothing else differs.

What "many" is is lowered, so that a few clips are many.
"""

import multiprocessing
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.dataset.store import Store
from cluster.export.config import ExportConfig
from cluster.export.job import export
from cluster.job.strategy import Strategy
from tests.cluster.export.exports import an_output
from tests.cluster.export.shards import check_shards, manifest
from tests.cluster.export.test_shards import VERIFIED, Output, grown

FORMS = pytest.mark.parametrize("form", ["webdataset", "parquet"])


def read_in_parts(patched: pytest.MonkeyPatch) -> None:
    """From 2 rows on they are many; 4 are decided about at a time, and 3 are the most in memory."""
    patched.setattr("cluster.export.arrivals.SINGLY", 1)
    patched.setattr("cluster.export.whole_rows.SINGLY", 1)
    patched.setattr("cluster.export.arrivals.GROUP", 4)
    patched.setattr("cluster.export.whole_rows.WINDOW", 3)


def filled_at_once(patched: pytest.MonkeyPatch) -> None:
    """Two processes, whatever the machine has."""
    patched.setattr("cluster.export.filling.WORTH", 2)
    patched.setattr("os.sched_getaffinity", lambda process: {0, 1})


@FORMS
@pytest.mark.parametrize("only", ["all", "accepted"])
@pytest.mark.parametrize("gathered", [0, 7, 12])
def test_rows_read_in_parts_are_the_same(
    gathered: int, only: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From segments, from single files and from both: the same clips, each once, with the same columns."""
    store = an_output(tmp_path / "out")
    keys = sorted(store.committed())[:gathered]
    for some in (keys[::2], keys[1::2]):
        store.compact(some)
        store.compact_evaluations("counter", some)
    grown(store, tmp_path / "few", to=form, only=only, shard_clips=2)
    read_in_parts(monkeypatch)
    grown(store, tmp_path / "many", to=form, only=only, shard_clips=2)
    few, many = (check_shards(tmp_path / name, store) for name in ("few", "many"))
    assert len(few) == (12 if only == "all" else 8)
    assert many == few
    assert [shard["clips"] for shard in manifest(tmp_path / "many")] == [2] * (len(few) // 2)


def test_samples_are_decided_about_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sample whose attempts are read in different parts one clip is exported, the accepted one."""
    output = Output(tmp_path / "out", 6, VERIFIED)
    last = list[str]()
    for attempt in range(3):
        last = [output.make(sample, attempt, attempt == 2) for sample in range(6)]
    read_in_parts(monkeypatch)
    grown(output.store, tmp_path / "x", only="all", shard_clips=4)
    assert sorted(check_shards(tmp_path / "x", output.store)) == sorted(last)


@FORMS
def test_shards_of_several_processes_are_the_same(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte, and in the same order. A lost video leaves no gap there either, and nothing lies aside."""
    store = an_output(tmp_path / "out", samples=3)
    names = store.rows()["file_name"].to_pylist()
    (tmp_path / "out" / names[5]).unlink()
    grown(store, tmp_path / "one", to=form, shard_clips=3)
    filled_at_once(monkeypatch)
    result = grown(store, tmp_path / "several", to=form, shard_clips=3)
    assert (result.clips, result.lost) == (17, {names[5]: "missing"})
    assert manifest(tmp_path / "several") == manifest(tmp_path / "one")
    assert len(check_shards(tmp_path / "several", store)) == 17
    assert not list((tmp_path / "several").glob(".numina-*"))


def export_by_several(root: str, folder: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        filled_at_once(patched)
        export(Store.reader(root), folder, ExportConfig(to="webdataset", shard_clips=2))


def test_kills_while_processes_fill_shards(tmp_path: Path) -> None:
    """The export dies with SIGKILL amid several shards, again and again: each clip is in one of them at the end, to the
    byte as without kills, and what its processes still wrote is gone."""
    output = Output(tmp_path / "out", 24, Strategy(name="numina", base="numina"))
    for sample in range(24):
        output.make(sample, 0, None)
    grown(output.store, tmp_path / "whole", shard_clips=2)
    context, chance, folder = multiprocessing.get_context("spawn"), random.Random(0), tmp_path / "x"
    arguments: Any = str(tmp_path / "out"), str(folder)
    closed, begun = list[int](), list[psutil.Process]()
    for number in range(4):
        process = context.Process(target=export_by_several, args=arguments)
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and shards_in(folder) <= number and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        with suppress(psutil.NoSuchProcess):
            begun += psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        closed.append(shards_in(folder))
    assert begun
    assert not psutil.wait_procs(begun, timeout=30)[1], "processes outlive the export"
    grown(output.store, folder, shard_clips=2)
    assert 0 < closed[0] < 12, closed
    assert manifest(folder) == manifest(tmp_path / "whole")
    assert len(check_shards(folder, output.store)) == 24


def shards_in(folder: Path) -> int:
    return len(manifest(folder)) if (folder / "MANIFEST.json").exists() else 0
