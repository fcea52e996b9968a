"""What it costs to resume a job of a million prompts whose rows are nearly all done, until the first task is in hand.

    python -m tests.benchmarks.resume --rows 1000000 --done 990000 --folder /tmp/resume

Makes a prompt set and an output of it (segments of true rows, under keys of chance: a finished row is recognised by its
digest) unless the folder is there; `--commits` also makes the file of every commit, `--given` gives all targets, and
`--verified` a job whose rows are judged, with a verdict of each in segments, as `numina gc` or the job itself leaves
them. Then resumes in a process of its own, as `cluster.runtime.run` does, and prints seconds and resident memory of
each part, then the memory along a walk of all that is left, in the set's order and shuffled. With `--verified` it also
prints what `numina evaluate` reads of the verdicts until it knows that nothing is left to judge.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.dataset.segments import commit_name, parquet_bytes
from cluster.dataset.store import Store
from cluster.evaluation.evaluate import evaluate
from cluster.job.acceptance import Acceptance
from cluster.job.config import load_job
from cluster.job.judge import judge_config
from cluster.job.names import TaskNames
from cluster.job.prepared import PreparedJob, prepare
from cluster.job.worklist import open_worklist
from cluster.keys import canonical_json
from cluster.rows import DETECTED, EVALUATION_SCHEMA, ROW_SCHEMA, TARGETS
from pipelines.judges import load_judge

ROW_GROUP = 100_000
SEGMENT = 1_000
COUNTS = {"circles": 3, "squares": 2}
ASKED = [{"noun": noun, "count": count} for noun, count in COUNTS.items()]
LAST = 3  # a verified sample's last attempt
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")


def a_plan(folder: Path) -> PreparedJob:
    """The embedded model's job over the set."""
    places = [f"prompts={folder}/prompts.parquet", f"output={folder}/out"]
    strategy = "numina+verified" if (folder / "out/evaluations").exists() else "numina"
    return prepare(load_job("demo", [*places, f"strategies=[{strategy}]", "model.device=cpu"]))


def make_prompt_set(path: Path, rows: int, given: bool) -> None:
    """Prompts of some 80 characters; targets null, or given."""
    targets = ASKED if given else None
    schema = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("targets", TARGETS), ("source", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, ROW_GROUP):
            numbers = range(start, min(start + ROW_GROUP, rows))
            columns = {
                "id": [f"prompt-{number:08d}" for number in numbers],
                "prompt": [
                    f"three {COLOURS[number % 6]} circles and two {COLOURS[number // 6 % 6]} squares, seen from window"
                    f" {number}"
                    for number in numbers
                ],
                "targets": [targets] * len(numbers),
                "source": ["a web page"] * len(numbers),
            }
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)


def verdicts_on(table: pa.Table, settings: str) -> pa.Table:
    """Of the counter, on rows of two nouns; nine of ten clips are accepted, the others were the last attempt."""
    frames = [{"noun": noun, "frames": [count] * 17} for noun, count in COUNTS.items()]
    detected = pa.array([frames], DETECTED).take(pa.array(np.zeros(len(table), np.int64)))
    accepted = np.asarray(table["attempt"]) < LAST
    columns = {
        "key": table["key"],
        "judge": pa.repeat("counter", len(table)),
        "detected": detected,
        "count_accuracy": pa.array(accepted * 0.5 + 0.5),
        "settings": pa.repeat(settings, len(table)),
        "seconds": pa.array(np.random.default_rng(0).random(len(table))),
        **{name: table[name] for name in ("chain", "attempt", "strength")},
    }
    empty = {field.name: pa.nulls(len(table), field.type) for field in EVALUATION_SCHEMA}
    return pa.table({**empty, **columns}, schema=EVALUATION_SCHEMA)


def make_output(folder: Path, done: int, commits: bool, verified: bool) -> None:
    """Segments with rows for `done` tasks of the set, spread over it; with `commits` a file under each key's name."""
    if verified:
        (folder / "out/evaluations/counter").mkdir(parents=True)
    prepared = a_plan(folder)
    judged = Store(prepared.job.output).verdict_files("counter")
    settings = canonical_json(load_judge(judge_config("counter")).settings)
    store, names = Store(prepared.job.output), TaskNames(prepared)
    rows = prepared.prompts.rows
    finished = np.zeros(rows, bool)
    finished[np.random.default_rng(0).permutation(rows)[:done]] = True
    if commits:
        for shard in range(256):
            (folder / f"out/commits/{shard:02x}").mkdir(parents=True, exist_ok=True)
    kept: list[pa.Table] = []
    for block, batch in prepared.prompts.read():
        chosen = np.flatnonzero(finished[block.index : block.index + block.rows])
        digests = [digest.hex() for digest in names.digests(0, names.texts(batch))]
        columns = {
            "key": [os.urandom(16).hex() for _ in chosen],
            "id": batch.column("id").take(pa.array(chosen)),
            "prompt": batch.column("prompt").take(pa.array(chosen)),
            "task_digest": [digests[offset] for offset in chosen],
            "targets": pa.array([ASKED] * len(chosen), TARGETS),
            "chain": [digests[offset] for offset in chosen],
            "attempt": [0 if number % 10 else LAST for number in range(len(chosen))],
            "strength": [1.0] * len(chosen),
        }
        empty = {field.name: pa.nulls(len(chosen), field.type) for field in ROW_SCHEMA}
        kept.append(pa.table({**empty, **columns}, schema=ROW_SCHEMA))
        if sum(len(table) for table in kept) >= 50 * SEGMENT or block is prepared.prompts.blocks[-1]:
            table = pa.concat_tables(kept).combine_chunks()
            for start in range(0, len(table), SEGMENT):
                segment = table.slice(start, SEGMENT)
                store.row_files.write_segment([segment])
                if verified:
                    judged.write_segment([verdicts_on(segment, settings)])
                if commits:
                    content = parquet_bytes(segment.slice(0, 1))  # names are read, and no contents
                    for key in segment["key"].to_pylist():
                        (folder / "out" / commit_name(key)).write_bytes(content)
            kept = []


def resume(folder: Path) -> None:
    """Resumes in this process; prints a line for each part."""
    process = psutil.Process()
    began = last = time.perf_counter()
    last_cpu = time.process_time()

    def say(part: str, **found: Any) -> None:
        nonlocal last, last_cpu
        now, cpu = time.perf_counter(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        resident = process.memory_info().rss / 2**20
        times = {"seconds": round(now - last, 2), "cpu": round(cpu - last_cpu, 2), "in all": round(now - began, 2)}
        print(json.dumps({"part": part, **found, **times, "MiB": round(resident), "peak MiB": round(peak)}), flush=True)
        last, last_cpu = now, cpu

    prepared = a_plan(folder)
    say("prepare", rows=prepared.prompts.rows)
    store = Store(prepared.job.output)
    committed = store.committed_index(plain=prepared.job.verifies)
    say("committed_index", rows=len(committed.keys))
    given_up = store.given_up(committed)
    say("given_up", rows=len(given_up.keys))
    settled = frozenset[bytes]()
    if prepared.job.verifies:
        rule, verdicts = Acceptance.of(prepared.job.verify), store.verdicts_of_attempts("counter")
        settled = rule.settled(verdicts, committed.keys)
        say("settled", rows=len(settled))
        settled |= committed.plain
    worklist = open_worklist(prepared, committed, given_up, settled)
    say("open_worklist", asked=worklist.asked, total=worklist.total, done=worklist.done, failed=worklist.failed)
    del committed, given_up, settled
    say("first task", key=next(worklist.tasks()).key)
    if prepared.job.verifies:
        say("evaluate", problems=len(evaluate(store, judge_config("counter"))))
    left = worklist.total - worklist.done - worklist.failed
    for shuffle in (None, 1):
        for number, _ in enumerate(worklist.tasks(shuffle=shuffle)):
            if number in (0, left // 2, left - 1):
                say(f"walk, shuffle={shuffle}", task=number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--done", type=int, default=990_000)
    parser.add_argument("--given", action="store_true")
    parser.add_argument("--commits", action="store_true")
    parser.add_argument("--verified", action="store_true")
    parser.add_argument("--resume", action="store_true", help="in this process, from a folder that is there")
    args = parser.parse_args()
    if args.resume:
        resume(args.folder)
        return
    if not args.folder.exists():
        args.folder.mkdir(parents=True)
        began = time.perf_counter()
        make_prompt_set(args.folder / "prompts.parquet", args.rows, args.given)
        make_output(args.folder, args.done, args.commits, args.verified)
        print(f"made in {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.benchmarks.resume", "--folder", str(args.folder), "--resume"]
    subprocess.run(command, check=True)
    print(f"the process in all: {time.perf_counter() - began:.1f} s, its imports and both walks with it")


if __name__ == "__main__":
    main()
