"""What `model.dtype=float8` does to counts: the embedded models in 8 bits, part by part, beside bfloat16 and float32.

    python -m tests.benchmarks.fast --prompts 200
    python -m tests.benchmarks.fast --config scenes --prompts 96

Each variant makes the plain clip and the corrected one of the same noise. Printed per variant: identified counts equal
to bfloat16's, plain clips that count as bfloat16's, PSNR of plain clips against bfloat16's [dB, median], read right,
CountAcc of plain and corrected clips, and the difference of the latter to bfloat16's with its 95 % interval. What
bfloat16 differs in from float32 says what any rounding does. Needs a Hopper GPU, fa3-fwd and torchao.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cluster.job.config import JobConfig, load_job
from pipelines.attention.engines import parallelize
from pipelines.attention.kernels import FLASH_3, FLASH_3_FP8
from pipelines.base import VideoModel
from pipelines.checkpoints.quantize import KEPT, quantize
from pipelines.parallel.config import ParallelConfig
from pipelines.testbed.worlds import MODELS, WORLDS
from tests.benchmarks.counting import Bench, Result, difference, mean, shares
from tests.benchmarks.jobs import job_model

BASE = "bfloat16"
# how each variant's model is made from one in half precision (float32: as it is), and its attention
VARIANTS: dict[str, tuple[tuple[str, ...] | None, str]] = {
    BASE: (None, FLASH_3),
    "float32": (None, "auto"),
    "all linear layers": ((), FLASH_3),
    "all but cross-attention's": (KEPT, FLASH_3),
    "attention alone": (None, FLASH_3_FP8),
    "all but cross-attention's, attention": (KEPT, FLASH_3_FP8),
}


def made(name: str, job: JobConfig) -> VideoModel:
    kept, attention = VARIANTS[name]
    dtype = "float32" if name == "float32" else "bfloat16"
    model = job_model(replace(job, model=replace(job.model, dtype=dtype)), "cuda")
    if kept is not None:
        quantize(model.blocks, kept)
    parallelize(model, ParallelConfig(attention=attention))
    return model


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean(np.square(one.astype(np.float32) - other)))
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="testbed")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    job = load_job(options.config, ["strategies=[baseline,numina]"])
    world = MODELS.get(job.model.path, WORLDS["shapes"])
    items = shares(options.prompts, 1, 0, 1, None, world)[0]
    found: dict[str, list[Result]] = {}
    plain: dict[str, list[np.ndarray]] = {}
    columns: list[tuple[str, Callable[[str], float]]] = [
        ("same reads", lambda name: mean(float(a.identified == b.identified) for a, b in pairs(name, True))),
        ("same clips", lambda name: mean(float(a.true == b.true) for a, b in pairs(name, False))),
        ("PSNR", lambda name: float(np.median([psnr(*two) for two in zip(plain[name], plain[BASE], strict=True)]))),
        ("read right", lambda name: mean(float(r.identified == r.plain_true) for r, _ in pairs(name, True))),
        ("plain", lambda name: mean(r.accuracy for r, _ in pairs(name, False))),
        ("corrected", lambda name: mean(r.accuracy for r, _ in pairs(name, True))),
    ]

    def pairs(name: str, corrected: bool) -> list[tuple[Result, Result]]:
        chosen = [[r for r in found[own] if (r.variant != "plain") == corrected] for own in (name, BASE)]
        return list(zip(*chosen, strict=True))

    print(f"{'':37}" + "".join(f"{title:>12}" for title, _ in columns) + "  against bfloat16")
    for name in dict.fromkeys([BASE, *options.only]):
        model, results, clips = made(name, job), list[Result](), list[np.ndarray]()
        for first in range(0, len(items), options.batch):
            bench = Bench(model, job, items[first : first + options.batch], 0)
            results += bench.results()
            clips += list(bench.plain)
        found[name] = sorted(results, key=lambda r: (r.variant, r.number))
        plain[name] = clips
        own, base = (list(two) for two in zip(*pairs(name, True), strict=True))
        cells = "".join(f"{cell(name):12.3f}" for _, cell in columns)
        print(f"{name:37}{cells}  {difference(own, base) if name != BASE else ''}", flush=True)


if __name__ == "__main__":
    main()
