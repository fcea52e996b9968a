"""Trains the counting model of a world: first the autoencoder on true clips, then transformer and text encoder on its
latents. About 17 minutes on one GPU of the H100 class; `python -m pipelines.testbed.train --output DIR`. Stages can be
sittings of their own: `--start` goes on from an earlier one's weights, 0 minutes leave a stage out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from pipelines.testbed import WEIGHTS
from pipelines.testbed.autoencoder import set_scale, train_vae
from pipelines.testbed.counter import mentions
from pipelines.testbed.evaluate import contact_sheet, counts, evaluate, reconstruct, share_right
from pipelines.testbed.model import (
    LATENT_CHANNELS,
    TEXT_WIDTH,
    build_pipeline,
    build_transformer,
    encode_text,
    load_pipeline,
    save_pipeline,
)
from pipelines.testbed.schedule import Clock, Log, open_log, optimizers_for, ramp, take_step
from pipelines.testbed.supervision import WEIGHT, Supervised, Truth, truth
from pipelines.testbed.world import COLOURS
from pipelines.testbed.worlds import SHAPES, WORLDS, World

FLOW_SHIFT = 3.0
PROMPT_DROPOUT = 0.1
EMA_DECAY = 0.999
DECAY_FROM = 0.5  # of a stage of the transformer, its rate falls
MISCOUNTED = 0.4
"""Share of a prompt's targets of which the training clip shows one object more or fewer than the prompt says."""


def teach_reading(
    tokenizer: PreTrainedTokenizerFast,
    text_encoder: UMT5EncoderModel,
    world: World,
    *,
    steps: int,
    rng: np.random.Generator,
    device: torch.device,
    log: Log,
) -> None:
    """Teaches the text encoder what belongs together: every word of `three red circles` is to tell all three.

    This stands for the pretraining that Wan's text encoder brings along. Left to learn it from the video loss alone, it
    did not in 2,600 steps, and the model painted all colours and all shapes of a prompt, but in the wrong pairs.
    """
    text_encoder.to(device).train()
    sizes = (len(COLOURS), len(world.NOUNS), world.MAX_COUNT)
    readout = nn.Linear(TEXT_WIDTH, sum(sizes)).to(device)
    parameters = [*text_encoder.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    colours = list(COLOURS)
    for step in range(steps):
        prompts = world.make_prompts(128, rng, nouns=world.CROWDED, split="train")
        states = encode_text(tokenizer, text_encoder, [prompt.text for prompt in prompts])
        places, truth = [], []
        for row, prompt in enumerate(prompts):
            for place, target in mentions(prompt.text):
                places += [(row, place + word) for word in range(3)]  # number, colour, noun
                truth += [(colours.index(target.colour), world.NOUNS.index(target.singular), target.count - 1)] * 3
        rows, columns = torch.tensor(places, device=device).T
        answers = readout(states[rows, columns]).split(sizes, -1)
        right = torch.tensor(truth, device=device).T
        loss = torch.stack([functional.cross_entropy(*pair) for pair in zip(answers, right, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        take_step([optimizer], ramp(step, step / steps, 0.5))
        if step % 100 == 99:
            accuracy = [
                (answer.argmax(-1) == label).float().mean().item() for answer, label in zip(answers, right, strict=True)
            ]
            log("reading", step=step + 1, loss=loss.item(), accuracy=accuracy)


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKLWan, world: World, number: int, miscounted: float, rng: np.random.Generator, device: torch.device
) -> tuple[list[str], Tensor, Truth | None]:
    """Fresh training prompts, their clips' latents [number, 8, 5, H, W], not normalised, and whose each token is."""
    prompts = world.make_prompts(number, rng, split="train")
    drawn = world.draw_scenes(world.miscount(prompts, miscounted, rng), rng)
    latents = vae.encode(world.render(drawn, device=device)).latent_dist.mean
    texts, owner = [prompt.text for prompt in prompts], world.owners(drawn, device=device)
    return texts, latents, None if owner is None else truth(owner, texts, drawn.kind, world)


class LatentPool:
    """Encoded clips to train on, all on the training device; new ones replace the oldest as training goes on."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        tokenizer: PreTrainedTokenizerFast,
        world: World,
        size: int,
        miscounted: float,
        rng: np.random.Generator,
        device: torch.device,
    ) -> None:
        self.vae, self.tokenizer, self.world, self.rng, self.device = vae, tokenizer, world, rng, device
        self.oldest = 0
        self.chunk, self.miscounted = min(128, size), miscounted
        drawn = [encode_clips(vae, world, self.chunk, miscounted, rng, device) for _ in range(size // self.chunk)]
        self.ids, self.mask = self._tokenize([text for texts, *_ in drawn for text in texts])
        self.no_ids, self.no_mask = self._tokenize([""])
        self.latents = torch.cat([part for _, part, _ in drawn])
        known = [part for *_, part in drawn if part is not None]
        self.truth = Truth(*map(torch.cat, zip(*known, strict=True))) if known else None
        self.size = len(self.latents)

    def _tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)

    def refresh(self) -> None:
        """Replaces the oldest chunk."""
        texts, latents, known = encode_clips(self.vae, self.world, self.chunk, self.miscounted, self.rng, self.device)
        places = slice(self.oldest, self.oldest + self.chunk)
        self.ids[places], self.mask[places] = self._tokenize(texts)
        self.latents[places] = latents
        if self.truth is not None and known is not None:
            for all_clips, new in zip(self.truth, known, strict=True):
                all_clips[places] = new
        self.oldest = (self.oldest + self.chunk) % self.size

    def draw(self, number: int) -> tuple[Tensor, Tensor, Tensor, Truth | None]:
        """A random batch of token ids, their mask, latents and truth; a share of PROMPT_DROPOUT has no text.

        Drawn on the device: a copy from the host would wait for the step before and leave the device idle.
        """
        rows = torch.randint(self.size, (number,), device=self.device)
        dropped = (torch.rand(number, device=self.device) < PROMPT_DROPOUT)[:, None]
        ids = torch.where(dropped, self.no_ids, self.ids[rows])
        known = None if self.truth is None else Truth(*(part[rows] for part in self.truth)).unnamed(dropped)
        return ids, torch.where(dropped, self.no_mask, self.mask[rows]), self.latents[rows], known


def train_dit(
    pipeline: WanPipeline,
    world: World,
    *,
    minutes: float,
    miscounted: float,
    rng: np.random.Generator,
    device: torch.device,
    log: Log,
    batch: int,
    pool_size: int,
    decay_from: float = DECAY_FROM,
) -> None:
    """Trains transformer and text encoder by flow matching on the latents of the pipeline's autoencoder.

    The latents' scale is measured where it is unknown; a transformer that has learned one keeps it. Of a share
    `miscounted` of the prompts' targets the clips show one object more or fewer than the prompts say. Where the world
    tells whose tokens are, some heads are taught it, too (`supervision`).
    """
    transformer, text_encoder = pipeline.transformer.to(device).train(), pipeline.text_encoder.to(device).train()
    pool = LatentPool(pipeline.vae, pipeline.tokenizer, world, pool_size, miscounted, rng, device)
    if set(pipeline.vae.config["latents_std"]) == {1.0}:
        set_scale(pipeline.vae, pool.latents.mean((0, 2, 3, 4)), pool.latents.std((0, 2, 3, 4)))
    shape = (1, LATENT_CHANNELS, 1, 1, 1)
    mean, std = (
        torch.tensor(pipeline.vae.config[key], device=device).view(shape) for key in ("latents_mean", "latents_std")
    )
    log("pool", clips=pool.size, latents_std=pipeline.vae.config["latents_std"])

    matrices = [parameter for parameter in transformer.blocks.parameters() if parameter.ndim == 2]
    known = {id(parameter) for parameter in matrices}
    parameters = [*transformer.parameters(), *text_encoder.parameters()]
    optimizers = optimizers_for(matrices, [parameter for parameter in parameters if id(parameter) not in known])
    average = [parameter.detach().clone() for parameter in parameters]
    supervised = Supervised(transformer) if pool.truth is not None else None
    if device.type == "cuda":
        transformer.compile_repeated_blocks()
    losses: list[Tensor] = []
    clock, step = Clock(minutes), 0
    while (progress := clock.progress) < 1:
        ids, mask, latents, seen = pool.draw(batch)
        clean = (latents - mean) / std
        noise, uniform = torch.randn_like(clean), torch.rand(batch, device=device)
        sigma = FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None, None])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            text = text_encoder(ids, mask).last_hidden_state * mask[..., None]
            flow = transformer(noisy, sigma * 1000, text, return_dict=False)[0]
        loss = total = functional.mse_loss(flow.float(), noise - clean)
        parts = [loss]
        if supervised is not None and seen is not None:
            parts += supervised.losses(seen, sigma)
            total = loss + WEIGHT * (parts[1] + parts[2])
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        take_step(optimizers, ramp(step, progress, decay_from))
        get_ema_multi_avg_fn(min(EMA_DECAY, (1 + step) / (10 + step)))(average, parameters, None)
        losses.append(torch.stack([part.detach() for part in parts]))
        if step == 2:
            clock.restart()
        if step % 100 == 0:
            means = torch.stack(losses).mean(0).tolist()
            log("dit", step=step, **dict(zip(("loss", "instances", "nouns"), means, strict=False)))
            losses.clear()
        if step % world.REFRESH_EVERY == world.REFRESH_EVERY - 1:
            pool.refresh()
        step += 1
    with torch.no_grad():
        for parameter, smooth in zip(parameters, average, strict=True):
            parameter.copy_(smooth)
    if supervised is not None:
        supervised.close()
    log("dit", step=step)


def train(
    output: Path,
    *,
    world: str = "shapes",
    seed: int = 0,
    minutes_vae: float | None = None,
    minutes_decoder: float = 0.0,
    minutes_dit: float = 8.0,
    minutes_miscounted: float = 2.5,
    device: str | None = None,
    start: Path | None = None,
    transformer: tuple[int, int] | None = None,
    prompts: int = 100,
    decay_from: float = DECAY_FROM,
) -> dict[str, Any]:
    """Trains, writes the diffusers folder `output/weights`, measures it, and returns the figures.

    `world` is one of WORLDS. Without `start`, the text encoder is taught to read first, and only the shapes'
    autoencoder begins from nothing: the others from its weights. `start` is an earlier run's folder of weights to go on
    from. A stage of 0 minutes is left out; the autoencoder's are 4.5, or 0 after `start`, because a transformer knows
    the latents it was trained on; `minutes_decoder` trains the decoder alone, which leaves latents as they are.
    `transformer` begins a fresh one of (blocks, heads of 64 channels), for a second model to hold settings against.
    The transformer's rate falls from the share `decay_from` of a stage on; with 1 it doesn't, since another sitting is
    to follow. With 0 `prompts` nothing is generated. Beside the weights are `training.jsonl`, `reconstructions.png`,
    `figures.json` and `samples.png`. The schedules run by the clock, so two runs from one seed are alike but not equal.
    """
    own = WORLDS[world]
    output.mkdir(parents=True, exist_ok=True)
    log = open_log(output / "training.jsonl")
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if on.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    name = torch.cuda.get_device_name() if on.type == "cuda" else "CPU"
    if minutes_vae is None:
        minutes_vae = 4.5 if start is None else 0.0
    minutes = {"vae": minutes_vae, "decoder": minutes_decoder, "dit": minutes_dit, "miscounted": minutes_miscounted}
    log("start", world=world, seed=seed, minutes=minutes, device=name, torch=torch.__version__)
    pipeline = build_pipeline(own) if start is None else load_pipeline(start)
    warm = start is not None or own is not SHAPES
    if start is None and warm:
        own_vae = AutoencoderKLWan.from_pretrained(
            WEIGHTS / "vae", torch_dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        pipeline.register_modules(vae=own_vae)
    if transformer is not None:
        pipeline.register_modules(transformer=build_transformer(*transformer))
    save_pipeline(pipeline, output / "weights")  # what stands in the way of saving shows before minutes of training
    common: dict[str, Any] = {"rng": rng, "device": on, "log": log}
    small: dict[str, Any] = {} if on.type == "cuda" else {"frame_batch": 2, "clip_batch": 1}
    if minutes_vae:
        single = 0.0 if warm else 0.2
        train_vae(pipeline.vae, own, minutes=minutes_vae, single_frames=single, **common, **small)
    if minutes_decoder:
        train_vae(pipeline.vae, own, minutes=minutes_decoder, single_frames=0.0, decoder_only=True, **common, **small)
    pipeline.vae.to(on).eval().requires_grad_(False)
    drawn, truth = own.clips(24 if on.type == "cuda" else 1, seed, split="train")
    rebuilt = reconstruct(pipeline.vae, truth, batch=8)
    log("reconstruction", **share_right(counts(rebuilt, drawn), drawn))
    contact_sheet(np.stack([truth, rebuilt], 1).reshape(-1, *truth.shape[1:]), output / "reconstructions.png")
    if start is None:
        steps = 600 if on.type == "cuda" else 20
        teach_reading(pipeline.tokenizer, pipeline.text_encoder, own, steps=steps, **common)
    batch = own.BATCH if on.type == "cuda" else 2
    pool_size = 128 * own.BATCH if on.type == "cuda" else 4
    # Last: colours and shapes are learned from captions that are right, only the numbers become loose.
    for stage, share in ((minutes_dit, 0.0), (minutes_miscounted, MISCOUNTED)):
        if stage:
            sizes: dict[str, Any] = {"batch": batch, "pool_size": pool_size}
            train_dit(pipeline, own, minutes=stage, miscounted=share, decay_from=decay_from, **sizes, **common)
    save_pipeline(pipeline, output / "weights")
    log("saved", megabytes=sum(file.stat().st_size for file in (output / "weights").rglob("*")) / 1e6)
    if not prompts:
        return {}
    figures = evaluate(output / "weights", own, prompts=prompts, device=on, sheet=output / "samples.png")
    (output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    log("figures", **figures)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, log and figures")
    parser.add_argument("--world", choices=list(WORLDS), default="shapes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes-vae", type=float, help="4.5, or 0 after --start")
    parser.add_argument("--minutes-decoder", type=float, default=0.0, help="of the decoder alone: latents stay")
    parser.add_argument("--minutes-dit", type=float, default=8.0)
    parser.add_argument("--minutes-miscounted", type=float, default=2.5)
    parser.add_argument(
        "--decay-from", type=float, default=DECAY_FROM, help="share of the transformer's minutes; 1: a sitting follows"
    )
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--start", type=Path, help="folder of weights to go on from")
    parser.add_argument(
        "--transformer", type=int, nargs=2, metavar=("BLOCKS", "HEADS"), help="a fresh one of this shape"
    )
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts to measure on; 0 for none")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
