"""What it costs to look at an output of a million clips: status, the summary of verdicts, selections, the report.

    python -m tests.benchmarks.looks --folder /tmp/looks --clips 1000000

Makes an output unless the folder is there: segments of commits and of verdicts, as compaction leaves them, with all
columns that a job writes; clips share a few real videos and layouts. Then each look runs in a process of its own.
Prints, as JSON: seconds by the clock and of the CPU, and most memory (RSS) of each, with the machine's load; and the
seconds until a browser shows the report's first page. `near_duplicates` is of 100,000 prompts, whatever the output.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.dataset.segments import parquet_bytes
from cluster.dataset.store import Store
from cluster.job.strategy import strategy_record
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA, STAGES
from tests.benchmarks.report_size import FRAMES, LATENT_FRAMES, NOUNS, PLACES, STRATEGIES, layout, opened, video

PER_SEGMENT = 10_000
START = 1_800_000_000_000_000  # microseconds since the epoch, of the first commit
JUDGES = ("counter",)


def make_output(folder: Path, clips: int) -> None:
    """Prompts of one or two nouns, each with a plain clip and three of NUMINA's attempts."""
    store = Store(str(folder), single_writer=True)
    info = {"strategies": list(map(strategy_record, STRATEGIES)), "verify": {"judge": JUDGES[0], "accept": 0.9}}
    store.open_run({"steps": 50}, asked=clips, info=info)
    files = []
    for count in range(1, 9):
        key = hashlib.blake2b(str(count).encode(), digest_size=16).hexdigest()
        files.append((*store.put_video(key, video((count,))), store.put_layout(key, layout((count,), (count,)))))
    for start in range(0, clips, PER_SEGMENT):
        rows, verdicts = a_segment(start, min(clips, start + PER_SEGMENT), files)
        store.row_files.write_segment([rows])
        for judge in JUDGES:
            name = f"evaluations/{judge}/segments/{start:032x}.parquet"
            store.files.replace(name, parquet_bytes(verdicts.sort_by("key")), durable=False)


def a_segment(start: int, end: int, files: list[tuple[str, str, str]]) -> tuple[pa.Table, pa.Table]:
    number = np.arange(start, end)
    n, prompt, attempt = len(number), number // 4, np.maximum(number % 4 - 1, 0)
    baseline = number % 4 == 0
    chance = np.random.default_rng(start)
    keys = [hashlib.blake2b(str(own).encode(), digest_size=16).hexdigest() for own in number.tolist()]
    chains = [hashlib.blake2b(f"c{p}{b}".encode(), digest_size=16).hexdigest() for p, b in zip(prompt, baseline)]  # noqa: B905
    nouns = 1 + prompt % 2
    of = np.repeat(np.arange(n), nouns)
    second = np.concatenate([[False], of[1:] == of[:-1]])
    noun = (prompt[of] // 2 + 3 * second) % len(NOUNS)
    asked = (prompt[of] // 20 + second) % 8 + 1
    offsets = pa.array(np.concatenate([[0], np.cumsum(nouns)]), pa.int32())
    names = pa.array(NOUNS).take(pa.array(noun))

    def lists(**fields: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(list(fields.values()), list(fields)))

    found = asked + chance.choice([0, 0, 1, -1], len(of)) * (~baseline[of] | (chance.random(len(of)) < 0.7))
    found = np.maximum(found, 0)
    frames = np.repeat(found, FRAMES).reshape(len(of), FRAMES)
    frames[chance.random(len(of)) < 0.3, -8:] += 1
    exact = (frames == asked[:, None]).mean(axis=1)
    accuracy = np.bincount(of, weights=exact, minlength=n) / nouns
    told = [f"{count} {NOUNS[what]}" for count, what in zip(asked.tolist(), noun.tolist(), strict=True)]
    firsts = np.flatnonzero(~second).tolist()
    prompts = [
        f"{' and '.join(told[first : first + size])} {PLACES[own % len(PLACES)]}, seen from window {own}"
        for first, size, own in zip(firsts, nouns.tolist(), prompt.tolist(), strict=True)
    ]
    own = [files[count % len(files)] for count in asked[~second].tolist()]
    seconds = pa.array(np.full(n, 31.5))
    stages = pa.StructArray.from_arrays([seconds] * len(STAGES), [str(stage) for stage in STAGES])
    spans = [{"stage": str(stage), "place": "gang 3, node-17", "began": 1.8e9, "seconds": 31.5} for stage in STAGES]
    latent = pa.array(np.repeat(found, LATENT_FRAMES), pa.int32())
    latents = pa.ListArray.from_arrays(pa.array(np.arange(len(of) + 1) * LATENT_FRAMES, pa.int32()), latent)
    given = {
        "key": keys,
        "id": [f"prompt-{own}" for own in prompt.tolist()],
        "file_name": [video for video, _, _ in own],
        "video_sha256": [sha256 for _, sha256, _ in own],
        "layout_file": [None if plain else name for (_, _, name), plain in zip(own, baseline.tolist(), strict=True)],
        "prompt": prompts,
        "negative_prompt": ["blurry, low quality"] * n,
        "targets": lists(noun=names, count=pa.array(asked, pa.int32())),
        "identified": lists(noun=names, frames=latents, count=pa.array(found, pa.int32())),
        "confidences": pa.ListArray.from_arrays(offsets, pa.array(chance.random(len(of)))),
        "strategy": ["baseline" if plain else "numina" for plain in baseline.tolist()],
        "sample": np.zeros(n, np.int32),
        "attempt": attempt.astype(np.int32),
        "strength": np.ones(n),
        "chain": chains,
        "seed": number,
        "model": ["Wan2.1-T2V-1.3B"] * n,
        "guided": ~baseline,
        "width": np.full(n, 832),
        "height": np.full(n, 480),
        "num_frames": np.full(n, FRAMES),
        "fps": np.full(n, 16.0),
        "steps": np.full(n, 50),
        "timings": stages,
        "spans": [spans] * n,
        "gpu_seconds": 100 + chance.random(n),
        "rank_seconds": 100 + chance.random(n),
        "retries": np.zeros(n),
        "committed_at": START + number * 1_000_000,
        "task_digest": keys,
    }
    counts = pa.ListArray.from_arrays(
        pa.array(np.arange(len(of) + 1) * FRAMES, pa.int32()), pa.array(frames.reshape(-1), pa.int32())
    )
    verdicts = {
        "key": keys,
        "judge": [JUDGES[0]] * n,
        "detected": lists(noun=names, frames=counts),
        "count_accuracy": accuracy,
        "clip_score": 30 + chance.random(n),
        "temporal_consistency": 0.9 + chance.random(n) / 20,
        "settings": ['{"every":1,"kind":"counter"}'] * n,
        "seconds": np.full(n, 0.2),
        "chain": chains,
        "attempt": attempt.astype(np.int32),
        "strength": np.ones(n),
    }
    return _table(given, ROW_SCHEMA, n), _table(verdicts, EVALUATION_SCHEMA, n)


def _table(given: dict[str, object], schema: pa.Schema, rows: int) -> pa.Table:
    columns = []
    for own in schema:
        values = given.get(own.name)
        if values is None:
            columns.append(pa.nulls(rows, own.type))
        elif isinstance(values, (pa.Array, np.ndarray)):
            columns.append(pa.array(values).cast(own.type))
        else:
            columns.append(pa.array(values, own.type))
    return pa.Table.from_arrays(columns, schema=schema)


# --- measuring ---


def status(folder: Path) -> str:
    from cluster.observability.status import status_of

    return str(status_of(Store.reader(str(folder))).done)


def summary(folder: Path) -> str:
    from cluster.evaluation.summary import summarize, write_summary

    store = Store.reader(str(folder))
    found = summarize(store)
    write_summary(store, found)
    return f"{found.rows} rows, {sum(own.judged for judge in found.judges for own in judge.strategies)} judged"


def selection(folder: Path) -> str:
    from cluster.export.selection import select

    return f"{len(select(Store.reader(str(folder)), strategy=None, judge=None, only='accepted').rows)} clips"


def shards(folder: Path) -> str:
    """What an export to closed shards looks at, without the videos."""
    from cluster.export.arrivals import Arrivals, rule_of
    from cluster.export.config import ExportConfig
    from cluster.export.shards import INDEX

    store, config = Store.reader(str(folder)), ExportConfig(to="webdataset", only="accepted")
    arrivals = Arrivals(store, config, rule_of(store, config), INDEX.empty_table())
    return f"{sum(map(len, arrivals.look(final=True)))} clips"


def report(folder: Path) -> str:
    from cluster.report import build_report

    return build_report(folder).name


def near_duplicates(folder: Path) -> str:
    """Of 100,000 made prompts, without reading or writing them."""
    from cluster.prompts.alike import AlikeFinder
    from cluster.prompts.make import Recipe, made_prompts
    from numina.prompts.targets import Target

    finder, number = AlikeFinder(), 0
    for batch in made_prompts(Recipe(seed=0), 100_000):
        for row in batch.to_pylist():
            finder.add(number, row["id"], row["prompt"], [Target(**target) for target in row["targets"]])
            number += 1
    return f"{len(finder.found())} of {number} prompts"


LOOKS: dict[str, Callable[[Path], str]] = {
    own.__name__: own for own in (status, summary, selection, shards, report, near_duplicates)
}


def measured(look: str, folder: Path) -> dict[str, object]:
    """Seconds and most memory of one look, in a process of its own."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.looks", "--folder", str(folder), "--look", look],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{look} of {folder} failed")
    return {
        "look": look,
        "seconds": round(time.perf_counter() - began, 1),
        "load": os.getloadavg()[0],
        **json.loads(done.stdout),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--look", choices=LOOKS, help="one alone, in this process")
    options = parser.parse_args()
    if options.look:
        told = LOOKS[options.look](options.folder)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = round(used.ru_utime + used.ru_stime, 1)
        print(json.dumps({"cpu_seconds": seconds, "mb": used.ru_maxrss // 1024, "told": told}))
        return
    if not options.folder.exists():
        began = time.perf_counter()
        make_output(options.folder, options.clips)
        print(json.dumps({"made_seconds": round(time.perf_counter() - began)}), flush=True)
    for look in LOOKS:
        print(json.dumps(measured(look, options.folder)), flush=True)
    print(json.dumps(next(opened(options.folder))), flush=True)


if __name__ == "__main__":
    main()
