"""Which requests an output on S3 costs: to resume, to claim clips, to gather, to clean up, to read layouts.

    python -m tests.benchmarks.object_store --clips 25000

Fills a real S3 server process (moto's) with an output of verified clips as jobs leave it: mp4, layout, commit and
verdict of each, segments of 1,000 rows and verdicts. Then does each action through a proxy that counts, and prints the
requests by kind, in all for each 1,000 clips and for each 1,000 keys, and seconds (of this machine and this server:
only their growth means something). `--gc-at 5000` cleans up a smaller output before, to show how requests grow.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import s3fs

from cluster.dataset.garbage import collect_garbage
from cluster.dataset.row_files import Segments
from cluster.dataset.segments import parquet_bytes
from cluster.dataset.store import Store
from cluster.job.acceptance import Acceptance
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA, TARGETS
from cluster.storage.posix import PosixFiles
from tests.faults.s3_server import USER, Proxy, free_port

PER_SEGMENT = 1000
BUCKET = "bucket"
LAYOUT_BYTES = 4000
KEYS_PER_CLIP = 4  # before a clean-up


def serve(port: int, clips: int) -> None:
    """A server of this process, with an output of so many clips."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import run_simple

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")

    def put(name: str, data: bytes) -> None:
        backend.put_object(BUCKET, f"out/{name}", data)

    put("run.json", b'{"format": "numina-output/1", "config": {}}')
    for start in range(0, clips, PER_SEGMENT):
        put_segment(put, min(PER_SEGMENT, clips - start))
    run_simple("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=True)


def put_segment(put: Callable[[str, bytes], None], rows: int) -> None:
    """Clips that a driver gathered, each with its own files."""
    keys = sorted(os.urandom(16).hex() for _ in range(rows))
    layouts = [os.urandom(LAYOUT_BYTES) for _ in keys]
    names = [
        f"layouts/{key[:2]}/{key}-{hashlib.sha256(data).hexdigest()[:16]}.npz"
        for key, data in zip(keys, layouts, strict=True)
    ]
    columns: dict[str, Any] = {
        "key": keys,
        "chain": keys,
        "task_digest": keys,
        "attempt": np.zeros(rows, np.int32),
        "strength": np.ones(rows),
        "layout_file": names,
        "file_name": [f"videos/{key[:2]}/{key}-{'0' * 16}.mp4" for key in keys],
        "targets": pa.array([[{"noun": "cats", "count": 3}]] * rows, TARGETS),
        "count_accuracy": np.ones(rows),
    }
    for folder, loose, schema in (
        ("segments", "commits/{0:.2}/{0}.parquet", ROW_SCHEMA),
        ("evaluations/counter/segments", "evaluations/counter/{0}.parquet", EVALUATION_SCHEMA),
    ):
        empty = {field.name: pa.nulls(rows, field.type) for field in schema}
        table = pa.table({**empty, **{name: columns[name] for name in columns if name in schema.names}}, schema=schema)
        with tempfile.TemporaryDirectory() as aside:
            name = Segments(PosixFiles(aside), folder, schema).write([table])
            with open(f"{aside}/{name}", "rb") as written:
                put(name, written.read())
        content = parquet_bytes(table.slice(0, 1))  # names are read, and no contents
        for key in keys:
            put(loose.format(key), content)
    for name, data in zip(names, layouts, strict=True):
        put(name, data)
    for name in columns["file_name"]:
        put(name, b"mp4")


class Measured:
    """Actions on one server's output, and what they cost."""

    def __init__(self, clips: int) -> None:
        self.clips, port = clips, free_port()
        command = [sys.executable, "-m", "tests.benchmarks.object_store", "--serve", str(port), "--clips", str(clips)]
        self.server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.proxy = Proxy(f"http://127.0.0.1:{port}")
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=60).close()
                break
            except OSError:
                assert self.server.poll() is None
                time.sleep(1)
        os.environ.update(USER, AWS_ENDPOINT_URL=self.proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()

    def say(self, action: str, do: Callable[[Store], Any], **more: Any) -> Counter[str]:
        """Does it as a process that has just begun."""
        store = Store(f"s3://{BUCKET}/out")
        self.proxy.taken()
        began = time.perf_counter()
        do(store)
        seconds, requests = time.perf_counter() - began, self.proxy.taken()
        told = {"action": action, "clips": self.clips, **more, "requests": requests.total()}
        told["of 1,000 clips"] = round(1000 * requests.total() / self.clips, 2)
        told["of 1,000 keys"] = round(1000 * requests.total() / (KEYS_PER_CLIP * self.clips), 2)
        print(json.dumps({**told, **requests, "seconds": round(seconds, 1)}), flush=True)
        return requests

    def stop(self) -> None:
        self.proxy.stop()
        self.server.kill()
        self.server.wait()


def resume(store: Store) -> None:
    """What `cluster.runtime.run` reads before it knows what is left."""
    store.check_run({})
    committed = store.committed_index(plain=True)
    store.given_up(committed)
    settled = Acceptance().settled(store.verdicts_of_attempts("counter"), committed.keys)
    assert len(settled) == len(committed.keys)


def claim(store: Store) -> None:
    """64 clips that one driver begins, and a renewal of their lease."""
    taken = store.take([os.urandom(16).hex() for _ in range(64)], [])
    assert not any(map(store.is_committed, taken))
    store.lease(taken)
    store.release()


def read_layouts(names: list[str]) -> Callable[[Store], list[bytes]]:
    return lambda store: [store.read(name) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=25_000)
    parser.add_argument("--gc-at", type=int, default=5_000)
    parser.add_argument("--serve", type=int, help="a port: only fill a server and serve")
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.clips)
        return
    for clips in (args.gc_at, args.clips):
        measured = Measured(clips)
        try:
            measured.say("resume", resume, output="as a job leaves it")
            measured.say("claim 64", claim)
            keys = sorted(Store(f"s3://{BUCKET}/out").committed())[:1000]
            measured.say("gather 1,000 commits", lambda store, keys=keys: store.compact(keys))
            measured.say("gc", lambda store: print(collect_garbage(store).files))
            measured.say("resume", resume, output="after gc")
            measured.say("gc", collect_garbage, output="once more")
            names = Store(f"s3://{BUCKET}/out").rows()["layout_file"].to_pylist()
            some = np.random.default_rng(0).choice(names, min(100, len(names)), replace=False).tolist()
            measured.say("read 100 layouts", read_layouts(some), order="random")
            measured.say("read 100 layouts", read_layouts(names[:100]), order="by key")
        finally:
            measured.stop()


if __name__ == "__main__":
    main()
