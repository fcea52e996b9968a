"""The same promises on an S3 server: a real one in a process of its own, moto's, with real clients."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs

from cluster.dataset.garbage import KINDS, collect_garbage
from cluster.dataset.leases import LEASE_SECONDS
from cluster.dataset.store import Store
from cluster.observability.status import status_of
from numina.errors import DamageError, OutputError, StorageError
from tests.cluster.dataset.outputs import CATS, a_row, key_of
from tests.faults.jobs import Job, numbered_prompts
from tests.faults.s3_server import USER, Server

LONG = os.environ.get("NUMINA_FAULTS") == "long"
KILLS, CLIPS = (60, 300) if LONG else (6, 20)
KEYS = [key_of(number) for number in range(CLIPS)]
SLOW = {"NUMINA_QUICK_SECONDS": "0.2"}  # a call of the quick model
PREPARED = ["cluster.dataset.garbage", "tests.cluster.dataset.test_store", "s3fs"]


def test_one_of_many_writers_makes_the_row(bucket: str) -> None:
    """A commit is a conditional put: 16 racing threads have one winner, readers see whole rows, another configuration
    is refused."""
    store = Store(f"{bucket}/out")
    store.open_run({"steps": 50}, asked=3)
    row = a_row(key_of(1), store, task_digest=key_of(100))
    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(lambda _: store.commit(row), range(16))) == 1
    store.fail(key_of(2), {"error": "lost", "task_digest": key_of(102)})
    assert store.committed() == {key_of(1)} == set(store.rows()["key"].to_pylist())
    index = store.committed_index()
    assert (index.keys, index.tasks) == ({bytes.fromhex(key_of(1))}, {bytes.fromhex(key_of(100))})
    assert store.given_up(index).tasks == {bytes.fromhex(key_of(102))}
    assert [store.is_committed(key_of(number)) for number in (1, 2)] == [True, False]
    assert (status_of(store).done, status_of(store).failed, status_of(store).left) == (1, 1, 1)
    assert abs(time.time() - (status_of(store).last_commit or 0).timestamp()) < 60  # type: ignore[union-attr]
    with pytest.raises(OutputError, match="steps: 50 there, 25 now"):
        Store(f"{bucket}/out").open_run({"steps": 25})


def test_leases_go_by_the_servers_clock(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by others, also by one whose clock is ten minutes off; given back; kept by the smaller token."""
    a, b = (Store(f"{bucket}/out") for _ in range(2))
    b.open_run({})
    assert a.take(KEYS[:2], []) == KEYS[:2]
    true_time = time.time
    with monkeypatch.context() as skewed:
        skewed.setattr(time, "time", lambda: true_time() + 600)  # by more, and the server refuses the signature
        assert b.take(KEYS[:3], []) == [KEYS[2]]
    assert a.leased() == {KEYS[2]: b.owner}
    (lease,) = a.leases.living()
    assert -2 < lease.age < LEASE_SECONDS
    with pytest.raises(OutputError, match=f"process {os.getpid()}"):
        collect_garbage(b)
    a.release()
    assert (b.leased(), b.others()) == ({}, [])


def test_a_clean_up_keeps_rows_and_their_files(bucket: str) -> None:
    """Orphans, dead commits and small segments go; rows, files and the index stay."""
    store = Store(f"{bucket}/out")
    store.open_run({}, asked=6)
    for number in range(6):
        store.commit(a_row(key_of(number), store, video=bytes([number]) * 1000, task_digest=key_of(100 + number)))
        store.compact([key_of(number)], at_least=1)
    store.put_video(key_of(50), b"orphan")
    store.fail(key_of(1), {})
    store.files.replace(".numina-probe-x", b"")
    rows, index = store.rows(), store.committed_index()
    collected = collect_garbage(store)
    expected = dict.fromkeys(KINDS, 0) | {"temporaries": 1, "videos": 1, "failures": 1, "commits": 6, "segments": 6}
    assert collected.files == expected
    assert (collected.bytes["videos"], collected.segments_written) == (6, 1)
    assert store.rows().equals(rows)
    assert store.committed_index() == index
    assert [len(store.read(name)) for name in rows["file_name"].to_pylist()] == [1000] * 6
    assert sum(collect_garbage(store).files.values()) == 0


def test_torn_objects_are_named(bucket: str) -> None:
    """An object that was cut is an error with its URL and the remedy, not a missing row."""
    store = Store(f"{bucket}/out")
    for number in range(3):
        store.commit(a_row(key_of(number), store))
    (segment,) = store.compact()
    store.files.replace(segment, store.read(segment)[:-9])
    for read in (store.rows, store.committed_index, lambda: status_of(store)):
        with pytest.raises(DamageError, match=rf"{bucket}/out/{segment} is torn.*remove it"):
            read()
    store.files.remove(segment)
    assert len(store.rows()) == 3


def test_a_user_in_the_url_is_used_and_shown_nowhere(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3://KEY:SECRET@bucket/… signs with them; no error, no record and no lease holds them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    url = bucket.replace("s3://", "s3://AKIDEXAMPLE:wJalr%2FXUtn+FEMI@") + "/out"
    store = Store(url)
    store.open_run({"steps": 50}, asked=1, info={"parallel": 1})
    store.lease(KEYS[:1])
    store.commit(a_row(key_of(1), store))
    store.compact(at_least=1)
    assert store.root == f"{bucket}/out"
    with pytest.raises(OutputError) as refused:
        store.open_run({"steps": 25})
    assert "wJalr" not in str(refused.value)
    client = s3fs.S3FileSystem(key="a", secret="b")
    written = b"".join(client.cat(client.find(f"{bucket}/out")).values())
    assert b"FEMI" not in written
    assert b"AKID" not in written
    assert store.files._fs.storage_options["secret"] == "wJalr/XUtn+FEMI"  # type: ignore[attr-defined]


def work(root: str, diary: str, seed: int, endpoint: str) -> None:
    os.environ.update(USER, AWS_ENDPOINT_URL=endpoint)
    chance = random.Random(seed)
    store = Store(root)
    store.open_run({"steps": 50}, asked=CLIPS)
    done = {key.hex() for key in store.committed_index().keys}
    with open(diary, "a", buffering=1) as lines:
        while left := [key for key in KEYS if key not in done]:
            for key in store.take(chance.sample(left, min(2, len(left))), []):
                if not store.is_committed(key):
                    time.sleep(chance.uniform(0, 0.1))
                    file_name, sha256 = store.put_video(key, chance.randbytes(64) * chance.choice([16, 2**14]))
                    layout_file = store.put_layout(key, {"labels": np.zeros((1, 2, 2), np.int16)})
                    row = {"key": key, "file_name": file_name, "video_sha256": sha256, "layout_file": layout_file}
                    row |= {"prompt": "three cats", "targets": CATS, "strategy": "numina", "seed": 7}
                    if store.commit(row):
                        lines.write(f"{key}\n")
                done.add(key)
            done |= {key for key in left[:20] if store.is_committed(key)}
        store.compact()
    store.release()


def test_sigkill_on_s3_loses_doubles_and_tears_nothing(bucket: str, tmp_path: Path) -> None:
    """Two writers on one bucket are killed again and again: every key has one row with its own whole video."""
    began = time.perf_counter()
    chance, diary = random.Random(0), tmp_path / "diary"
    diary.touch()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PREPARED)

    def start() -> Any:
        arguments = (f"{bucket}/out", str(diary), chance.randrange(2**32), os.environ["AWS_ENDPOINT_URL"])
        process = context.Process(target=work, args=arguments)
        process.start()
        return process

    writers, kills = [start(), start()], 0
    for number in range(KILLS):
        time.sleep(chance.uniform(0.2, 1.2))
        writers[number % 2].kill()
        writers[number % 2].join()
        kills += writers[number % 2].exitcode == -signal.SIGKILL
        writers[number % 2] = start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store, won = Store(f"{bucket}/out"), diary.read_text().split()
    rows = store.rows().to_pylist()
    keys = [row["key"] for row in rows]
    torn = [
        row["key"] for row in rows if hashlib.sha256(store.read(row["file_name"])).hexdigest() != row["video_sha256"]
    ]
    measured = {"clips": CLIPS, "kills": kills, "rows": len(rows), "lost": len({*KEYS} - {*keys})}
    measured |= {"duplicate_rows": len(keys) - len({*keys}), "torn_videos": len(torn)}
    print("\n" + json.dumps(measured | {"seconds": round(time.perf_counter() - began, 1)}))
    assert kills > KILLS // 2
    assert keys == sorted(KEYS)
    assert torn == []
    assert len(won) == len({*won})
    collect_garbage(store)
    assert store.rows().to_pylist() == rows
    assert len(list(store.files.walk("videos"))) == CLIPS
    assert status_of(store).left == 0


def test_a_stopped_server_is_lost_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method says so in one error of ours, and none takes it for an empty output."""
    server = Server()
    try:
        for name, value in {**USER, "AWS_ENDPOINT_URL": server.endpoint, "AWS_MAX_ATTEMPTS": "1"}.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        store = Store("s3://bucket/out")
        store.open_run({})
        row = a_row(key_of(1), store)
        assert store.commit(row)
    finally:
        server.stop()
    for action in (
        lambda: store.commit(row),
        lambda: store.is_committed(key_of(1)),
        store.committed_index,
        lambda: store.lease([]),
        store.others,
    ):
        with pytest.raises(StorageError, match="resume"):
            action()


@pytest.mark.slow
def test_two_drivers_fill_a_bucket_and_one_is_killed(bucket: str, tmp_path: Path) -> None:
    """Whole jobs, whose writing processes put videos and rows into the bucket: every row once with its whole video."""
    settings = ["parallel.ulysses=1", "strategies=[baseline]", f"output={bucket}/out"]
    first, second = (Job(tmp_path, numbered_prompts(40), *settings, environment=SLOW) for _ in range(2))
    first.start()
    second.start()
    assert first.wait_for_work(10)
    first.process.kill()
    first.process.wait()
    assert second.wait() == 0, second.log()[-3000:]
    store = Store(f"{bucket}/out")
    rows = store.rows().to_pylist()
    assert sorted(int(row["id"]) for row in rows) == list(range(40))
    for row in rows:
        assert hashlib.sha256(store.read(row["file_name"])).hexdigest() == row["video_sha256"]
    assert len(first.diary()) <= 40 + 6  # what the killed one had in flight and was writing
