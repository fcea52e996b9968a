"""Distils a counting model to a few steps without a second branch, as a LoRA beside its weights.

    python -m pipelines.testbed.distil --world shapes --minutes 8 --output DIR

Between one noise level of the recipe and the next the teacher takes SUBSTEPS Euler steps with guidance; the student
learns to take that piece of the way at once, by its mean velocity (x − x')/(σ − σ'): progressive distillation with the
guidance folded in (arXiv 2202.00512, 2210.03142). It is then sampled by Euler at these levels, deterministically. A
share of the ways goes from one state of the student's own to the next, so that its errors don't build up. Sittings go
on from one another with `--start`.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from numina.private.torch import allow_graphs
from numina.schedule import noise_levels
from pipelines.checkpoints.embedded import EMBEDDED
from pipelines.testbed.evaluate import GUIDANCE_SCALE, STEPS, contact_sheet, counts, share_right
from pipelines.testbed.model import LATENT_CHANNELS, encode_text, load_pipeline
from pipelines.testbed.schedule import Clock, Log, open_log, ramp, take_step
from pipelines.testbed.train import FLOW_SHIFT
from pipelines.testbed.world import to_uint8
from pipelines.testbed.worlds import MODELS, WORLDS, World

FEW_STEPS = 4
SUBSTEPS = 8  # of the teacher, for each of the student's
RANK = 48  # of the LoRA: 5 MB for the model of shapes, 3 MB for the one of the harder world
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "time_proj", "linear_1", "linear_2", "proj_out"]
OWN = 0.5  # share of the ways that are the student's own, once it has learned for OWN_FROM of its time
OWN_FROM = 0.3
RATE = 1e-3
STEPS_PER_CHUNK = 32  # of training, for each chunk of new ways
FILE = "few-step.safetensors"

Draw = Callable[[int], Tensor]  # a number of clips → their texts [n, T, width]


def velocity(
    transformer: Any, x: Tensor, sigma: Tensor, text: Tensor, away: Tensor | None = None, scale: float = GUIDANCE_SCALE
) -> Tensor:
    """At noise levels `sigma` [n] of latents [n, C, F, h, w]; with `away` [1, T, width], under guidance against it."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        if away is None:
            return transformer(x, sigma * 1000, text, return_dict=False)[0].float()
        both = torch.cat([text, away.expand_as(text)])
        seen, without = transformer(x.repeat(2, 1, 1, 1, 1), sigma.repeat(2) * 1000, both, return_dict=False)[0].chunk(
            2
        )
    return without.float() + scale * (seen.float() - without.float())


@torch.no_grad()
def follow(transformer: Any, x: Tensor, sigmas: Sequence[float], text: Tensor, away: Tensor | None = None) -> Tensor:
    """Euler steps from the first noise level to the last."""
    for sigma, after in pairwise(sigmas):
        x = x + (after - sigma) * velocity(transformer, x, x.new_full((len(x),), sigma), text, away)
    return x


def pieces(steps: int, substeps: int, shift: float = FLOW_SHIFT) -> list[list[float]]:
    """The teacher's noise levels within each step of the student; the first of each are the student's own."""
    fine = [*noise_levels(steps * substeps, shift), 0.0]
    return [fine[first : first + substeps + 1] for first in range(0, steps * substeps, substeps)]


class Ways:
    """Ways of the teacher and of the student, a ring of so many clips: states, velocities to learn, texts."""

    def __init__(self, size: int, latents: Sequence[int], text: Tensor, steps: Sequence[Sequence[float]]):
        self.steps, self.size, self.filled, self.next = steps, size, 0, 0
        self.states, self.targets = (torch.empty(size, len(steps), *latents, device=text.device) for _ in range(2))
        self.texts = torch.empty(size, *text.shape[1:], device=text.device)

    @torch.no_grad()
    def add(self, teacher: Any, student: Any, text: Tensor, away: Tensor, own: float) -> None:
        """New ways from noise, of which a share of `own` are the student's."""
        number = len(text)
        places = (torch.arange(number, device=text.device) + self.next) % self.size
        x = torch.randn(number, *self.states.shape[2:], device=text.device)
        theirs = (torch.rand(number, device=text.device) >= own)[:, None, None, None, None]
        self.texts[places] = text
        for step, sigmas in enumerate(self.steps):
            reached = follow(teacher, x, sigmas, text, away)
            self.states[places, step] = x
            self.targets[places, step] = (x - reached) / (sigmas[0] - sigmas[-1])
            x = torch.where(theirs, reached, follow(student, x, [sigmas[0], sigmas[-1]], text) if own else reached)
        self.next = (self.next + number) % self.size
        self.filled = min(self.size, self.filled + number)

    def draw(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, noise levels, velocities to learn and texts of random steps."""
        device = self.texts.device
        clips = torch.randint(self.filled, (number,), device=device)
        steps = torch.randint(len(self.steps), (number,), device=device)
        sigmas = torch.tensor([own[0] for own in self.steps], device=device)[steps]
        return self.states[clips, steps], sigmas, self.targets[clips, steps], self.texts[clips]


def learn(
    teacher: Any,
    student: Any,
    draw: Draw,
    away: Tensor,
    latents: Sequence[int],
    *,
    minutes: float,
    batch: int,
    chunk: int,
    pool: int,
    substeps: int = SUBSTEPS,
    rate: float = RATE,
    most: int | None = None,
    log: Log,
) -> list[float]:
    """Trains the student's adapter for so long, or `most` steps; the mean losses of each chunk's steps."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    ways = Ways(pool, latents, away, pieces(FEW_STEPS, substeps))
    clock, step, losses, means = Clock(minutes), 0, list[Tensor](), list[float]()
    while (progress := step / most if most else clock.progress) < 1:
        if step % STEPS_PER_CHUNK == 0:
            ways.add(teacher, student, draw(chunk), away, OWN if progress > OWN_FROM else 0.0)
        states, sigmas, targets, texts = ways.draw(batch)
        loss = functional.mse_loss(velocity(student, states, sigmas, texts), targets)
        optimizer.zero_grad()
        loss.backward()
        take_step([optimizer], ramp(step, progress, 0.4))
        losses.append(loss.detach())
        step += 1
        if step == 3:
            clock.restart()  # compilation is not training
        if step % STEPS_PER_CHUNK == 0:
            means.append(torch.stack(losses).mean().item())
            losses.clear()
            if len(means) % 4 == 1:
                log("distil", step=step, progress=progress, clips=ways.filled, loss=means[-1])
    log("distil", step=step, loss=means[-1] if means else None)
    return means


def add_adapter(transformer: Any, rank: int = RANK, start: Path | None = None) -> None:
    """A LoRA with biases on all linear layers; only it is trained. `start`: an earlier sitting's file."""
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS, lora_bias=True, init_lora_weights=True)
    )
    if start is not None:
        earlier = {key.removeprefix("transformer."): tensor for key, tensor in load_file(start).items()}
        set_peft_model_state_dict(transformer, earlier, adapter_name="default")


def save_adapter(transformer: Any, folder: Path) -> Path:
    """Writes the adapter in half precision, as `model.loras` reads it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*have invalid shape")  # it takes biases for shards
        trained = get_peft_model_state_dict(transformer)
    layers = {key: tensor.half().cpu().contiguous() for key, tensor in trained.items()}
    WanPipeline.save_lora_weights(folder, transformer_lora_layers=layers, weight_name=FILE)
    return folder / FILE


@torch.no_grad()
def measure(
    pipeline: WanPipeline, teacher: Any, student: Any, world: World, number: int, device: torch.device, sheet: Path
) -> dict[str, dict[str, float]]:
    """CountAcc of plain clips of held-out prompts: the teacher in many steps and in few, and the student."""
    asked = world.heldout_prompts(number, 0)
    away = encode_text(pipeline.tokenizer, pipeline.text_encoder, [""])
    text = torch.cat(
        [encode_text(pipeline.tokenizer, pipeline.text_encoder, [prompt.text for prompt in asked[i : i + 50]])
         for i in range(0, number, 50)]
    )  # fmt: skip
    noise = torch.stack(
        [torch.randn(latent_shape(world), generator=torch.Generator().manual_seed(seed)) for seed in range(number)]
    ).to(device)
    few, many = [*noise_levels(FEW_STEPS, FLOW_SHIFT), 0.0], [*noise_levels(STEPS, FLOW_SHIFT), 0.0]
    runs = {
        f"teacher, {STEPS} steps of Euler, guidance {GUIDANCE_SCALE:g}": (teacher, many, away),
        f"teacher, {FEW_STEPS} steps, guidance {GUIDANCE_SCALE:g}": (teacher, few, away),
        f"student, {FEW_STEPS} steps, guidance 1": (student, few, None),
    }
    figures, shown = {}, []
    for name, (transformer, sigmas, without) in runs.items():
        videos = np.concatenate(
            [
                decode(pipeline.vae, follow(transformer, noise[i : i + 25], sigmas, text[i : i + 25], without))
                for i in range(0, number, 25)
            ]
        )
        figures[name] = share_right(counts(videos, asked), asked)
        shown.append(videos[:8])
    contact_sheet(np.concatenate(shown), sheet, columns=len(shown[0]))
    return figures


def latent_shape(world: World) -> tuple[int, int, int, int]:
    return LATENT_CHANNELS, (world.FRAMES - 1) // 4 + 1, world.SIZE // 8, world.SIZE // 8


def decode(vae: Any, latents: Tensor) -> np.ndarray:
    """Normalised latents to uint8 videos [n, T, H, W, 3]."""
    mean, std = (
        torch.tensor(vae.config[key], device=latents.device).view(1, -1, 1, 1, 1)
        for key in ("latents_mean", "latents_std")
    )
    return to_uint8(vae.decode(latents * std + mean).sample)


def distil(
    output: Path,
    *,
    world: str = "shapes",
    minutes: float = 8.0,
    seed: int = 0,
    rank: int = RANK,
    rate: float = RATE,
    substeps: int = SUBSTEPS,
    start: Path | None = None,
    device: str | None = None,
    compile: bool = True,
    prompts: int = 200,
) -> dict[str, Any]:
    """Distils the embedded model of a world into `output`/few-step.safetensors, measures it, and returns the figures.

    `start` is an earlier sitting's file to go on from, of the same rank. With 0 `prompts` nothing is measured. The
    schedules run by the clock, so two runs from one seed are alike but not equal.
    """
    own = WORLDS[world]
    output.mkdir(parents=True, exist_ok=True)
    log = open_log(output / "training.jsonl")
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if on.type == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    name = torch.cuda.get_device_name() if on.type == "cuda" else "CPU"
    log("start", world=world, seed=seed, minutes=minutes, rank=rank, device=name, torch=torch.__version__)
    weights = next(EMBEDDED[model] for model, of in MODELS.items() if of is own)
    pipeline = load_pipeline(weights, device=on)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.requires_grad_(False)
    teacher = copy.deepcopy(pipeline.transformer)
    student = pipeline.transformer
    add_adapter(student, rank, start)
    save_adapter(student, output)  # what stands in the way of saving shows before minutes of training
    if compile and on.type == "cuda":
        allow_graphs(32)  # teacher and student, with gradients and without, of several sizes of a batch
        teacher.compile_repeated_blocks()
        student.compile_repeated_blocks()

    @torch.no_grad()
    def draw(number: int) -> Tensor:
        asked = [prompt.text for prompt in own.make_prompts(number, rng, split="train")]
        return encode_text(pipeline.tokenizer, pipeline.text_encoder, asked)

    away = encode_text(pipeline.tokenizer, pipeline.text_encoder, [""])
    batch, pool = (2 * own.BATCH, 64 * own.BATCH) if on.type == "cuda" else (2, 8)
    if minutes:
        options: dict[str, Any] = {"batch": batch, "chunk": batch, "pool": pool, "substeps": substeps, "rate": rate}
        learn(teacher, student, draw, away, latent_shape(own), minutes=minutes, log=log, **options)
    file = save_adapter(student, output)
    log("saved", megabytes=file.stat().st_size / 1e6)
    if not prompts:
        return {}
    figures = measure(pipeline, teacher, student, own, prompts, on, output / "samples.png")
    (output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{'':46} CountAcc  right in all frames   ({prompts} held-out prompts)")
    for run, own_figures in figures.items():
        print(f"{run:46} {own_figures['count_accuracy']:8.3f}  {own_figures['all_frames_right']:8.3f}")
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the LoRA, log and figures")
    parser.add_argument("--world", choices=list(WORLDS), default="shapes")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training; 0 measures --start alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--rate", type=float, default=RATE, help="of learning")
    parser.add_argument("--substeps", type=int, default=SUBSTEPS, help="of the teacher, for each of the student's")
    parser.add_argument("--start", type=Path, help="file of an earlier sitting to go on from")
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts to measure on; 0 for none")
    distil(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
