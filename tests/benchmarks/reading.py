"""Which blocks, step, tokens and thresholds read the true count off the embedded model.

    python -m tests.benchmarks.reading collect --prompts 200 --samples 2 --steps 7 10 13 --output maps/ --workers 8
    python -m tests.benchmarks.reading describe maps/*.npz
    python -m tests.benchmarks.reading search maps/*.npz --set threshold=0.4,0.5 only=3,4,5,4+5

`collect` generates plain clips, counts them exactly, and keeps every block's cross-attention to every noun at some
steps (mean over heads, of the noun's tokens and of its phrase's) with the standard deviation of the phrase's scores.
`describe` prints how steady each block is and how absent nouns differ from others. `search` lays clips out under every
combination of settings and prints the share of those whose counts come out as the plain clip's true ones, by count too.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.job.config import JobConfig, load_job
from numina.layout import Capture, combine_blocks, identify_layout, steadiness
from numina.prompts.tokens import TokenSpans, locate_tokens
from pipelines.attention.cross import processors
from pipelines.base import Attention, Processor, VideoModel
from pipelines.models.registry import resolve_device
from pipelines.sampling import denoise
from tests.benchmarks.counting import Item, commonest, mean, shares
from tests.benchmarks.jobs import job_model

NOUNS = 2  # at most, in the world's prompts
KINDS = ("noun", "phrase")


class AllBlocks:
    """Every block's responses [B, blocks, kinds, nouns, n] and score deviations [B, blocks, nouns] in one forward."""

    def __init__(self, model: VideoModel, spans: Sequence[Sequence[TokenSpans]]):
        self.model, self.spans = model, spans
        self.responses: list[torch.Tensor] = []
        self.deviations: list[torch.Tensor] = []

    @contextmanager
    def looking_on(self) -> Iterator[None]:
        watched: dict[Attention, Processor] = {}
        for block in range(self.model.depth):
            watched |= self.model.onlookers(block, self._see, None)
        with processors(watched):
            yield

    def _see(self, query: torch.Tensor, key: torch.Tensor) -> None:
        scores = torch.einsum("bind,bjnd->bnij", query.float(), key.float()) / query.shape[-1] ** 0.5
        maps = scores.softmax(-1).mean(1)  # [B, n, T]
        responses = maps.new_full((len(query), len(KINDS), NOUNS, query.shape[1]), torch.nan)
        deviations = maps.new_full((len(query), NOUNS), torch.nan)
        for clip, spans in enumerate(self.spans):
            for noun, span in enumerate(spans):
                for kind, name in enumerate(KINDS):
                    responses[clip, kind, noun] = maps[clip][:, list(getattr(span, name))].mean(-1)
                own = scores[clip][:, :, list(span.phrase)].flatten(1)
                deviations[clip, noun] = own.var(dim=1, correction=0).mean().sqrt()
        self.responses.append(responses)
        self.deviations.append(deviations)


def collect(items: Sequence[Item], job: JobConfig, device: str, batch: int, steps: Sequence[int]) -> dict[str, Any]:
    """Responses [clips, steps, blocks, kinds, nouns, F, H, W], deviations, and true counts, of some clips."""
    torch.set_num_threads(1)
    model = job_model(job, device)
    grid = model.grid(job.generation)
    rows: dict[str, list] = {name: [] for name in ("responses", "deviations", "counts", "asked", "numbers", "seeds")}
    for first in range(0, len(items), batch):
        chosen = items[first : first + batch]
        texts = model.encode([item.prompt.text for item in chosen], [""] * len(chosen), job.generation)
        spans = [locate_tokens(t.prompt, item.targets, t.offsets) for t, item in zip(texts, chosen, strict=True)]
        seen = {step: AllBlocks(model, spans) for step in steps}
        state = denoise.advance(
            model,
            denoise.start(model, [item.seed for item in chosen], job.generation),
            texts,
            job.generation,
            until=job.generation.steps,
            conditional_pass=lambda step, seen=seen: seen[step].looking_on() if step in seen else denoise.nullcontext(),
        )
        with torch.inference_mode():
            videos = model.decode(state.latents).pixels.numpy()
        responses = torch.stack([torch.stack(seen[step].responses, 1) for step in steps], 1)
        rows["responses"].append(responses.unflatten(-1, (grid.frames, grid.height, grid.width)).half().cpu().numpy())
        rows["deviations"].append(torch.stack([torch.stack(seen[s].deviations, 1) for s in steps], 1).cpu().numpy())
        for item, video in zip(chosen, videos, strict=True):
            counts = np.full((len(video), NOUNS), -1)
            counts[:, : len(item.targets)] = item.count(video)
            rows["counts"].append(counts[None])
            asked = [target.count for target in item.targets]
            rows["asked"].append(np.array([asked + [-1] * (NOUNS - len(asked))]))
            rows["numbers"].append(np.array([item.number]))
            rows["seeds"].append(np.array([item.seed]))
    return {name: np.concatenate(values) for name, values in rows.items()} | {"steps": np.array(steps)}


def search(file: Path, settings: Sequence[dict[str, Any]], job: JobConfig) -> list[tuple[int, list[tuple[int, int]]]]:
    """Per setting and clip: (setting, [(true, read) per noun])."""
    found = []
    data = np.load(file)
    steps = data["steps"].tolist()
    responses, counts = data["responses"], data["counts"]
    for index, setting in enumerate(settings):
        own = dict(setting)
        step, depth = own.pop("step"), responses.shape[2]
        blocks = np.atleast_1d(own.pop("only")) if "only" in own else None
        kind = KINDS.index(own.pop("tokens"))
        method = replace(job.method, identify=replace(job.method.identify, **own))
        config = method.scaled_to(responses.shape[-2] * responses.shape[-1]).identify
        blocks = config.capture_blocks(depth) if blocks is None else blocks
        for clip in range(len(responses)):
            nouns = int((counts[clip, 0] >= 0).sum())
            maps = responses[clip, steps.index(step), blocks, kind, :nouns].astype(np.float32)
            read = identify_layout(Capture(combine_blocks(maps, config.combine), None), config).clip_counts()
            true = commonest(counts[clip, :, :nouns])
            found.append((index, [(int(t), int(r)) for t, r in zip(true, read, strict=True)]))
    return found


def table(settings: Sequence[dict[str, Any]], found: Sequence[tuple[int, list[tuple[int, int]]]]) -> None:
    """Best settings first."""
    lines = []
    for index, setting in enumerate(settings):
        clips = [pairs for which, pairs in found if which == index]
        right = mean(float(all(t == r for t, r in pairs)) for pairs in clips)
        by_count = [
            mean(float(t == r) for pairs in clips for t, r in pairs if (t == n if n < 6 else t >= 6)) for n in range(7)
        ]
        lines.append((right, setting, by_count))
    for right, setting, by_count in sorted(lines, key=lambda line: -line[0]):
        print(f"{right:.3f}  " + "  ".join(f"{n}:{share:.2f}" for n, share in enumerate(by_count)), setting)


def describe(files: Sequence[Path], step: int, job: JobConfig) -> None:
    """Each block's steadiness, the mean over clips of the noun's maps; and how far absent nouns' peaks are from
    others'."""
    steady, absent, present = [], [], []
    for file in files:
        data = np.load(file)
        responses, counts = data["responses"][:, data["steps"].tolist().index(step), :, 0], data["counts"]
        blocks = job.method.identify.capture_blocks(responses.shape[1])
        for maps, clip in zip(responses, counts, strict=True):
            nouns = int((clip[0] >= 0).sum())
            own = maps[:, :nouns].astype(np.float32)
            steady.append([steadiness(block) for block in own])
            peaks = own[blocks].max(axis=(2, 3, 4)).mean(axis=0)
            for true, share in zip(commonest(clip[:, :nouns]), peaks / peaks.max(), strict=True):
                if nouns > 1:
                    (present if true else absent).append(float(share))
    print("steadiness by block:", " ".join(f"{share:.2f}" for share in np.mean(steady, axis=0)))
    print(f"peak next to the strongest noun's: {len(absent)} absent nouns", np.sort(absent).round(2).tolist())
    print(f"{len(present)} present nouns, from {min(present):.2f} up")


def value(text: str) -> Any:
    """A setting's value: a number, true/false, a word, or blocks joined by + (their mean is read)."""
    if "+" in text:
        return [int(part) for part in text.split("+")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("--prompts", type=int, default=200)
    collecting.add_argument("--samples", type=int, default=1)
    collecting.add_argument("--seed", type=int, default=0)
    collecting.add_argument("--steps", type=int, nargs="+", default=[10])
    collecting.add_argument("--workers", type=int, default=1)
    collecting.add_argument("--batch", type=int, default=16)
    collecting.add_argument("--device", default="auto")
    collecting.add_argument("--output", type=Path, required=True, help="folder for one npz per worker")
    collecting.add_argument("overrides", nargs="*")
    searching = commands.add_parser("search")
    searching.add_argument("files", type=Path, nargs="+")
    searching.add_argument(
        "--set", nargs="*", default=[], help="setting=value,value of identify; only=2,5,2+5 reads these blocks"
    )
    searching.add_argument("--workers", type=int, default=1)
    describing = commands.add_parser("describe")
    describing.add_argument("files", type=Path, nargs="+")
    describing.add_argument("--step", type=int, default=10)
    options = parser.parse_args()

    if options.command == "describe":
        describe(options.files, options.step, load_job("testbed"))
        return
    if options.command == "collect":
        options.output.mkdir(parents=True, exist_ok=True)
        job = load_job("testbed", options.overrides)
        work = partial(
            collect, job=job, device=resolve_device(options.device), batch=options.batch, steps=options.steps
        )
        began = time.perf_counter()
        dealt = shares(options.prompts, options.samples, options.seed, options.workers)
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            for number, arrays in enumerate(pool.map(work, dealt)):
                np.savez_compressed(options.output / f"{number}.npz", **arrays)
        print(f"{sum(map(len, dealt))} clips, {time.perf_counter() - began:.0f} s")
        return
    axes: dict[str, list] = {"step": [10], "tokens": ["phrase"]}
    for setting in options.set:
        name, _, values = setting.partition("=")
        axes[name] = [value(text) for text in values.split(",")]
    settings = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
    work = partial(search, settings=settings, job=load_job("testbed"))
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        table(settings, [line for part in pool.map(work, options.files) for line in part])


if __name__ == "__main__":
    main()
