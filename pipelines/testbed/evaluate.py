"""Measures a trained counting model: the counter on truth, the autoencoder, and plain generation of held-out prompts.

`python -m pipelines.testbed.evaluate --world scenes` measures the weights of this checkout.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from numpy.typing import NDArray
from PIL import Image

from pipelines.checkpoints.embedded import EMBEDDED
from pipelines.testbed.counter import count, detect
from pipelines.testbed.model import load_pipeline
from pipelines.testbed.world import Prompt, to_uint8
from pipelines.testbed.worlds import MODELS, SHAPES, WORLDS, World

STEPS = 25
GUIDANCE_SCALE = 3.0


def generate(
    pipeline: WanPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    world: World = SHAPES,
    guidance_scale: float = GUIDANCE_SCALE,
    steps: int = STEPS,
    batch: int = 50,
) -> NDArray[np.uint8]:
    """Plain videos, uint8 [B, T, H, W, 3]; each starts from noise drawn on the CPU from its own seed."""
    videos = []
    for first in range(0, len(prompts), batch):
        chosen = slice(first, first + batch)
        video = pipeline(
            prompt=list(prompts[chosen]),
            height=world.SIZE,
            width=world.SIZE,
            num_frames=world.FRAMES,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[chosen]],
            max_sequence_length=pipeline.tokenizer.model_max_length,
            output_type="pt",
        ).frames
        videos.append(to_uint8(video.transpose(1, 2) * 2 - 1))
    return np.concatenate(videos)


@torch.no_grad()
def reconstruct(vae: AutoencoderKLWan, videos: NDArray[np.uint8], *, batch: int = 16) -> NDArray[np.uint8]:
    """Videos through the autoencoder and back, uint8 [B, T, H, W, 3]."""
    outputs = []
    for first in range(0, len(videos), batch):
        video = torch.from_numpy(videos[first : first + batch]).to(vae.device).permute(0, 4, 1, 2, 3)
        latents = vae.encode((video / 127.5 - 1).to(vae.dtype)).latent_dist.mean
        outputs.append(to_uint8(vae.decode(latents).sample))
    return np.concatenate(outputs)


def counts(videos: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[NDArray[np.int64]]:
    """Counted objects of each prompt, [T, nouns]."""
    return [
        count(video, [(target.colour, target.shape) for target in prompt.targets])
        for video, prompt in zip(videos, prompts, strict=True)
    ]


def share_right(counted: Sequence[NDArray[np.int64]], prompts: Sequence[Prompt]) -> dict[str, float]:
    """CountAcc (share of nouns exactly right in a frame, mean over frames, then prompts), and clips wholly right."""
    right = [
        found == [target.count for target in prompt.targets] for found, prompt in zip(counted, prompts, strict=True)
    ]
    return {
        "count_accuracy": float(np.mean([clip.mean() for clip in right])),
        "all_frames_right": float(np.mean([clip.all() for clip in right])),
    }


def strata(counted: Sequence[NDArray[np.int64]], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """CountAcc by the number of nouns and by the count asked; the direction of errors; clips with nothing in them."""
    by_nouns: dict[int, list[float]] = {}
    by_count: dict[int, list[float]] = {}
    errors = []
    for found, prompt in zip(counted, prompts, strict=True):
        asked = np.array([target.count for target in prompt.targets])
        by_nouns.setdefault(len(asked), []).append(float((found == asked).mean()))
        for column, number in enumerate(asked):
            by_count.setdefault(int(number), []).append(float((found[:, column] == number).mean()))
        errors.append((found - asked).ravel())
    difference = np.concatenate(errors)
    return {
        "by_nouns": {str(key): float(np.mean(values)) for key, values in sorted(by_nouns.items())},
        "by_count": {str(key): float(np.mean(values)) for key, values in sorted(by_count.items())},
        "too_many": float((difference > 0).mean()),
        "too_few": float((difference < 0).mean()),
        "mean_absolute_error": float(np.abs(difference).mean()),
    }


def contact_sheet(
    videos: NDArray[np.uint8], file: Path, *, columns: int = 8, frames: Sequence[int] = (0, 8, 16)
) -> None:
    """Writes the chosen frames of each video below one another, up to `columns` videos side by side."""
    columns = min(columns, len(videos))
    rows = []
    for first in range(0, len(videos) // columns * columns, columns):
        rows += [np.concatenate([video[frame] for video in videos[first : first + columns]], 1) for frame in frames]
        rows.append(np.full((4, videos.shape[3] * columns, 3), 255, np.uint8))
    Image.fromarray(np.concatenate(rows)).save(file)


def evaluate(
    weights: Path,
    world: World,
    *,
    prompts: int = 100,
    seed: int = 0,
    guidance_scales: Sequence[float] = (GUIDANCE_SCALE,),
    device: torch.device | str = "cpu",
    sheet: Path | None = None,
) -> dict[str, Any]:
    """All figures of a trained model; `sheet` gets a picture of samples. Noise seeds count up from `seed`."""
    pipeline = load_pipeline(weights, device=device)
    drawn, truth = world.clips(prompts, seed, split="all")
    figures: dict[str, Any] = {
        "prompts": prompts,
        "steps": STEPS,
        "ground_truth": share_right(counts(truth, drawn), drawn),
        "reconstruction": share_right(counts(reconstruct(pipeline.vae, truth), drawn), drawn),
    }
    asked = world.heldout_prompts(prompts, seed)
    for scale in guidance_scales:
        videos = generate(
            pipeline,
            [prompt.text for prompt in asked],
            range(seed, seed + prompts),
            world=world,
            guidance_scale=scale,
        )
        counted = counts(videos, asked)
        figures[f"plain_at_guidance_{scale:g}"] = (
            share_right(counted, asked)
            | strata(counted, asked)
            | {"empty_clips": sum(not any(detect(frame) for frame in video) for video in videos)}
        )
    if sheet is not None:
        contact_sheet(videos[:32], sheet)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", choices=list(WORLDS), default="shapes")
    parser.add_argument("--weights", type=Path, help="the shipped ones of the world by default")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[GUIDANCE_SCALE])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sheet", type=Path, help="PNG of samples")
    options = vars(parser.parse_args())
    world = WORLDS[options.pop("world")]
    shipped = next(EMBEDDED[model] for model, own in MODELS.items() if own is world)
    print(json.dumps(evaluate(options.pop("weights") or shipped, world, **options), indent=2))


if __name__ == "__main__":
    main()
