"""What the model of `scenes` knows of instances, against exact truth: true clips, noised, through one forward each.

    python -m tests.benchmarks.instances --clips 24 --level 0.82

No GPU is needed, for nothing is generated: what a head knows at a noise level is asked of clips whose masks are known.
Printed are, for every head, the area under the curve of its cosines between tokens of one creature and of two, at equal
distance (2 to 5 tokens): of coordinates made from all tokens, and from those of creatures alone; then, by reading, the
share of clips whose counts are read right (of those with up to FEW creatures and of the others, too), and how the
instances' extents agree with the masks: intersection over union
with the creature that they lie on most, per frame, and which share of creatures' tokens is in the layout (what isn't is
suppressed by `guide.elsewhere`). 0.82 is the level at t* = 0.4 of a flow shift of 3, 0.67 that at 0.6.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cluster.job.config import load_job
from numina.affinity import centred, coordinates, frame_sums, gram
from numina.layout import Layout, identify_layout
from numina.prompts.tokens import locate_tokens
from pipelines.attention.capture import ClipCapture
from pipelines.attention.cross import processors
from pipelines.models.registry import load_model
from pipelines.parallel.shard import ALONE
from pipelines.testbed import scenes
from pipelines.testbed.creatures import render
from tests.benchmarks.counting import Item

NEAREST, FARTHEST = 2, 5  # [tokens] between a pair
PAIRS = 20_000  # of a clip, at most
FEW = 7  # creatures of a clip, which the reading is reported for by itself


@dataclass(frozen=True)
class Seen:
    """A clip: whose each token is [F, H, W] (-1: nobody's), queries and keys per block, asked counts, layouts."""

    owner: np.ndarray
    rows: list[tuple[Tensor, Tensor]]
    asked: list[int]
    read: dict[str, Layout]


def keep(rows: dict[int, tuple[Tensor, Tensor]], block: int, query: Tensor, key: Tensor) -> None:
    """A block's, of the one clip."""
    rows[block] = query[0], key[0]


def look(clips: int, seed: int, level: float) -> Iterator[Seen]:
    """Held-out prompts, their true clips at a noise level, and what is seen in them."""
    jobs = {name: load_job("scenes", [f"method.preset={name}"]) for name in ("fused", "closed")}
    job = jobs["fused"]
    model = load_model("scenes", dtype="float32", device="cpu")
    prompts = scenes.make_prompts(clips, seed, split="heldout")
    drawn = scenes.draw_scenes(prompts, np.random.default_rng(seed))
    video, owner = render(drawn), scenes.owners(drawn).numpy()
    vae = model.pipeline.vae
    mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    texts = model.encode([prompt.text for prompt in prompts], [""] * clips, job.generation)
    noise = torch.Generator().manual_seed(seed)
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        spans = locate_tokens(text.prompt, Item(number, 0, prompt).targets, text.offsets)
        captures = {}
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.inference_mode():
            clean = (vae.encode(video[number : number + 1]).latent_dist.mean - mean) / std
            noisy = torch.lerp(clean, torch.randn(clean.shape, generator=noise), level)
            for name, own in jobs.items():
                capture = ClipCapture(model, own.generation, ALONE, [spans], own.method.identify)
                with capture.looking_on():
                    model.predict(noisy, torch.tensor([1000 * level]), text.conditional)
                captures[name] = capture.results()[0]

            watched = {}
            for block in range(model.depth):
                watched |= model.onlookers(block, lambda q, k: None, partial(keep, rows, block))
            with processors(watched):
                model.predict(noisy, torch.tensor([1000 * level]), text.conditional)
        tokens = owner[number][0].size
        read = {
            name: identify_layout(one, jobs[name].method.scaled_to(tokens).identify) for name, one in captures.items()
        }
        yield Seen(owner[number], [rows[block] for block in sorted(rows)], [t.count for t in prompt.targets], read)


def pairs(owner: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Pairs of creatures' tokens in one frame: their rows, whether they are one creature's, and their distance."""
    found = []
    for frame, own in enumerate(owner):
        places = np.argwhere(own >= 0)
        apart = np.linalg.norm(places[:, None] - places, axis=-1)
        one, other = np.nonzero(np.triu((apart >= NEAREST) & (apart <= FARTHEST)))
        rows = frame * own.size + places @ np.array([own.shape[1], 1])
        whose = own[tuple(places.T)]
        found.append((rows[one], rows[other], whose[one] == whose[other], apart[one, other].round().astype(int)))
    one, other, same, apart = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = rng.permutation(len(one))[:PAIRS]
    return one[kept], other[kept], same[kept], apart[kept]


def under_curve(scores: np.ndarray, same: np.ndarray) -> float:
    """Probability that a pair of one creature scores higher than a pair of two; NaN where there are few of either."""
    if min(same.sum(), (~same).sum()) < 20:
        return float("nan")
    ranks = scores.argsort().argsort() + 1
    number = int(same.sum())
    return float((ranks[same].sum() - number * (number + 1) / 2) / (number * (len(same) - number)))


def areas(seen: Seen, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Of every head of every block, mean over the distances."""
    one, other, same, apart = pairs(seen.owner, rng)
    frames, size = len(seen.owner), seen.owner[0].size
    frame = torch.arange(frames * size) // size
    inside = torch.from_numpy(seen.owner.ravel() >= 0) if kind == "creatures" else torch.ones(len(frame)).bool()
    number = torch.bincount(frame[inside], minlength=frames).clamp_min(1)[:, None, None]
    found = []
    for q, k in seen.rows:
        means = frame_sums(q[inside], k[inside], frame[inside], frames) / number
        rows = centred(q, k, frame, means)
        vectors = coordinates(rows, gram(rows[:, inside])).numpy()
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        for head in vectors:
            cosines = (head[one] * head[other]).sum(-1)
            byhead = [under_curve(cosines[apart == far], same[apart == far]) for far in range(NEAREST, FARTHEST + 1)]
            found.append(np.nanmean(byhead) if not np.isnan(byhead).all() else np.nan)
    return np.array(found)


def extents(layout: Layout, owner: np.ndarray) -> tuple[list[float], list[float]]:
    """Of each instance and frame, its overlap with the creature that it lies on most; of each creature and frame, the
    share of its tokens that some instance has."""
    overlaps, covered = [], []
    for frame, own in enumerate(owner):
        labels = layout.labels[:, frame]
        for noun in range(len(labels)):
            for label in np.unique(labels[noun][labels[noun] > 0]):
                inside = labels[noun] == label
                shown = own[inside & (own >= 0)]
                if not len(shown):
                    overlaps.append(0.0)
                    continue
                creature = own == np.bincount(shown).argmax()
                overlaps.append(float((inside & creature).sum() / (inside | creature).sum()))
        for whose in np.unique(own[own >= 0]):
            covered.append(float((labels > 0).any(0)[own == whose].mean()))
    return overlaps, covered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--level", type=float, default=0.82, help="of noise, from 0 to 1")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    found, right, crowded = defaultdict(list), defaultdict(list), []
    overlaps, covered = defaultdict(list), defaultdict(list)
    for seen in look(options.clips, options.seed, options.level):
        for kind in ("all", "creatures"):
            if len(np.unique(seen.owner[seen.owner >= 0])) > 1:
                found[kind].append(areas(seen, kind, rng))
        crowded.append(sum(seen.asked) > FEW)
        for name, layout in seen.read.items():
            right[name].append(list(layout.clip_counts()) == seen.asked)
            if right[name][-1]:
                own, shares = extents(layout, seen.owner)
                overlaps[name] += own
                covered[name] += shares
    for kind, values in found.items():
        mean = np.nanmean(values, axis=0)
        print(f"coordinates of {kind:10}", " ".join(f"{value:.2f}" for value in mean), f"best {mean.max():.2f}")
    for name, own in right.items():
        few, many = (np.mean([hit for hit, much in zip(own, crowded, strict=True) if much == side]) for side in (0, 1))
        print(
            f"{name:7} reads {np.mean(own):.3f} of {options.clips} clips right ({few:.3f} of those with up to {FEW}"
            f" creatures, {many:.3f} of the others); there an instance overlaps its creature"
            f" by {np.mean(overlaps[name]):.2f}, and {np.mean(covered[name]):.2f} of a creature is in the layout"
        )


if __name__ == "__main__":
    main()
