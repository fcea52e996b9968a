"""Writers killed without warning lose nothing that they committed, show nothing twice and leave nothing torn.

The short form makes 120 clips under 25 SIGKILLs in some seconds; `NUMINA_FAULTS=long` makes 1,000 under 200. Both print
what they measured (`pytest -s`).
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.dataset.garbage import collect_garbage
from cluster.dataset.store import Store
from cluster.observability.status import status_of
from tests.cluster.dataset.outputs import CATS, key_of

LONG = os.environ.get("NUMINA_FAULTS") == "long"
KILLS = 200 if LONG else 25
CLIPS = 1000 if LONG else 120
KEYS = [key_of(number) for number in range(CLIPS)]
WRITERS = 2
AT_ONCE = 3  # clips that a writer works on, so leases, at a time
GENERATION_SECONDS = (0.0, 0.1 if LONG else 0.15)
COMPACT_CLIPS = 40
PRELOADED = ["cluster.dataset.garbage", "cluster.export.job", "tests.cluster.dataset.test_store"]
SMALL_VIDEO, LARGE_VIDEO = 2**16, 2**22  # the large ones take so long to write that a kill may well come amid it


def work(root: str, diary: str, seed: int, generation_seconds: tuple[float, float]) -> None:
    """Make every clip that nobody has made or leases, as a driver does: index, lease, ask again, make, commit."""
    chance = random.Random(seed)
    store = Store(root)
    store.open_run({"steps": 50}, asked=CLIPS)
    done = {key.hex() for key in store.committed_index().keys}
    mine = list[str]()
    with open(diary, "a", buffering=1) as lines:
        while left := [key for key in KEYS if key not in done]:
            for start in range(0, len(left), AT_ONCE):
                for key in store.take(chance.sample(left, len(left))[start : start + AT_ONCE], []):
                    if key not in done and not store.is_committed(key):
                        time.sleep(chance.uniform(*generation_seconds))
                        lines.write(f"made {key}\n")
                        if make_clip(store, key, chance):
                            lines.write(f"won {key}\n")
                        mine.append(key)
                    done.add(key)
                if len(mine) >= COMPACT_CLIPS:
                    store.compact(mine)
                    store.compact_evaluations("exact", mine)
                    mine = []
            done |= {key for key in left if store.is_committed(key)}
            store.lease([])
            time.sleep(0.02)  # what is left the other works on
    store.release()


def make_clip(store: Store, key: str, chance: random.Random) -> bool:
    size = LARGE_VIDEO if chance.random() < 0.1 else SMALL_VIDEO
    file_name, sha256 = store.put_video(key, chance.randbytes(64) * (size // 64))  # no two writers make the same bytes
    layout_file = store.put_layout(key, {"labels": np.zeros((1, 4, 8, 8), np.int16)})
    row = {"key": key, "file_name": file_name, "video_sha256": sha256, "layout_file": layout_file}
    won = store.commit({**row, "prompt": "three cats", "targets": CATS, "strategy": "numina", "seed": 7})
    for found in range(2):  # as where the video is missing at first
        store.put_evaluation("exact", key, {"count_accuracy": 1.0 * found, "problem": None if found else "missing"})
    return won


class Writers:
    """Processes that work on one output, and the diary that they share."""

    def __init__(self, folder: Path, generation_seconds: tuple[float, float] = GENERATION_SECONDS) -> None:
        self.root, self.diary = folder / "out", folder / "diary"
        self.generation_seconds = generation_seconds
        self.chance = random.Random(0)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["cluster.export.job", "cluster.dataset.garbage", "tests.cluster.dataset.test_store"]
        )
        self.diary.touch()
        self.running = [self.start() for _ in range(WRITERS)]

    def start(self) -> BaseProcess:
        seed = self.chance.randrange(2**32)
        arguments = (str(self.root), str(self.diary), seed, self.generation_seconds)
        process = self.context.Process(target=work, args=arguments)
        process.start()
        return process

    def kill(self, number: int) -> bool:
        """Kill one, start another in its place; whether it was alive."""
        self.running[number].kill()
        self.running[number].join()
        killed = self.running[number].exitcode == -signal.SIGKILL
        self.running[number] = self.start()
        return killed

    def finish(self) -> None:
        for process in self.running:
            process.join()
            assert process.exitcode == 0

    def noted(self, what: str) -> list[str]:
        lines = [line.split() for line in self.diary.read_text().splitlines()]
        return [line[1] for line in lines if line[0] == what and len(line) == 2]


def torn_files(root: Path) -> list[Path]:
    """Visible files that aren't whole: of another content than their name says, or not Parquet of at least a row."""
    torn = []
    for path in root.rglob("[!.]*.*"):
        if path.suffix in (".mp4", ".npz"):
            whole = hashlib.sha256(path.read_bytes()).hexdigest()[:16] == path.stem.split("-")[1]
        elif path.suffix == ".parquet":
            whole = pq.read_table(path).num_rows >= 1
        else:
            continue
        if not whole:
            torn.append(path)
    return torn


def test_sigkill_loses_doubles_and_tears_nothing(tmp_path: Path) -> None:
    """Two writers at a time are killed again and again; then every key has one whole row with its own whole video, no
    row that a writer saw committed has changed, and a clean-up afterwards changes none of it."""
    began = time.perf_counter()
    writers = Writers(tmp_path)
    root = writers.root
    kills, seen = 0, dict[str, bytes]()
    for round_ in range(KILLS * 2):
        time.sleep(writers.chance.uniform(0.05, 0.3))
        kills += writers.kill(round_ % WRITERS)
        if round_ % 20 == 0:
            for path in (root / "commits").rglob("[!.]*.parquet"):
                assert seen.setdefault(path.stem, path.read_bytes()) == path.read_bytes()
        if kills == KILLS:
            break
    writers.finish()
    seconds = time.perf_counter() - began

    assert kills == KILLS or (
        kills > KILLS * 0.7 and not LONG
    )  # else the work was done too soon, and too little was tested
    won, made = writers.noted("won"), writers.noted("made")
    rows = Store(str(root)).rows().to_pylist()
    keys = [row["key"] for row in rows]
    torn = torn_files(root)
    measured = {"clips": CLIPS, "writers": WRITERS, "kills": kills, "rows": len(rows), "lost": len({*KEYS} - {*keys})}
    measured |= {"duplicate_rows": len(keys) - len({*keys}), "torn_files": len(torn), "made": len(made)}
    print("\n" + json.dumps(measured | {"seconds": round(seconds, 1)}))
    assert keys == sorted(KEYS)
    assert torn == []
    assert len(won) == len({*won})
    assert {*won} | seen.keys() <= {*keys}
    for row in rows:
        assert row["file_name"].endswith(f"-{row['video_sha256'][:16]}.mp4")
        assert (root / row["file_name"]).is_file()
        assert (root / row["layout_file"]).is_file()
    assert status_of(Store(str(root))).left == 0

    store = Store(str(root))
    verdicts, layouts = store.evaluations("exact"), {row["layout_file"]: store.read(row["layout_file"]) for row in rows}
    unjudged = {*KEYS} - {*verdicts["key"].to_pylist()}  # their writer was killed between commit and verdict
    assert len(verdicts) == len({*verdicts["key"].to_pylist()}) >= CLIPS - KILLS
    for key in unjudged | {row["key"] for row in verdicts.to_pylist() if row["problem"]}:
        assert store.put_evaluation("exact", key, {"count_accuracy": 1.0})  # as the next evaluation does
    verdicts = store.evaluations("exact")
    collected = collect_garbage(store)
    files = sum(path.is_file() for path in root.rglob("*"))
    print(json.dumps({"removed_files": collected.files, "files": files, "files_per_clip": round(files / CLIPS, 3)}))
    store = Store(str(root))
    assert store.rows().to_pylist() == rows
    assert store.evaluations("exact").equals(verdicts)
    assert {*verdicts["key"].to_pylist()} == {*KEYS}
    assert set(verdicts["count_accuracy"].to_pylist()) == {1.0}
    assert {name: store.read(name) for name in layouts} == layouts
    assert all((root / row["file_name"]).is_file() for row in rows)
    assert not list(root.rglob(".numina-*"))
    assert len(list((root / "videos").rglob("*.mp4"))) == CLIPS
    assert files - len(list((root / "runs").iterdir())) <= CLIPS + 10


def test_two_writers_hardly_repeat_each_other(tmp_path: Path) -> None:
    """Undisturbed, leases keep two writers from making one clip twice: less than 2 % are, and that shows nowhere. The
    same two started again make nothing."""
    writers = Writers(tmp_path, (0.01, 0.03))
    writers.finish()
    made: list[Any] = writers.noted("made")
    repeated = len(made) - len({*made})
    print("\n" + json.dumps({"clips": CLIPS, "writers": WRITERS, "made": len(made), "repeated": repeated}))
    assert Store(str(writers.root)).rows()["key"].to_pylist() == sorted(KEYS)
    assert repeated <= max(1, 0.02 * CLIPS)
    writers.running = [writers.start() for _ in range(WRITERS)]
    writers.finish()
    assert writers.noted("made") == made
