"""An atlas of the embedded model's maps: what the fused reading needs of many clips, with their true counts.

    python -m tests.benchmarks.atlas collect --prompts 100 --samples 2 --seed 4242 --workers 8 --output a.safetensors
    python -m tests.benchmarks.atlas collect --steps 8 --prompts 100 --samples 2 --seed 7777 --output b.safetensors
    python -m tests.benchmarks.atlas collect --config scenes --prompts 75 --samples 2 --batch 9 --output c.safetensors
    python -m tests.benchmarks.atlas collect --config scenes --set step=0.6 --prompts 50 --output later.safetensors
    python -m tests.benchmarks.atlas read a.safetensors [--set evidence=0.4 extent=0.5]
    python -m tests.benchmarks.atlas wrong a.safetensors

`collect` generates plain clips on a GPU and keeps of each the normalised responses to its nouns and the chosen
coordinates at t*, in 8 bits each (18 kB a clip of shapes, 43 kB of scenes), and the exact counter's counts of every
frame. `read` prints the share of clips whose
read counts are the true ones, on a CPU in seconds, the same by confidence, and who is wrong by how much; `wrong` lists
these clips.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from cluster.job.config import JobConfig, load_job
from numina.config import IdentifyConfig
from numina.layout import Capture, identify_layout
from numina.prompts.tokens import locate_tokens
from pipelines.models.registry import resolve_device
from pipelines.parallel.shard import ALONE
from pipelines.sampling import denoise
from pipelines.testbed.worlds import MODELS
from tests.benchmarks.counting import Item, commonest, mean, shares
from tests.benchmarks.jobs import job_model
from tests.benchmarks.reading import value

NOUNS = 3  # at most, in any world's prompts
SURE = 0.8  # a confidence, for which `read` says how many clips below and above it are read right
STEPS = 127  # of a whole: what is kept in 8 bits


def collect(items: Sequence[Item], job: JobConfig, device: str, batch: int) -> dict[str, Any]:
    """Captures and true counts of some clips; of nouns that a prompt hasn't, zeros and -1."""
    torch.set_num_threads(1)
    model = job_model(job, device)
    rows: dict[str, list] = {}
    for first in range(0, len(items), batch):
        chosen = items[first : first + batch]
        texts = model.encode([item.prompt.text for item in chosen], [""] * len(chosen), job.generation)
        spans = [locate_tokens(t.prompt, item.targets, t.offsets) for t, item in zip(texts, chosen, strict=True)]
        seeds = [item.seed for item in chosen]
        state, captures = denoise.identify(model, ALONE, texts, spans, seeds, job.generation, job.method)
        latents = denoise.finish(model, state, texts, job.generation)
        with torch.inference_mode():
            videos = model.decode(latents).pixels.numpy()
        for item, capture, video in zip(chosen, captures, videos, strict=True):
            counts = np.full((len(video), NOUNS), -1, np.int16)
            counts[:, : len(item.targets)] = item.count(video)
            found = kept(capture) | {"counts": counts, "numbers": item.number, "seeds": item.seed}
            for name, array in found.items():
                rows.setdefault(name, []).append(array)
    return {name: np.stack(values) for name, values in rows.items()}


def kept(capture: Capture) -> dict[str, np.ndarray]:
    """A clip's capture in 8 bits; of nouns that its prompt hasn't, zeros."""
    shares, coordinates = (np.asarray(own, np.float32) for own in (capture.responses, capture.coordinates))
    padded = np.zeros((NOUNS, *shares.shape[1:]), np.int8)
    padded[: len(shares)] = np.round(STEPS * np.clip(shares, -1, 1))
    peaks = np.zeros(NOUNS, np.float32)
    peaks[: len(shares)] = capture.peaks
    scales = np.maximum(np.abs(coordinates).max(axis=(0, 1, 2)) / STEPS, 1e-12)
    return {
        "shares": padded,
        "peaks": peaks,
        "coordinates": np.round(coordinates / scales).astype(np.int8),
        "scales": scales.astype(np.float32),
    }


def capture_of(atlas: dict[str, np.ndarray], clip: int) -> Capture:
    """What was kept of a clip, as the reading takes it."""
    nouns = int((atlas["counts"][clip][0] >= 0).sum())
    shares = (atlas["shares"][clip, :nouns] / np.float32(STEPS)).astype(np.float16)
    coordinates = (atlas["coordinates"][clip] * atlas["scales"][clip]).astype(np.float16)
    return Capture(shares, None, coordinates, atlas["peaks"][clip, :nouns])


def read(atlas: dict[str, np.ndarray], config: IdentifyConfig) -> list[tuple[list[int], list[int], float]]:
    """True and read counts of every clip, and the lowest confidence of its nouns."""
    found = []
    for clip, counts in enumerate(atlas["counts"]):
        layout = identify_layout(capture_of(atlas, clip), config)
        true = list(map(int, commonest(counts[:, counts[0] >= 0])))
        sure = 1.0 if layout.confidence is None else float(min(layout.confidence))
        found.append((true, list(map(int, layout.clip_counts())), sure))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["collect", "read", "wrong"])
    parser.add_argument("atlas", type=Path, nargs="?")
    parser.add_argument("--config", default="testbed", help="testbed or scenes")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7777)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="*", default=[], help="setting=value of identify; collect: step, blocks")
    options = parser.parse_args()
    changes = dict(setting.partition("=")[::2] for setting in options.set)
    job = load_job(
        options.config,
        [
            "method.preset=fused",
            f"generation.steps={options.steps}",
            *(f"method.identify.{name}={text}" for name, text in changes.items()),
        ],
    )
    if options.command == "collect":
        work = partial(collect, job=job, device=resolve_device(options.device), batch=options.batch)
        world = MODELS[job.model.path]
        dealt = shares(options.prompts, options.samples, options.seed, options.workers, world=world)
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(work, dealt))
        save_file({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, options.output)
        return
    atlas = load_file(options.atlas)
    method = job.method.scaled_to(atlas["shares"][0, 0, 0].size)
    config = replace(method.identify, **{name: value(text) for name, text in changes.items()})
    began = time.perf_counter()
    found = read(atlas, config)
    seconds = (time.perf_counter() - began) / len(found)
    print(f"{mean(float(true == got) for true, got, _ in found):.3f} of {len(found)} clips, {seconds:.3f} s a clip")
    for name, own in (
        ("below", [f for f in found if f[2] < SURE]),
        ("from there on", [f for f in found if f[2] >= SURE]),
    ):
        right = mean(float(true == got) for true, got, _ in own) if own else float("nan")
        print(f"confidence of {SURE}, {name}: {right:.3f} of {len(own)} clips")
    print(Counter(got - true for *pair, _ in found for true, got in zip(*pair, strict=True)))
    if options.command == "wrong":
        for number, (true, got, _) in enumerate(found):
            if true != got:
                print(number, true, got)


if __name__ == "__main__":
    main()
