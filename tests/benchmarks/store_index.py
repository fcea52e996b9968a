"""What a resume at a million rows costs: the index of an output's keys, its status, a clean-up.

    python -m tests.benchmarks.store_index --folder /tmp/million --rows 990000 --per-segment 1000

Makes the output (synthetic rows of all columns, every commit's file beside its segment) unless the folder is there, and
prints seconds (also of CPU: the machine may have others at work) and the most resident memory of each reading, in a
process of its own. `--gc` cleans up, then reads again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.dataset.segments import commit_name, parquet_bytes
from cluster.dataset.store import Store
from cluster.observability.status import status_of
from cluster.rows import ROW_SCHEMA, STAGES

READINGS = ("import", "committed_index", "status")


def a_row(number: int) -> dict[str, Any]:
    """A row as a job writes it, with what differs between rows made from its number."""
    key = os.urandom(16).hex()
    spans = [
        {"stage": stage, "place": f"gang {number % 8}", "began": 1.8e9 + number, "seconds": 3.7} for stage in STAGES
    ]
    return {
        "key": key,
        "id": f"prompt-{number}",
        "file_name": f"videos/{key[:2]}/{key}-{os.urandom(8).hex()}.mp4",
        "prompt": f"three red circles and two blue squares moving on a grey background, seen from window {number}",
        "targets": [{"noun": "circles", "count": 3}, {"noun": "squares", "count": 2}],
        "identified": [{"noun": noun, "frames": [3] * 21, "count": 3} for noun in ("circles", "squares")],
        "strategy": "numina",
        "seed": number,
        "task_digest": os.urandom(16).hex(),
        "layout_file": f"layouts/{key[:2]}/{key}-{os.urandom(8).hex()}.npz",
        "timings": dict.fromkeys(STAGES, 1.25 + number % 97),
        "spans": spans,
        "video_sha256": os.urandom(32).hex(),
        "committed_at": datetime.fromtimestamp(1.8e9 + number, UTC),
    }


def make_output(folder: Path, rows: int, per_segment: int) -> None:
    """Segments with rows, and their commits as one and the same file under each key's name: only names are read."""
    store = Store(str(folder))
    store.open_run({"steps": 50}, asked=rows)
    for shard in range(256):
        (folder / f"commits/{shard:02x}").mkdir(parents=True)
    for start in range(0, rows, per_segment):
        made = [a_row(number) for number in range(start, min(start + per_segment, rows))]
        table = pa.Table.from_pylist(made, schema=ROW_SCHEMA)
        store.row_files.write_segment([table])
        content = parquet_bytes(table.slice(0, 1))
        for row in made:
            (folder / commit_name(row["key"])).write_bytes(content)


def peak_memory() -> float:
    """The most that was ever resident of this process, in MB; `ru_maxrss` would count the parent's too."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def read(folder: Path, reading: str) -> None:
    """One reading in this process; prints what it found, seconds and the most memory that was ever resident."""
    store = Store(str(folder))
    began, worked = time.perf_counter(), time.process_time()
    found: dict[str, Any] = {}
    if reading == "committed_index":
        index = store.committed_index()
        found = {"keys": len(index.keys), "tasks": len(index.tasks)}
    elif reading == "status":
        status = status_of(store)
        found = {"done": status.done, "left": status.left}
    cost = {"seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(time.process_time() - worked, 2)}
    print(json.dumps({"reading": reading, **found, **cost, "peak_mb": round(peak_memory())}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=990_000)
    parser.add_argument("--per-segment", type=int, default=1000)
    parser.add_argument("--gc", action="store_true")
    parser.add_argument("--reading", choices=READINGS, help="one reading, in this process")
    options = parser.parse_args()
    if options.reading:
        read(options.folder, options.reading)
        return
    if not options.folder.exists():
        began = time.perf_counter()
        make_output(options.folder, options.rows, options.per_segment)
        print(json.dumps({"made_rows": options.rows, "seconds": round(time.perf_counter() - began)}), flush=True)

    def read_all() -> None:
        for reading in READINGS:
            command = [sys.executable, "-m", "tests.benchmarks.store_index", "--folder", str(options.folder)]
            subprocess.run([*command, "--reading", reading], check=True)

    read_all()
    if options.gc:
        from cluster.dataset.garbage import collect_garbage

        began = time.perf_counter()
        collected = collect_garbage(Store(str(options.folder)))
        peak = peak_memory()
        print(json.dumps({"gc_seconds": round(time.perf_counter() - began, 1), "peak_mb": round(peak)}), collected)
        read_all()


if __name__ == "__main__":
    main()
