"""What a layout costs on one CPU core: seconds per clip, by preset and part, on synthetic captures of true shape.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.layout_cost [--frames 21 --height 30 --width 52 --nouns 2 --repeats 3]

The defaults are a 480p clip of 81 frames. Every noun has four blobs on straight paths; the self-attention image shows
each in its own colour, its affinity each in its own direction. `identify` reads the layout, `remove` and `add` refine
it to two instances fewer and two more, `crowd` to 100 of every noun, more than there is room for. A cell is the fastest
of the repeats.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from numina.affinity import KEPT
from numina.config import MethodConfig
from numina.layout import Capture, Layout, identify_layout
from numina.refine import refine

BLOBS = 4  # per noun
PRESETS = Path(__file__).parents[2] / "configs" / "method"


def moving_blobs(frames: int, height: int, width: int, nouns: int, seed: int = 0) -> Capture:
    """A capture of soft blobs on straight paths, with noise: responses 1 on a noun's, a colour and direction each."""
    random = np.random.default_rng(seed)
    radius = min(height, width) / 10
    row, column = np.mgrid[:height, :width]
    responses = 0.04 * random.random((nouns, frames, height, width))
    image = np.full((frames, height, width, 3), 0.15)
    coordinates = random.normal(0, 0.3, (frames, height, width, KEPT))
    for blob in range(nouns * BLOBS):
        across, down = blob % BLOBS, blob // BLOBS
        start = np.array([(down + 0.5) * height / nouns, (across + 0.5) * width / BLOBS])
        drift, colour = random.uniform(-radius, radius, 2), random.uniform(0.3, 1.0, 3)
        direction = random.normal(0, 1, KEPT)
        for frame in range(frames):
            place = start + drift * frame / max(1, frames - 1)
            inside = np.exp(-((((row - place[0]) ** 2 + (column - place[1]) ** 2) / radius**2) ** 2))
            responses[down, frame] = np.maximum(responses[down, frame], inside)
            image[frame] += inside[..., None] * (colour - image[frame])
            coordinates[frame] += inside[..., None] * direction
    image = np.clip(image + random.normal(0, 0.03, image.shape), 0, 1)
    peaks = np.ones(nouns, np.float32)
    return Capture(responses.astype(np.float32), image.astype(np.float32), coordinates.astype(np.float16), peaks)


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def costs(capture: Capture, method: MethodConfig, repeats: int) -> dict[str, float]:
    """Seconds per clip of every part."""
    seconds = {"identify": fastest(lambda: identify_layout(capture, method.identify), repeats)}
    layout: Layout = identify_layout(capture, method.identify)
    found = layout.clip_counts().tolist()
    for part, asked in (
        ("remove", [max(0, count - 2) for count in found]),
        ("add", [count + 2 for count in found]),
        ("crowd", [100] * len(found)),
    ):
        seconds[part] = fastest(lambda asked=asked: refine(layout, asked, method.refine), repeats)  # type: ignore[misc]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=21, help="latent frames")
    parser.add_argument("--height", type=int, default=30, help="tokens")
    parser.add_argument("--width", type=int, default=52, help="tokens")
    parser.add_argument("--nouns", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--presets", nargs="*", default=["fused", "closed", "paper", "released"])
    options = parser.parse_args()

    capture = moving_blobs(options.frames, options.height, options.width, options.nouns)
    print("  ".join(f"{name:>9}" for name in ("preset", "counts", "identify", "remove", "add", "crowd")))
    for preset in options.presets:
        loaded = OmegaConf.merge(OmegaConf.structured(MethodConfig), OmegaConf.load(PRESETS / f"{preset}.yaml"))
        method = OmegaConf.to_object(loaded)
        assert isinstance(method, MethodConfig)
        method = method.scaled_to(options.height * options.width)
        counts = identify_layout(capture, method.identify).clip_counts().tolist()
        cells = [f"{seconds:9.3f}" for seconds in costs(capture, method, options.repeats).values()]
        print("  ".join([f"{preset:>9}", f"{'+'.join(map(str, counts)):>9}", *cells]))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"seconds per clip of {options.frames} frames of {options.height} x {options.width} tokens, "
        f"{options.nouns} nouns, OMP_NUM_THREADS={threads}, {platform.machine()}, numpy {np.__version__}"
    )


if __name__ == "__main__":
    main()
