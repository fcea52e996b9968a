"""What a report of 10,000 clips costs to build, to open and to keep open.

    python -m tests.benchmarks.report_size --folder /tmp/report --clips 10000

Makes an output (synthetic rows, layouts of a 480p clip's grid and verdicts; a few real mp4s under every row's name)
unless the folder is there, builds its report in a process of its own, and opens that in a headless Chromium from
file://. Prints, as JSON: seconds and most memory of the build; what lies on disk; seconds from navigation until the
first prompts are painted and filters answer; seconds of a search and of the slowest of some page turns; the tab's
memory (PSS of its renderer process; JavaScript's heap) then and after those pages.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from cluster.dataset.segments import parquet_bytes
from cluster.dataset.store import Store
from cluster.job.strategy import ACCEPTED, Strategy, strategy_record
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA
from numina.regions import Region
from pipelines.video.mp4 import encode_mp4

NOUNS = ("cats", "dogs", "birds", "red cars", "boats", "apples", "balloons", "horses", "lamps", "drones")
PLACES = ("on a wooden table", "in a park at dawn", "over a grey sea", "in a quiet street", "on fresh snow")
FRAMES, LATENT_FRAMES, ROWS, COLUMNS = 81, 21, 30, 52
STRATEGIES = (
    Strategy(name="baseline", base="baseline"),
    Strategy(name="numina", base="numina"),
    Strategy(name="numina+verified", base="numina", strengths=(1.0, 1.0, 1.0), select=ACCEPTED),
)
PER_SEGMENT = 1000


# --- an output ---


def instances(count: int, noun: int, frames: int = LATENT_FRAMES) -> np.ndarray:
    """Discs that drift to the right, numbered from 1, as int16 [frames, 30, 52]."""
    labels = np.zeros((frames, ROWS, COLUMNS), np.int16)
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    for frame in range(frames):
        for instance in range(count):
            y, x = 4 + 15 * noun + 7 * (instance // 5), 4 + 9 * (instance % 5) + 6 * frame / frames
            labels[frame][(rows - y) ** 2 + (columns - x) ** 2 <= 9] = instance + 1
    return labels


@cache
def video(counts: tuple[int, ...]) -> bytes:
    """An mp4 of these discs, each noun in its colour."""
    shown = [instances(count, noun) for noun, count in enumerate(counts)]
    frames = np.full((FRAMES, ROWS * 8, COLUMNS * 8, 3), 226, np.uint8)
    for noun, labels in enumerate(shown):
        large = np.kron(labels > 0, np.ones((1, 8, 8), bool))
        for frame in range(FRAMES):
            frames[frame][large[(frame + 3) // 4]] = ((60, 110, 200), (215, 120, 40))[noun]
    return encode_mp4(frames, fps=16, crf=28)


@cache
def layout(found: tuple[int, ...], asked: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What was found, and that with the asked counts."""
    labels = np.stack([instances(count, noun) for noun, count in enumerate(found)])
    refined = np.stack([instances(count, noun) for noun, count in enumerate(asked)])
    regions = np.select(
        [(labels > 0) & (refined > 0), labels > 0, refined > 0],
        [Region.KEEP, Region.REMOVE, Region.ADD_COPY],
        Region.NONE,
    )
    return {"labels": labels, "refined": refined, "regions": regions.astype(np.int8)}


def clips(number: int) -> Iterator[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...] | None]]:
    """Rows of prompts in order, what each video shows, and what was identified."""
    chance = np.random.default_rng(0)
    made = prompt = 0
    while made < number:
        nouns = chance.choice(len(NOUNS), size=1 + int(chance.random() < 0.6), replace=False)
        asked = tuple(int(count) for count in chance.integers(1, 9, size=len(nouns)))
        named = " and ".join(f"{count} {NOUNS[noun]}" for count, noun in zip(asked, nouns, strict=True))
        row = {
            "id": f"prompt-{prompt}",
            "prompt": f"{named} {PLACES[prompt % len(PLACES)]}, seen from window {prompt}",
            "targets": [{"noun": NOUNS[noun], "count": count} for noun, count in zip(nouns, asked, strict=True)],
        }
        wrong = tuple(max(1, count + int(chance.integers(-1, 2))) for count in asked)
        yield row | {"strategy": "baseline", "attempt": 0}, wrong, None
        made += 1
        for attempt in range(3):
            shown = asked if chance.random() < 0.65 else wrong
            yield row | {"strategy": "numina", "attempt": attempt}, shown, wrong
            made += 1
            if shown == asked:
                break
        prompt += 1


def a_row(number: int, start: dict[str, Any], identified: tuple[int, ...] | None) -> dict[str, Any]:
    key = hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()
    chain = hashlib.blake2b(f"{start['prompt']} {start['strategy']}".encode(), digest_size=16).hexdigest()
    seconds = {"identify": 41.5, "guide": 96.0} if identified else {"denoise": 99.0}
    return {
        **start,
        "key": key,
        "chain": chain,
        "strength": 1.0,
        "file_name": f"videos/{key[:2]}/{key}-{'0' * 16}.mp4",
        "sample": 0,
        "seed": 2**62 + number,
        "model": "Wan2.1-T2V-1.3B",
        "width": COLUMNS * 8,
        "height": ROWS * 8,
        "num_frames": FRAMES,
        "fps": 16.0,
        "steps": 50,
        "identified": identified
        and [
            {"noun": target["noun"], "frames": [count] * LATENT_FRAMES, "count": count}
            for target, count in zip(start["targets"], identified, strict=True)
        ],
        "guided": identified is not None,
        "timings": {**seconds, "decode": 4.2, "write": 1.1},
        "gpu_seconds": sum(seconds.values()) + 4.2,
        "retries": int(number % 50 == 0),
        "video_sha256": "0" * 64,
        "committed_at": datetime.fromtimestamp(1.8e9 + number, UTC),
    }


def a_verdict(row: dict[str, Any], shown: tuple[int, ...]) -> dict[str, Any]:
    asked = [target["count"] for target in row["targets"]]
    late = 8 if list(shown) != asked else 0  # frames at the end that show one less
    detected = [
        {"noun": target["noun"], "frames": [count] * (FRAMES - late) + [max(0, count - 1)] * late}
        for target, count in zip(row["targets"], shown, strict=True)
    ]
    shares = [np.mean(np.array(n["frames"]) == count) for n, count in zip(detected, asked, strict=True)]
    return {
        "key": row["key"],
        "judge": "counter",
        "detected": detected,
        "count_accuracy": float(np.mean(shares)),
        "temporal_consistency": 0.98,
        "clip_score": 31.2,
    }


def make_output(folder: Path, number: int) -> Store:
    """An output of so many clips, some more to end the last prompt, with verdicts and failures."""
    store = Store(str(folder), single_writer=True)
    store.open_run({"steps": 50}, asked=number, info={"strategies": list(map(strategy_record, STRATEGIES))})
    layouts, made = dict[Any, bytes](), list[dict[str, Any]]()
    (folder / "evaluations/counter").mkdir(parents=True)
    for place, (start, shown, identified) in enumerate(clips(number)):
        row = a_row(place, start, identified)
        asked = tuple(target["count"] for target in row["targets"])
        if identified is not None:
            if (identified, asked) not in layouts:
                name = store.put_layout(row["key"], layout(identified, asked))
                layouts[identified, asked] = store.read(name)
            row["layout_file"] = f"layouts/{row['key'][:2]}/{row['key']}-{'0' * 16}.npz"
            _put(folder / row["layout_file"], layouts[identified, asked])
        source = folder / f"videos/{'-'.join(map(str, shown))}.mp4"
        if not source.exists():
            _put(source, video(shown))
        (folder / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        os.link(source, folder / row["file_name"])
        verdict = pa.Table.from_pylist([a_verdict(row, shown)], schema=EVALUATION_SCHEMA)
        _put(folder / f"evaluations/counter/{row['key']}.parquet", parquet_bytes(verdict))
        made.append(row)
    for start in range(0, len(made), PER_SEGMENT):
        store.row_files.write_segment([pa.Table.from_pylist(made[start : start + PER_SEGMENT], schema=ROW_SCHEMA)])
    for place in range(number // 100):
        record = {"prompt": f"prompt {place} <b>", "stage": "guide", "error": f"RankDied: rank {place % 8}", "tries": 3}
        store.fail(f"{place:032x}", record)
    return store


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- measuring ---


def build(folder: Path) -> dict[str, float]:
    """Seconds of the verb, and the most memory that its process had."""
    began = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", "cluster.cli", "report", str(folder)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    if process.wait() != 0:
        raise SystemExit(f"building the report of {folder} failed")
    return {"build_seconds": round(seconds, 1), "build_mb": round(peak / 2**20)}


def on_disk(folder: Path) -> dict[str, float]:
    """Megabytes of the report, and of what a reader loads first."""
    page, data = folder / "report.html", list((folder / "report").iterdir())
    first = [file for file in data if not file.name.startswith(("chunk", "failures"))]
    megabytes = {"disk_mb": [page, *data], "first_mb": [page, *first]}
    return {name: round(sum(file.stat().st_size for file in files) / 2**20, 2) for name, files in megabytes.items()}


def opened(folder: Path) -> Iterator[dict[str, Any]]:
    """What a reader waits for, and what the tab holds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        page.goto((folder / "report.html").resolve().as_uri(), wait_until="commit")
        page.wait_for_selector(".prompt .badge")  # the controls are ready before the prompts
        page.evaluate("new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))")
        yield {"open_seconds": round(time.perf_counter() - began, 2)}
        page.wait_for_timeout(3000)
        yield {"after": "opening", **_memory(page)}
        began = time.perf_counter()
        page.fill("#bar [name=q]", "window 77")
        page.wait_for_selector("#found:text(' of ')")
        yield {"search_seconds": round(time.perf_counter() - began, 2)}
        page.goto((folder / "report.html").resolve().as_uri() + "#order=worst")
        page.locator("#prompts").focus()  # keys typed into the search are text
        slowest = 0.0
        for _ in range(30):
            began, before = time.perf_counter(), page.locator(".prompt h2").first.get_attribute("id")
            page.keyboard.press("n")
            page.wait_for_selector(f".prompt:first-child h2:not(#{before})")
            slowest = max(slowest, time.perf_counter() - began)
        yield {"slowest_page_seconds": round(slowest, 2)}
        yield {"after": "30 pages from all over", **_memory(page)}
        page.wait_for_timeout(30_000)  # the browser collects what it left lying when it has nothing to do
        yield {"after": "30 idle seconds", **_memory(page)}
        browser.close()


def _memory(page: Any) -> dict[str, float]:
    """The tab's renderer (PSS: shared pages are shared out among the processes) and its JavaScript, in MB."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    renderers = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "--type=renderer" in process.cmdline():
                renderers.append(process.memory_full_info())
        except psutil.NoSuchProcess:
            continue
    return {
        "tab_pss_mb": round(max(memory.pss for memory in renderers) / 2**20),
        "tab_rss_mb": round(max(memory.rss for memory in renderers) / 2**20),
        "js_heap_mb": round(metrics["JSHeapUsedSize"] / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=10_000)
    options = parser.parse_args()
    if not options.folder.exists():
        began = time.perf_counter()
        make_output(options.folder, options.clips)
        print(json.dumps({"made_seconds": round(time.perf_counter() - began)}), flush=True)
    print(json.dumps(build(options.folder)), flush=True)
    print(json.dumps(on_disk(options.folder)), flush=True)
    for measured in opened(options.folder):
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
