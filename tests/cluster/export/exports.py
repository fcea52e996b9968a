"""A small output to export: two samples of three prompts by two strategies, judged by one judge."""

from pathlib import Path
from typing import Any

import numpy as np

from cluster.dataset.store import Store
from cluster.job.strategy import Strategy, strategy_record
from numina.prompts.targets import Target, parse_targets
from pipelines.video.mp4 import encode_mp4
from tests.cluster.tasks import row_key

FRAMES, SIZE = 5, 32
PROMPTS = ("Three cats chasing two dogs.", "A lone fox / at dusk.", "Four owls, seen from above.")


def clip(seed: int) -> bytes:
    """A moving picture of its own for each seed."""
    rng = np.random.default_rng(seed)
    return encode_mp4(rng.integers(0, 255, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8), fps=8, crf=30)


def an_output(root: Path, *, samples: int = 2, strategies: tuple[str, ...] = ("baseline", "numina")) -> Store:
    """Of `numina` every clip is accepted, of `baseline` those of the first prompt."""
    store = Store(str(root))
    asked = [strategy_record(Strategy(name=name, base=name)) for name in strategies]
    store.open_run({"steps": 4}, asked=len(PROMPTS) * samples * len(strategies), info={"strategies": asked})
    for number, prompt in enumerate(PROMPTS, start=1):
        for sample in range(samples):
            for strategy in strategies:
                row = a_row(store, number, prompt, sample, strategy)
                right = strategy == "numina" or number == 1
                store.commit(row | {"extra": {"source": "made", "clip_file_name": f"{number}.mov"}})
                store.put_evaluation("counter", row["key"], a_verdict(row["targets"], right))
    return store


def a_row(store: Store, number: int, prompt: str, sample: int, strategy: str) -> dict[str, Any]:
    """A row with its video stored."""
    targets, seed = parse_targets(prompt), 10 * number + sample
    key = row_key(
        prompt=prompt,
        negative_prompt=None,
        targets=targets,
        seed=seed,
        config={"strategy": strategy},
        model_revision="r",
        algorithm_version=1,
    )
    name, digest = store.put_video(key, clip(seed + 1000 * (strategy == "numina")))
    return {
        "key": key,
        "id": f"{number:03d}",
        "file_name": name,
        "video_sha256": digest,
        "prompt": prompt,
        "targets": targets,
        "strategy": strategy,
        "sample": sample,
        "attempt": 0,
        "strength": 1.0,
        "chain": key,
        "seed": seed,
        "model": "tiny",
        "model_revision": "r" * 40,
        "width": SIZE,
        "height": SIZE,
        "num_frames": FRAMES,
        "fps": 8.0,
        "steps": 4,
        "gpu_seconds": 2.0,
    }


def a_verdict(targets: tuple[Target, ...], right: bool) -> dict[str, Any]:
    """Exactly what was asked in every frame, or one thing more."""
    detected = [{"noun": target.noun, "frames": [target.count + (not right)] * FRAMES} for target in targets]
    return {"detected": detected, "count_accuracy": float(right)}
