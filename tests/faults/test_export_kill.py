"""A following export beside writers, all of them killed again and again: every clip is in one closed shard, whole.

The short form kills some over 120 clips; `NUMINA_FAULTS=long` makes 1,000 clips under 200 SIGKILLs, every second one
of the export. Both print what they measured (`pytest -s`).
"""

import json
import signal
import time
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

import cluster.export.growing
from cluster.dataset.garbage import collect_garbage
from cluster.dataset.store import Store
from cluster.export.config import ExportConfig
from cluster.export.job import export
from tests.cluster.export.shards import check_shards, manifest
from tests.faults.test_store_kill import CLIPS, KEYS, LONG, WRITERS, Writers

KILLS = 200 if LONG else 16
SHARD_CLIPS = 7


def follow(root: str, folder: str, form: str, begun: Event) -> None:
    """As `numina export --follow`, but it looks all the time."""
    begun.set()
    cluster.export.growing.POLL_SECONDS, cluster.export.growing.SHARE = 0.02, 1.0
    export(Store.reader(root), folder, ExportConfig(to=form, shard_clips=SHARD_CLIPS, follow=True))


def wait_for_a_shard(folder: Path, patience: float = 5.0) -> None:
    """Until one more is closed: on a busy machine an export may need longer for it than others let it live."""
    before, began = listed(folder), time.monotonic()
    while listed(folder) == before and time.monotonic() - began < patience:
        time.sleep(0.01)


def listed(folder: Path) -> list[dict[str, Any]]:
    return manifest(folder) if (folder / "MANIFEST.json").exists() else []


@pytest.mark.parametrize("form", ["webdataset", "parquet"] if LONG else ["webdataset"])
def test_kills_of_a_following_export_lose_double_and_tear_nothing(form: str, tmp_path: Path) -> None:
    """Also of the shards that were closed in between none has changed at the end, and there is none that isn't full but
    the last. A clean-up of the output changes nothing for a later call."""
    began = time.perf_counter()
    writers, folder = Writers(tmp_path), tmp_path / "shards"
    while not (writers.root / "run.json").exists():
        time.sleep(0.02)
    begun = writers.context.Event()
    arguments = str(writers.root), str(folder), form, begun

    def start() -> BaseProcess:
        begun.clear()
        process = writers.context.Process(target=follow, args=arguments)
        process.start()
        begun.wait()
        return process

    exporter, kills, closed = start(), dict.fromkeys(("writer", "export"), 0), dict[str, tuple[str, int]]()
    for number in range(KILLS):
        of_writers = number < 2 or number % 2  # two at once: a busy machine's writers end before an export has begun
        time.sleep(writers.chance.uniform(0.05, 0.2 if of_writers else 0.8))
        if number and number % 4 == 0:
            wait_for_a_shard(folder)
        if of_writers:
            kills["writer"] += writers.kill(number // 2 % WRITERS)
        else:
            exporter.kill()
            exporter.join()
            kills["export"] += exporter.exitcode == -signal.SIGKILL
            exporter = start()
        for shard in listed(folder):
            written = (folder / shard["name"]).stat().st_mtime_ns
            assert closed.setdefault(shard["name"], (shard["sha256"], written)) == (shard["sha256"], written)
    writers.finish()
    exporter.join()
    assert exporter.exitcode == 0
    store = Store(str(writers.root))
    shards, rows = manifest(folder), check_shards(folder, store)
    measured = {"clips": CLIPS, "kills": kills, "exported": len(rows), "lost": len({*KEYS} - rows.keys())}
    measured |= {"shards": len(shards), "closed between kills": len(closed)}
    print("\n" + json.dumps(measured | {"seconds": round(time.perf_counter() - began, 1)}))
    assert sorted(rows) == sorted(KEYS)
    assert {shard["clips"] for shard in shards[:-1]} == {SHARD_CLIPS}
    now = {shard["name"]: shard["sha256"] for shard in shards}
    assert {name: now[name] for name in closed} == {name: digest for name, (digest, _) in closed.items()}
    assert closed
    # A busy machine may end the work before the last kills; with fewer than these too little was tested.
    assert min(kills.values()) >= KILLS // 8
    assert not list(folder.glob(".numina-*"))

    collect_garbage(store)
    follow(*arguments)
    assert manifest(folder) == shards
