"""What an export to closed shards costs beside a plain copy of the same videos.

    python -m tests.benchmarks.export --folder /tmp/export --clips 100000

Makes an output of fake clips (20 kB each, their rows in segments) unless the folder is there. Copies its videos with
`cp -r` and exports it, in turn, `--repeat` times, each from a warm cache and until all is on the disk: `sync -f`, and
shards are synced as they are closed. Prints seconds, MB/s, the ratio of the rates, and the most memory of the export.
`--layouts` gives every clip a layout of 480p's grid: annotations are made.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.dataset.store import Store
from cluster.job.strategy import Strategy, strategy_record
from cluster.rows import ROW_SCHEMA
from tests.benchmarks.report_size import FRAMES, clips, layout
from tests.benchmarks.report_size import a_row as reported_row

BYTES, PER_SEGMENT = 20_000, 10_000


def make_output(folder: Path, number: int, layouts: bool) -> None:
    """An output of so many clips; every video is another one."""
    store, noise = Store(str(folder), single_writer=True), os.urandom(BYTES)
    strategies = [Strategy(name=name, base=name) for name in ("baseline", "numina")]
    store.open_run({"steps": 50}, asked=number, info={"strategies": list(map(strategy_record, strategies))})
    made, kept = list[dict[str, Any]](), dict[Any, bytes]()
    for place, (start, _, identified) in zip(range(number), clips(number), strict=False):
        row = reported_row(place, start | {"attempt": 0, "sample": place}, identified)
        row["chain"] = row["key"]
        video = row["key"].encode() + noise[32:]
        row["video_sha256"] = hashlib.sha256(video).hexdigest()
        row["file_name"] = f"videos/{row['key'][:2]}/{row['key']}-{row['video_sha256'][:16]}.mp4"
        _put(folder / row["file_name"], video)
        if layouts:
            asked = tuple(target["count"] for target in start["targets"])
            if asked not in kept:
                kept[asked] = store.read(store.put_layout(row["key"], layout(asked, asked)))
            row["layout_file"] = f"layouts/{row['key'][:2]}/{row['key']}-{'0' * 16}.npz"
            _put(folder / row["layout_file"], kept[asked])
        made.append(row)
        if len(made) == PER_SEGMENT or place == number - 1:
            store.row_files.write_segment([pa.Table.from_pylist(made, schema=ROW_SCHEMA)])
            made = []


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def export(folder: Path, to: str) -> None:
    """Export in this process; prints what it took."""
    from cluster.export.config import ExportConfig
    from cluster.export.job import export as write

    began = time.perf_counter()
    done = write(Store.reader(str(folder / "out")), str(folder / "export"), ExportConfig(to=to))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"clips": done.clips, "lost": len(done.lost), "seconds": seconds, "MiB": round(peak)}))


def timed(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--to", default="webdataset")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--layouts", action="store_true")
    parser.add_argument("--export", action="store_true", help="only that, in this process")
    args = parser.parse_args()
    if args.export:
        export(args.folder, args.to)
        return
    output, copy, exported = (args.folder / name for name in ("out", "copy", "export"))
    if not output.exists():
        seconds = time.perf_counter()
        make_output(output, args.clips, args.layouts)
        print(f"made in {time.perf_counter() - seconds:.0f} s", flush=True)
    timed("sync", "-f", str(args.folder))
    timed("sh", "-c", f"find {output}/videos -type f -exec cat {{}} + > /dev/null")
    ratios, megabytes = [], args.clips * BYTES / 1e6
    for _ in range(args.repeat):
        copied = timed("sh", "-c", f"cp -r {output}/videos {copy} && sync -f {copy}")
        shutil.rmtree(copy)
        command = [sys.executable, "-m", "tests.benchmarks.export", "--folder", str(args.folder), "--to", args.to]
        took = timed(*command, "--export")
        shutil.rmtree(exported)
        ratios.append(copied / took)
        rates = {"cp MB/s": round(megabytes / copied), "export MB/s": round(megabytes / took)}
        load = {"load": round(os.getloadavg()[0], 1)}
        print(json.dumps({"cp": round(copied, 1), "export, its process in all": round(took, 1), **rates, **load}))
        print(f"ratio of the rates: {ratios[-1]:.2f}", flush=True)
    print(f"median ratio: {statistics.median(ratios):.2f}; {FRAMES} frames a clip by its row")


if __name__ == "__main__":
    main()
