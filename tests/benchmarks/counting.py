"""How well counts come right on the embedded model: plain against guided, by preset, on held-out prompts.

    python -m tests.benchmarks.counting --prompts 100 --presets paper closed [--workers 8] [--device cuda]

Prints CountAcc over all frames (exact counter: colour and shape) overall, per asked count and per number of nouns, and
the share of clips whose identified counts equal the plain video's true ones. Fixed prompts and seeds; every clip of a
prompt starts from the same noise. `--set NAME:key=value,key=value` adds a variant of the last preset.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from cluster.job import JobConfig, load_job
from numina.correct import correct
from numina.metrics import count_accuracy
from numina.prompts import Target
from pipelines.generate import ClipGenerator
from pipelines.registry import load_model, resolve_device
from pipelines.testbed import counter
from pipelines.testbed.world import Prompt, heldout_prompts


@dataclass(frozen=True)
class Result:
    """One clip of one variant; counts are per noun."""

    index: int  # of the prompt
    prompt: str
    variant: str
    asked: tuple[int, ...]
    true: tuple[int, ...]  # of this clip: the commonest count over its frames
    accuracy: float  # CountAcc over all frames
    identified: tuple[int, ...] | None
    plain_true: tuple[int, ...]  # of the plain clip from the same noise
    guided: bool
    shortfall: int
    change_outside: float  # mean absolute change against the plain clip outside edited regions, in grey levels


def commonest(counts: np.ndarray) -> tuple[int, ...]:
    """The commonest count over the frames, per noun, of counts [frames, nouns]."""
    return tuple(Counter(column.tolist()).most_common(1)[0][0] for column in counts.T)


def outside_change(video: np.ndarray, plain: np.ndarray, regions: np.ndarray) -> float:
    """Mean |video − plain| where no instance is removed or added; regions [nouns, F, H, W], dilated by one token."""
    edited = np.isin(regions, (2, 3, 4)).any(axis=0)
    grown = edited.copy()
    for axis in (1, 2):
        for shift in (-1, 1):
            grown |= np.roll(edited, shift, axis)
    frames, height, width, _ = video.shape
    latent = np.minimum((np.arange(frames) + 3) // 4, len(grown) - 1)
    mask = grown[latent].repeat(height // grown.shape[1], 1).repeat(width // grown.shape[2], 2)
    change = np.abs(video.astype(np.float32) - plain).mean(-1)
    return float(change[~mask].mean())


def run(prompts: Sequence[tuple[int, Prompt]], jobs: dict[str, JobConfig], device: str) -> list[Result]:
    """All variants of some prompts, in one process."""
    torch.set_num_threads(1)
    base = next(iter(jobs.values()))
    worker = ClipGenerator(load_model(base.model.path, device=device), base.generation)
    results = []
    for seed, prompt in prompts:
        targets = [Target(target.noun, target.count) for target in prompt.targets]
        asked = tuple(target.count for target in targets)
        phrases = [(target.colour, target.shape) for target in prompt.targets]
        plain = worker.plain(prompt.text, None, seed)
        assert plain is not None
        counts = counter.count(plain.video, phrases)
        plain_true = commonest(counts)
        accuracy = count_accuracy(counts, asked)
        results.append(Result(seed, prompt.text, "plain", asked, plain_true, accuracy, None, plain_true, False, 0, 0.0))
        for name, job in jobs.items():
            seen = worker.identify(name, prompt.text, None, targets, seed, job.method)
            correction = correct(seen.capture, targets, seen.spans, job.method)
            identified = tuple(int(count) for count in correction.identified.clip_counts())
            clip, shortfall, change = plain, 0, 0.0
            if correction.plan is None:
                worker.drop(name)  # going on is bit-equal to the plain clip
            else:
                clip = worker.guide(name, correction.plan)
                assert clip is not None
                shortfall = sum(correction.refinement.shortfall)
                change = outside_change(clip.video, plain.video, correction.plan.regions)
            counts = counter.count(clip.video, phrases)
            results.append(
                Result(
                    seed,
                    prompt.text,
                    name,
                    asked,
                    commonest(counts),
                    count_accuracy(counts, asked),
                    identified,
                    plain_true,
                    correction.plan is not None,
                    shortfall,
                    change,
                )
            )
    return results


def summarise(results: Sequence[Result]) -> None:
    """The table: one line per variant."""
    plain = {result.index: result for result in results if result.variant == "plain"}
    header = ["variant", "CountAcc", "1 noun", "2 nouns", *(f"n={n}" for n in range(1, 7))]
    header += ["ident.", "many→ok", "few→ok", "ok→ok", "guided", "short", "outside"]
    print("  ".join(f"{name:>9}" for name in header))
    for variant in dict.fromkeys(result.variant for result in results):
        own = [result for result in results if result.variant == variant]
        by_count = [
            mean(float(true == asked) for r in own for asked, true in zip(r.asked, r.true, strict=True) if asked == n)
            for n in range(1, 7)
        ]
        before = [(r, *pair) for r in own for pair in zip(r.asked, plain[r.index].true, r.true, strict=True)]
        cells = [
            mean(r.accuracy for r in own),
            mean(r.accuracy for r in own if len(r.asked) == 1),
            mean(r.accuracy for r in own if len(r.asked) == 2),
            *by_count,
            mean(float(r.identified == r.plain_true) for r in own if r.identified is not None),
            mean(float(after == asked) for _, asked, was, after in before if was > asked),
            mean(float(after == asked) for _, asked, was, after in before if was < asked),
            mean(float(after == asked) for _, asked, was, after in before if was == asked),
            mean(float(r.guided) for r in own),
            float(sum(r.shortfall for r in own)),
            mean(r.change_outside for r in own if r.guided),
        ]
        print("  ".join([f"{variant:>9}", *(f"{cell:>9.3f}" for cell in cells)]))


def mean(values) -> float:
    """The mean, nan of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts; a clip's noise is seeded with its number")
    parser.add_argument("--presets", nargs="*", default=["paper", "closed"])
    parser.add_argument("--set", nargs="*", default=[], help="NAME:key=value,… variants of the last preset's method")
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="key=value of the whole job, e.g. generation.steps=50"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--output", type=Path, help="results as JSON lines")
    options = parser.parse_args()

    common = [f"model.path={options.model}", *options.overrides]
    jobs = {name: load_job("testbed", [*common, f"method.preset={name}"]) for name in options.presets}
    for variant in options.set:
        name, _, pairs = variant.partition(":")
        overrides = [f"method.{pair}" for pair in pairs.split(",")]
        jobs[name] = load_job("testbed", [*common, f"method.preset={options.presets[-1]}", *overrides])
    prompts = list(enumerate(heldout_prompts(options.prompts, options.seed)))
    began = time.perf_counter()
    shares = [prompts[worker :: options.workers] for worker in range(options.workers)]
    work = partial(run, jobs=jobs, device=resolve_device(options.device))
    if options.workers == 1:
        results = work(prompts)
    else:
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            results = [result for share in pool.map(work, shares) for result in share]
    if options.output:
        options.output.write_text("".join(json.dumps(vars(result)) + "\n" for result in results))
    summarise(results)
    seconds = time.perf_counter() - began
    print(f"{len(prompts)} prompts, {seconds:.0f} s, {options.workers} workers, torch {torch.__version__}")


if __name__ == "__main__":
    main()
