"""How well counts come right on an embedded model: plain against guided, variant by variant, on held-out prompts.

    python -m tests.benchmarks.counting --prompts 200 --samples 2 --config study --workers 12 --batch 32

The variants are those of a job file (`variants:`, lists make a grid): `numina run --config study` makes the same clips
as a dataset. Here clips share their plain run and, where settings of the reading are equal, their identification.

Prints CountAcc over all frames (exact counter: colour and shape) overall, per asked count and per number of nouns; the
share of clips whose identified counts equal the plain video's true ones; what became of right and wrong targets; what
changed outside edited regions, against the change between the plain clip and one of `--reference-steps`; what a
corrected clip costs in plain ones, by forwards of the transformer; the share of clips that a verified strategy would
accept, and the plain clips that one of these costs; and the difference to the first variant with its 95 % bootstrap
interval over prompts. Fixed prompts and seeds; every clip of a
prompt and sample starts from the same noise.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

from cluster.job.config import JobConfig, load_job
from cluster.job.strategy import ACCEPT
from numina.config import MethodConfig
from numina.correct import correct
from numina.metrics import all_frames_exact, count_accuracy, count_stability
from numina.prompts.targets import Target
from numina.prompts.tokens import locate_tokens
from numina.regions import edited
from pipelines.base import GenerationConfig, VideoModel
from pipelines.models.registry import resolve_device
from pipelines.parallel.shard import Shard
from pipelines.sampling import denoise
from pipelines.sampling.cache import clip_forwards, forwards
from pipelines.testbed import counter
from pipelines.testbed.world import Prompt
from pipelines.testbed.worlds import MODELS, WORLDS, World
from tests.benchmarks.jobs import job_model

CAPTURE_FIELDS = (
    *("step", "stride", "cache", "block", "blocks", "combine", "source", "tokens", "head"),
    *("contrast_weight", "structure_weight", "edge_weight", "structure_blocks"),
)
"""Settings of identification that decide what is captured; the others decide what the layout makes of it."""
SAMPLE_SEEDS = 100_000  # a clip's noise is seeded with its prompt's number + this × the sample


@dataclass(frozen=True)
class Item:
    """One clip to be made in all variants."""

    number: int  # of the prompt
    seed: int
    prompt: Prompt

    @property
    def targets(self) -> list[Target]:
        return [Target(target.noun, target.count) for target in self.prompt.targets]

    def count(self, video: np.ndarray) -> np.ndarray:
        return counter.count(video, [(target.colour, target.shape) for target in self.prompt.targets])


@dataclass(frozen=True)
class Result:
    """One clip of one variant; counts are per noun."""

    number: int
    seed: int
    prompt: str
    variant: str
    asked: tuple[int, ...]
    true: tuple[int, ...]  # of this clip: the commonest count over its frames
    accuracy: float  # CountAcc over all frames
    exact: float  # 1 where all frames and nouns are right
    stability: float  # share of neighbouring frames whose count doesn't change
    motion: float  # mean absolute difference of neighbouring frames, in grey levels
    identified: tuple[int, ...] | None
    plain_true: tuple[int, ...]  # of the plain clip from the same noise
    guided: bool
    shortfall: int
    change_outside: float  # mean absolute change against the plain clip outside edited regions, in grey levels
    change_reference: float  # the same pixels, between the plain clip and one of more steps
    forwards: int  # of the transformer that such a clip takes, of both branches (`clip_forwards`)
    frames: tuple[tuple[int, ...], ...]  # counts of every frame
    confidence: float | None = None  # of the noun that was read with the least


def commonest(counts: np.ndarray) -> tuple[int, ...]:
    """The commonest count over the frames, per noun, of counts [frames, nouns]."""
    return tuple(Counter(column.tolist()).most_common(1)[0][0] for column in counts.T)


def outside(regions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels [frames, height, width] where no instance is removed or added; regions [nouns, F, H, W], dilated by one
    token."""
    grown = edited(regions, 1)
    frames, height, width = shape[:3]
    latent = np.minimum((np.arange(frames) + 3) // 4, len(grown) - 1)
    return ~grown[latent].repeat(height // grown.shape[1], 1).repeat(width // grown.shape[2], 2)


def change(video: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the colours, [frames, height, width]."""
    return np.abs(video.astype(np.float32) - other).mean(-1)


class Bench:
    """All variants of one batch of clips."""

    def __init__(self, model: VideoModel, job: JobConfig, items: Sequence[Item], reference_steps: int):
        self.model, self.job, self.items = model, job, items
        self.generation = job.generation
        self.texts = model.encode([item.prompt.text for item in items], [""] * len(items), job.generation)
        self.spans = [
            locate_tokens(text.prompt, item.targets, text.offsets) for text, item in zip(self.texts, items, strict=True)
        ]
        self.seeds = [item.seed for item in items]
        self.plain = self._generate(job.generation)
        self.reference = self._generate(replace(job.generation, steps=reference_steps)) if reference_steps else None
        self.plain_counts = [item.count(video) for item, video in zip(items, self.plain, strict=True)]
        self._identified: dict[tuple, tuple] = {}

    def _generate(self, generation: GenerationConfig) -> np.ndarray:
        state = denoise.start(self.model, self.seeds, generation)
        return self._decode(denoise.finish(self.model, state, self.texts, generation))

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.model.decode(latents).pixels.numpy()

    def results(self) -> Iterator[Result]:
        for i in range(len(self.items)):
            yield self._result("plain", i, self.plain[i], self.plain_counts[i], None, 0, None, self._forwards(None)[0])
        for name, method in self.job.methods.items():
            if method is not None:
                yield from self._variant(name, method)

    def _variant(self, name: str, method: MethodConfig) -> Iterator[Result]:
        state, captures = self._identify(method)
        corrections = [
            correct(capture, item.targets, spans, method)
            for capture, item, spans in zip(captures, self.items, self.spans, strict=True)
        ]
        wrong = [i for i, correction in enumerate(corrections) if correction.plan is not None]
        right = [i for i, correction in enumerate(corrections) if correction.plan is None]
        videos = dict(enumerate(self.plain))  # going on is bit-equal to the plain clip …
        if right and (method.identify.stride > 1 or method.identify.cache != "none"):  # … unless steps were left out
            latents = denoise.finish(self.model, state.take(right), [self.texts[i] for i in right], self.generation)
            videos |= dict(zip(right, self._decode(latents), strict=True))
        if wrong:
            plans = [corrections[i].plan for i in wrong]
            texts, seeds = [self.texts[i] for i in wrong], [self.seeds[i] for i in wrong]
            path = [earlier.take(wrong) for earlier in state.path]
            latents = denoise.guide(
                self.model, Shard(), texts, plans, seeds, self.generation, path=path, by=method.schedule_by
            )
            videos |= dict(zip(wrong, self._decode(latents), strict=True))
        forwards = self._forwards(method)
        for i, correction in enumerate(corrections):
            same = videos[i] is self.plain[i]
            counts = self.plain_counts[i] if same else self.items[i].count(videos[i])
            identified = tuple(int(count) for count in correction.identified.clip_counts())
            shortfall = sum(correction.refinement.shortfall) if correction.refinement else 0
            regions = correction.refinement.regions if correction.refinement else None
            own = forwards[correction.plan is not None]
            result = self._result(name, i, videos[i], counts, identified, shortfall, regions, own)
            sure = correction.identified.confidence
            yield result if sure is None else replace(result, confidence=float(min(sure)))

    def _forwards(self, method: MethodConfig | None) -> tuple[int, int]:
        """Of a clip whose counts are read as right, and of one that is guided."""
        own, passes = self.generation, 2 if self.generation.guidance_scale > 1 else 1
        if method is None:
            return (forwards(own.cache, range(own.steps), own.steps, passes=passes),) * 2
        return clip_forwards(method, self.model.facts.times(own, method.schedule_by), own.cache, passes=passes)

    def _identify(self, method: MethodConfig) -> tuple:
        key = (
            tuple(getattr(method.identify, name) for name in CAPTURE_FIELDS),
            method.guide.anchor is None,
            method.schedule_by,
        )
        if key not in self._identified:
            self._identified[key] = denoise.identify(
                self.model, Shard(), self.texts, self.spans, self.seeds, self.generation, method
            )
        return self._identified[key]

    def _result(
        self,
        variant: str,
        i: int,
        video: np.ndarray,
        counts: np.ndarray,
        identified: tuple[int, ...] | None,
        shortfall: int,
        regions: np.ndarray | None,
        forwards: int,
    ) -> Result:
        item = self.items[i]
        asked = tuple(target.count for target in item.targets)
        changed = reference = float("nan")
        if regions is not None:
            mask = outside(regions, video.shape)
        if regions is not None and mask.any():
            changed = float(change(video, self.plain[i])[mask].mean())
            if self.reference is not None:
                reference = float(change(self.reference[i], self.plain[i])[mask].mean())
        return Result(
            number=item.number,
            seed=item.seed,
            prompt=item.prompt.text,
            variant=variant,
            asked=asked,
            true=commonest(counts),
            accuracy=count_accuracy(counts, asked),
            exact=all_frames_exact(counts, asked),
            stability=count_stability(counts),
            motion=float(change(video[1:], video[:-1]).mean()),
            identified=identified,
            plain_true=commonest(self.plain_counts[i]),
            guided=regions is not None,
            shortfall=shortfall,
            change_outside=changed,
            change_reference=reference,
            forwards=forwards,
            frames=tuple(map(tuple, counts.tolist())),
        )


def run(items: Sequence[Item], job: JobConfig, device: str, batch: int, reference_steps: int) -> list[Result]:
    """All variants of some clips, in one process."""
    torch.set_num_threads(1)
    model = job_model(job, device)
    results: list[Result] = []
    for first in range(0, len(items), batch):
        results += Bench(model, job, items[first : first + batch], reference_steps).results()
    return results


def summarise(results: Sequence[Result], world: World = WORLDS["shapes"]) -> None:
    """The table: one line per variant."""
    counts, nouns = range(1, world.MAX_COUNT + 1), sorted(set(world.CROWDED))
    plain = {(result.number, result.seed): result for result in results if result.variant == "plain"}
    variants = list(dict.fromkeys(result.variant for result in results))
    width = max(len(variant) for variant in variants)
    whole = mean(result.forwards for result in plain.values())
    header = ["CountAcc", *(f"{n} noun{'s' * (n > 1)}" for n in nouns), *(f"n={n}" for n in counts)]
    header += ["ident.", "many→ok", "few→ok", "ok→ok"]
    header += ["guided", "short", "exact", "stable", "motion", "outside", "25↔ref", "corr./pl.", "verified", "pl./ver."]
    header += ["against the first variant"]
    print("  ".join([f"{'variant':<{width}}", *(f"{name:>8}" for name in header)]))
    first: list[Result] = []
    for variant in variants:
        own = [result for result in results if result.variant == variant]
        if not first and variant != "plain":
            first = own
        by_count = [
            mean(float(true == asked) for r in own for asked, true in zip(r.asked, r.true, strict=True) if asked == n)
            for n in counts
        ]
        before = [(r, *three) for r in own for three in zip(r.asked, plain[r.number, r.seed].true, r.true, strict=True)]
        guided = [r for r in own if r.guided]
        verified = mean(float(r.accuracy >= ACCEPT) for r in own)
        cells = [
            mean(r.accuracy for r in own),
            *(mean(r.accuracy for r in own if len(r.asked) == n) for n in nouns),
            *by_count,
            mean(float(r.identified == r.plain_true) for r in own if r.identified is not None),
            mean(float(after == asked) for _, asked, was, after in before if was > asked),
            mean(float(after == asked) for _, asked, was, after in before if was < asked),
            mean(float(after == asked) for _, asked, was, after in before if was == asked),
            len(guided) / len(own),
            float(sum(r.shortfall for r in own)),
            mean(r.exact for r in own),
            mean(r.stability for r in own),
            mean(r.motion for r in own),
            mean(r.change_outside for r in guided if r.change_outside == r.change_outside),  # nan: edited everywhere
            mean(r.change_reference for r in guided if r.change_reference == r.change_reference),
            mean(r.forwards for r in guided) / whole,
            verified,
            mean(r.forwards for r in own) / whole / verified if verified else float("nan"),
        ]
        print("  ".join([f"{variant:<{width}}", *(f"{cell:>8.3f}" for cell in cells), difference(own, first)]))


def difference(own: Sequence[Result], base: Sequence[Result]) -> str:
    """Mean difference of CountAcc to another variant's, with its 95 % interval over prompts (all samples of one
    together)."""
    if not base or own is base:
        return ""
    pairs = {(r.number, r.seed): r.accuracy for r in base}
    by_prompt: dict[int, list[float]] = {}
    for r in own:
        by_prompt.setdefault(r.number, []).append(r.accuracy - pairs[r.number, r.seed])
    values = np.array([np.mean(differences) for differences in by_prompt.values()])
    if np.ptp(values) == 0:
        return f"{values[0]:+.3f}"
    interval = bootstrap((values,), np.mean, n_resamples=2000, rng=0, method="basic").confidence_interval
    return f"{values.mean():+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def mean(values) -> float:
    """The mean, nan of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def shares(
    prompts: int,
    samples: int,
    seed: int,
    workers: int,
    only: Sequence[int] | None = None,
    world: World = WORLDS["shapes"],
) -> list[list[Item]]:
    """The clips of a study, or of the prompts with these numbers alone, dealt to the workers."""
    items = [
        Item(number, number + SAMPLE_SEEDS * sample, prompt)
        for sample in range(samples)
        for number, prompt in enumerate(world.heldout_prompts(prompts, seed))
        if only is None or number in only
    ]
    return [items[worker::workers] for worker in range(workers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1, help="clips per prompt, each from another noise")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the prompts, from 0")
    parser.add_argument("--config", default="testbed", help="a job file, or the name of a shipped one")
    parser.add_argument("--world", choices=list(WORLDS), help="of the prompts; default: that of the embedded model")
    parser.add_argument("overrides", nargs="*", help="key=value of the job, e.g. variants.a.guide.add=[3,6]")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--reference-steps", type=int, default=0, help="e.g. 30: what a finer schedule changes; 0: none"
    )
    parser.add_argument("--output", type=Path, help="results as JSON lines")
    options = parser.parse_args()

    job = load_job(options.config, options.overrides)
    world = WORLDS[options.world] if options.world else MODELS.get(job.model.path, WORLDS["shapes"])
    began = time.perf_counter()
    work = partial(
        run,
        job=job,
        device=resolve_device(options.device),
        batch=options.batch,
        reference_steps=options.reference_steps,
    )
    dealt = shares(options.prompts, options.samples, options.seed, options.workers, options.only, world)
    if options.workers == 1:
        results = work(dealt[0])
    else:
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            results = [result for share in pool.map(work, dealt) for result in share]
    order = {name: place for place, name in enumerate(["plain", *job.methods])}
    results.sort(key=lambda result: (order[result.variant], result.number, result.seed))
    if options.output:
        options.output.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results))
    summarise(results, world)
    seconds = time.perf_counter() - began
    clips = sum(map(len, dealt))
    print(f"{clips} clips, {seconds:.0f} s, {options.workers} workers of {options.batch}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
