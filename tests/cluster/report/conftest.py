"""Outputs with real videos and layouts, their reports, and one headless Chromium that looks at them."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.dataset.store import Store
from cluster.job.strategy import ACCEPTED, Strategy, strategy_record
from cluster.report import build_report
from numina.regions import Region
from pipelines.video.mp4 import encode_mp4

LATENT_FRAMES, FRAMES, GRID, SCALE = 5, 17, 16, 8
HOSTILE = '<img src=x onerror="alert(1)"></script><script>alert(2)</script> three cats & two dogs \u2028 {{ sofa }}'
MANY = 1500  # prompts that nobody generated
STRATEGIES = (
    Strategy(name="baseline", base="baseline"),
    Strategy(name="numina", base="numina"),
    Strategy(name="numina+verified", base="numina", strengths=(1.0, 1.0), select=ACCEPTED),
)


def discs(count: int, offset: int) -> np.ndarray:
    """Instances 1 to `count` of one noun as int16 [F, H, W], moving to the right."""
    labels = np.zeros((LATENT_FRAMES, GRID, GRID), np.int16)
    rows, columns = np.mgrid[:GRID, :GRID]
    for frame in range(LATENT_FRAMES):
        for instance in range(count):
            y, x = 3 + 5 * (instance // 3) + offset, 2 + 5 * (instance % 3) + frame // 2
            labels[frame][(rows - y) ** 2 + (columns - x) ** 2 <= 4] = instance + 1
    return labels


def a_video(labels: np.ndarray) -> bytes:
    """An mp4 at 8 frames a second that shows the instances of labels [nouns, F, H, W]."""
    video = np.full((FRAMES, GRID * SCALE, GRID * SCALE, 3), 40, np.uint8)
    for noun, colour in zip(labels, ((220, 60, 50), (60, 120, 230)), strict=False):
        for frame in range(FRAMES):
            video[frame][np.kron(noun[(frame + 3) // 4] > 0, np.ones((SCALE, SCALE), bool))] = colour
    return encode_mp4(video, fps=8, crf=23)


def put_clip(store: Store, prompt: str, targets: Mapping[str, int], shown: Mapping[str, int], **columns: Any) -> str:
    """A clip that shows other counts than asked for, with its layout where NUMINA made it; its key."""
    strategy, attempt = columns.get("strategy", "baseline"), columns.get("attempt", 0)
    key = hashlib.blake2b(f"{prompt}{strategy}{attempt}".encode(), digest_size=16).hexdigest()
    found = np.stack([discs(count + 1, 7 * noun) for noun, count in enumerate(targets.values())])
    file_name, sha256 = store.put_video(key, a_video(np.stack([discs(c, 7 * n) for n, c in enumerate(shown.values())])))
    row: dict[str, Any] = {
        "key": key,
        "chain": hashlib.blake2b(f"{prompt}{strategy}".encode(), digest_size=16).hexdigest(),
        "attempt": attempt,
        "strength": 1.0,
        "file_name": file_name,
        "video_sha256": sha256,
        "prompt": prompt,
        "targets": [{"noun": noun, "count": count} for noun, count in targets.items()],
        "strategy": strategy,
        "seed": 2**62 + 1 + attempt,
        "sample": 0,
        "model": "testbed",
        "fps": 8,
        "num_frames": FRAMES,
        "width": GRID * SCALE,
        "height": GRID * SCALE,
        "timings": {"denoise": 12.5, "decode": 0.5},
        "gpu_seconds": 13.0,
        "guided": strategy != "baseline",
    }
    if strategy != "baseline":
        refined = np.stack([discs(count, 7 * noun) for noun, count in enumerate(targets.values())])
        regions = np.where(refined > 0, Region.KEEP, np.where(found > 0, Region.REMOVE, Region.NONE)).astype(np.int8)
        row["layout_file"] = store.put_layout(key, {"labels": found, "refined": refined, "regions": regions})
        row["identified"] = [
            {"noun": noun, "frames": [count + 1] * LATENT_FRAMES, "count": count + 1} for noun, count in targets.items()
        ]
        row["shortfall"] = [0] * len(targets)
    store.commit(row | columns)
    return key


def judge(store: Store, name: str, key: str, targets: Mapping[str, int], shown: Mapping[str, int] | None) -> None:
    """A judge that sees `shown` in every frame, or no video."""
    detected = shown and [{"noun": noun, "frames": [count] * FRAMES} for noun, count in shown.items()]
    right = np.mean([shown[noun] == count for noun, count in targets.items()]) if shown else 0.0
    problem = None if shown else "unreadable: no frames"
    store.put_evaluation(name, key, {"detected": detected, "count_accuracy": float(right), "problem": problem})


def make_output(root: Path) -> Store:
    """A hostile prompt, one with attempts, one whose videos are lost or torn, and two failures of one reason."""
    store = Store(str(root))
    store.open_run({"steps": 25}, asked=9, info={"strategies": list(map(strategy_record, STRATEGIES))})
    cases: list[tuple[str, str, dict[str, int], list[tuple[str, int, dict[str, int]]]]] = [
        (
            "p1",
            HOSTILE,
            {"cats": 3, "dogs": 2},
            [("baseline", 0, {"cats": 4, "dogs": 3}), ("numina", 0, {"cats": 3, "dogs": 2})],
        ),
        (
            "p2",
            "four birds",
            {"birds": 4},
            [("baseline", 0, {"birds": 5}), ("numina", 0, {"birds": 6}), ("numina", 1, {"birds": 4})],
        ),
        ("p10", "one lost owl", {"owl": 1}, [("baseline", 0, {"owl": 1}), ("numina", 0, {"owl": 1})]),
    ]
    for id, prompt, targets, made in cases:
        for strategy, attempt, shown in made:
            key = put_clip(store, prompt, targets, shown, id=id, strategy=strategy, attempt=attempt)
            judge(store, "counter", key, targets, None if id == "p10" and strategy == "numina" else shown)
            judge(store, "detector", key, targets, {noun: count + 1 for noun, count in shown.items()})
    (lost,) = [row for row in store.rows().to_pylist() if row["id"] == "p10" and row["strategy"] == "baseline"]
    (root / lost["file_name"]).unlink()
    for number in range(2):
        record = {"prompt": "five <b>owls</b>", "error": f"RankDied: rank {number} <i>", "stage": "guide", "tries": 3}
        store.fail(f"{number:032x}", record)
    return store


def make_large(root: Path) -> Store:
    """Many prompts as rows and verdicts alone: their videos are missing."""
    store = Store(str(root), single_writer=True)
    store.open_run({"steps": 25}, asked=MANY)
    rows = [
        {
            "key": f"{number:032x}",
            "id": f"many-{number}",
            "file_name": f"videos/{number:032x}.mp4",
            "video_sha256": "0" * 64,
            "prompt": f"{number % 7 + 1} {('cats', 'dogs')[number % 2]} in room {number}",
            "targets": [{"noun": ("cats", "dogs")[number % 2], "count": number % 7 + 1}],
            "strategy": "baseline",
            "seed": number,
        }
        for number in range(MANY)
    ]
    import pyarrow as pa

    from cluster.rows import ROW_SCHEMA

    store.row_files.write_segment([pa.Table.from_pylist(rows, schema=ROW_SCHEMA)])
    return store


@pytest.fixture(scope="package")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("my out")
    make_output(root)
    return root


@pytest.fixture(scope="package")
def page(output: Path) -> Path:
    """The report of `output`."""
    return build_report(output)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """A headless browser: Debian's, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium isn't installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
