"""Writers killed without warning lose nothing that they committed, show nothing twice and leave nothing torn.

The short form kills 40 times in some seconds; `NUMINA_FAULTS=long` kills 300 times over 1,500 keys.
"""

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.store import Store
from numina.prompts import Target

LONG = os.environ.get("NUMINA_FAULTS") == "long"
KILLS = 300 if LONG else 40
KEYS = [hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest() for number in range(1500 if LONG else 160)]
WRITERS = 2
VIDEO_BYTES = 2**22  # long enough to write that a kill may well come amid it


def work(root: str, diary: str, seed: int) -> None:
    """Make every key's video, layout and row, in an order of one's own; note in the diary each row that was won."""
    order = random.Random(seed)
    store = Store(root)
    store.open_run({"steps": 50}, asked=len(KEYS))
    with open(diary, "a", buffering=1) as won:
        for key in order.sample(KEYS, len(KEYS)):
            if key in store.committed():
                continue
            time.sleep(order.uniform(0, 0.01))
            file_name, sha256 = store.put_video(
                key, order.randbytes(64) * (VIDEO_BYTES // 64)
            )  # no two writers make the same bytes
            layout_file = store.put_layout(key, {"labels": np.zeros((1, 4, 8, 8), np.int16)})
            row: dict[str, Any] = {
                "key": key,
                "file_name": file_name,
                "video_sha256": sha256,
                "layout_file": layout_file,
            }
            row |= {"prompt": "three cats", "targets": [Target(noun="cats", count=3)], "strategy": "numina", "seed": 7}
            if store.commit(row):
                won.write(f"{key}\n")


@pytest.mark.timeout(3600 if LONG else 120)
def test_sigkill_loses_doubles_and_tears_nothing(tmp_path: Path) -> None:
    """Two writers at a time are killed again and again; then every key has one whole row with its own whole video, no
    row that a writer saw committed has changed, and a last quiet run does exactly what was left."""
    chance = random.Random(0)
    root, diary = tmp_path / "out", tmp_path / "diary"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cluster.store"])

    def start() -> BaseProcess:
        process = context.Process(target=work, args=(str(root), str(diary), chance.randrange(2**32)))
        process.start()
        return process

    killed, seen = 0, dict[str, bytes]()
    writers = [start() for _ in range(WRITERS)]
    for kill in range(KILLS):
        time.sleep(chance.uniform(0.005, 0.1))
        victim = writers[kill % WRITERS]
        victim.kill()
        victim.join()
        killed += victim.exitcode == -signal.SIGKILL
        for path in (root / "commits").rglob("[!.]*.parquet"):
            assert seen.setdefault(path.stem, path.read_bytes()) == path.read_bytes()
        writers[kill % WRITERS] = start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0

    assert killed > KILLS * 0.8  # else the work was done too soon, and little was tested
    won = diary.read_text().split()
    assert len(won) == len(set(won))
    rows = Store(str(root)).rows().to_pylist()
    assert [row["key"] for row in rows] == sorted(KEYS)
    assert {row["key"] for row in rows} >= seen.keys() | set(won)
    for path in (root / "videos").rglob("[!.]*.mp4"):  # also those that no row is about: nothing torn has a name
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == path.stem.split("-")[1]
    for row in rows:
        assert row["file_name"].endswith(f"-{row['video_sha256'][:16]}.mp4")
        assert (root / row["file_name"]).is_file()
        with np.load(root / row["layout_file"], allow_pickle=False) as arrays:
            assert arrays["labels"].shape == (1, 4, 8, 8)
    for path in (root / "commits").rglob("[!.]*.parquet"):
        assert pq.read_table(path).num_rows == 1
    assert Store(str(root)).status().left == 0
    shutil.rmtree(root)
