"""Trains the counting model from nothing: first the autoencoder on true clips, then transformer and text encoder on its
latents. About ten minutes on one GPU of the H100 class; `python -m pipelines.testbed.train --output DIR`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from pipelines.testbed.evaluate import counts, evaluate, reconstruct, share_right
from pipelines.testbed.model import TEXT_TOKENS, build_pipeline, build_vae, save_pipeline
from pipelines.testbed.muon import Muon
from pipelines.testbed.world import FRAMES, clips, draw_scenes, make_prompts, render

Log = Callable[..., None]

FLOW_SHIFT = 3.0
PROMPT_DROPOUT = 0.1
EMA_DECAY = 0.999
LATENT_NOISE = 0.05
"""Standard deviation of what is added to the latents while the autoencoder trains, in place of posterior sampling."""


def _open_log(file: Path) -> Log:
    file.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()

    def log(stage: str, **values: Any) -> None:
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        line = json.dumps({"seconds": round(time.monotonic() - begun, 1), "stage": stage, **rounded})
        with file.open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)

    return log


class _Clock:
    """Share of a stage's time that is used, by which its schedules run; starts anew when the first step has compiled."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.begun = time.monotonic()

    def restart(self) -> None:
        self.begun = time.monotonic()

    @property
    def progress(self) -> float:
        return (time.monotonic() - self.begun) / self.seconds


def _optimizers(matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
    fused = others[0].is_cuda
    return [Muon(matrices, lr=0.01), torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=fused)]


def _step(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("full_lr", group["lr"]) * scale
        optimizer.step()
        optimizer.zero_grad()


def _ramp(step: int, progress: float, decay_from: float) -> float:
    """Learning rate relative to its full value: 50 steps up, then level, then straight down to nothing."""
    return min((step + 1) / 50, 1.0) * min(1.0, max(0.0, (1 - progress) / (1 - decay_from)))


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """What `vae.decode` does, without its final clamp, which would leave overshooting pixels without a gradient."""
    vae.clear_cache()
    states = vae.post_quant_conv(latents)
    chunks = []
    for index in range(states.shape[2]):
        vae._conv_idx = [0]
        chunk = states[:, :, index : index + 1]
        chunks.append(vae.decoder(chunk, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return torch.cat(chunks, 2)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + 2·MSE, coloured pixels weighing up to nine times as much as the plain ones that fill most of a frame."""
    weight = 1 + 8 * (target.amax(1, keepdim=True) - target.amin(1, keepdim=True)) / 2
    error = output - target
    return ((error.abs() + 2 * error.square()) * weight).sum() / (weight.sum() * target.shape[1])


def train_vae(
    *, minutes: float, rng: np.random.Generator, device: torch.device, log: Log, frame_batch: int = 16, clip_batch: int = 12
) -> AutoencoderKLWan:
    """The autoencoder, on single frames for a fifth of the time and then on whole clips.

    Whole clips, because the causal decoder hands features from frame to frame: trained on 9 frames, its later ones decay.
    """
    vae = build_vae().to(device)
    matrices = [parameter for parameter in vae.parameters() if parameter.ndim >= 4 and parameter.shape[0] > 1]
    matrices = [parameter for parameter in matrices if parameter[0].numel() > 1]
    known = {id(parameter) for parameter in matrices}
    optimizers = _optimizers(matrices, [parameter for parameter in vae.parameters() if id(parameter) not in known])
    clock, step = _Clock(minutes), 0
    while (progress := clock.progress) < 1:
        single = progress < 0.2
        prompts = make_prompts(frame_batch if single else clip_batch, rng, split="train")
        scenes = draw_scenes(prompts, rng)
        if single:
            video = render(scenes, frames=rng.choice(FRAMES, 8, replace=False), device=device)
            video = video.transpose(1, 2).flatten(0, 1)[:, :, None]
        else:
            video = render(scenes, device=device)
        latents = vae.encode(video).latent_dist.mean
        output = decode(vae, latents + LATENT_NOISE * torch.randn_like(latents))
        # The small second term only keeps the latents' scale from drifting.
        loss = reconstruction_loss(output, video) + 1e-4 * latents.square().mean()
        loss.backward()
        _step(optimizers, _ramp(step, progress, 0.5))
        if step % 25 == 0:
            l1 = (output - video).abs().mean().item()
            log("vae", step=step, single=single, loss=loss.item(), l1=l1, std=latents.std().item())
        step += 1
    return vae.eval()


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKLWan, number: int, rng: np.random.Generator, device: torch.device
) -> tuple[list[str], Tensor]:
    """Fresh training prompts and their clips' latents, [number, 8, 5, 16, 16], not yet normalised."""
    prompts = make_prompts(number, rng, split="train")
    video = render(draw_scenes(prompts, rng), device=device)
    latents = vae.encode(video).latent_dist.mean
    return [prompt.text for prompt in prompts], latents


class LatentPool:
    """Encoded clips to train on, the oldest replaced by new ones as training goes on."""

    def __init__(self, vae: AutoencoderKLWan, size: int, rng: np.random.Generator, device: torch.device) -> None:
        self.vae, self.rng, self.device, self.oldest = vae, rng, device, 0
        self.chunk = min(128, size)
        drawn = [encode_clips(vae, self.chunk, rng, device) for _ in range(size // self.chunk)]
        self.texts = [text for texts, _ in drawn for text in texts]
        latents = torch.cat([part for _, part in drawn])
        self.mean = latents.mean(dim=(0, 2, 3, 4))
        self.std = latents.std(dim=(0, 2, 3, 4))
        self.latents = self._normalise(latents)

    def _normalise(self, latents: Tensor) -> Tensor:
        return (latents - self.mean[:, None, None, None]) / self.std[:, None, None, None]

    def refresh(self) -> None:
        """Replaces the oldest chunk."""
        texts, latents = encode_clips(self.vae, self.chunk, self.rng, self.device)
        places = slice(self.oldest, self.oldest + self.chunk)
        self.texts[places], self.latents[places] = texts, self._normalise(latents)
        self.oldest = (self.oldest + self.chunk) % (len(self.texts) // self.chunk * self.chunk)

    def draw(self, number: int) -> tuple[list[str], Tensor]:
        """A random batch; a share of PROMPT_DROPOUT has no text."""
        rows = self.rng.integers(len(self.texts), size=number)
        texts = ["" if self.rng.random() < PROMPT_DROPOUT else self.texts[row] for row in rows]
        return texts, self.latents[torch.as_tensor(rows, device=self.device)]


def train_dit(
    vae: AutoencoderKLWan,
    *,
    minutes: float,
    rng: np.random.Generator,
    device: torch.device,
    log: Log,
    batch: int = 64,
    pool_size: int = 16384,
    refresh_every: int = 16,
) -> Any:
    """Transformer and text encoder by flow matching on the autoencoder's latents; returns the whole pipeline."""
    pipeline = build_pipeline()
    transformer, text_encoder = pipeline.transformer.to(device), pipeline.text_encoder.to(device)
    pool = LatentPool(vae, pool_size, rng, device)
    log("pool", clips=len(pool.texts), std=pool.std.tolist())
    pipeline.vae = build_vae(latents_mean=pool.mean.tolist(), latents_std=pool.std.tolist()).to(device)
    pipeline.vae.load_state_dict(vae.state_dict())

    matrices = [parameter for parameter in transformer.blocks.parameters() if parameter.ndim == 2]
    known = {id(parameter) for parameter in matrices}
    parameters = [*transformer.parameters(), *text_encoder.parameters()]
    optimizers = _optimizers(matrices, [parameter for parameter in parameters if id(parameter) not in known])
    average = [parameter.detach().clone() for parameter in parameters]
    if device.type == "cuda":
        transformer.compile_repeated_blocks()
    tokenizer, losses = pipeline.tokenizer, []
    clock, step = _Clock(minutes), 0
    while (progress := clock.progress) < 1:
        texts, clean = pool.draw(batch)
        tokens = tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")
        ids, mask = (tensor.to(device, non_blocking=True) for tensor in (tokens.input_ids, tokens.attention_mask))
        noise, uniform = torch.randn_like(clean), torch.rand(batch, device=device)
        sigma = FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None, None])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            text = text_encoder(ids, mask).last_hidden_state * mask[..., None]
            flow = transformer(noisy, sigma * 1000, text, return_dict=False)[0]
        loss = F.mse_loss(flow.float(), noise - clean)
        loss.backward()
        _step(optimizers, _ramp(step, progress, 0.6))
        torch._foreach_lerp_(average, parameters, 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
        losses.append(loss.detach())
        if step == 2:
            clock.restart()
        if step % 100 == 0:
            log("dit", step=step, loss=torch.stack(losses).mean().item())
            losses.clear()
        if step % refresh_every == refresh_every - 1:
            pool.refresh()
        step += 1
    with torch.no_grad():
        for parameter, smooth in zip(parameters, average, strict=True):
            parameter.copy_(smooth)
    log("dit", step=step)
    return pipeline


def train(
    output: Path,
    *,
    seed: int = 0,
    minutes_vae: float = 3.0,
    minutes_dit: float = 6.0,
    device: str | None = None,
    autoencoder: Path | None = None,
    prompts: int = 100,
) -> dict[str, Any]:
    """Trains, writes the diffusers folder `output/weights`, measures it, and returns the figures.

    `autoencoder` is the folder of a trained one to go on from. Beside the weights are `training.jsonl`, `figures.json` and
    `samples.png`. The schedules run by the clock, so two runs from one seed are alike but not equal.
    """
    output.mkdir(parents=True, exist_ok=True)
    log = _open_log(output / "training.jsonl")
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if on.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    name = torch.cuda.get_device_name() if on.type == "cuda" else "CPU"
    log("start", seed=seed, minutes_vae=minutes_vae, minutes_dit=minutes_dit, device=name, torch=torch.__version__)
    small = {} if on.type == "cuda" else {"frame_batch": 2, "clip_batch": 2}
    if autoencoder is None:
        vae = train_vae(minutes=minutes_vae, rng=rng, device=on, log=log, **small)
        vae.save_pretrained(output / "vae")
        drawn, truth = clips(32, seed, split="train")
        right = share_right(counts(reconstruct(vae, truth), drawn), drawn)
        log("reconstruction", **right)
    else:
        vae = AutoencoderKLWan.from_pretrained(autoencoder, local_files_only=True).to(on).eval()
    small = {} if on.type == "cuda" else {"batch": 4, "pool_size": 8}
    pipeline = train_dit(vae.requires_grad_(False), minutes=minutes_dit, rng=rng, device=on, log=log, **small)
    save_pipeline(pipeline, output / "weights")
    log("saved", megabytes=sum(file.stat().st_size for file in (output / "weights").rglob("*")) / 1e6)
    figures = evaluate(output / "weights", prompts=prompts, device=on, sheet=output / "samples.png")
    (output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    log("figures", **figures)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, log and figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes-vae", type=float, default=3.0)
    parser.add_argument("--minutes-dit", type=float, default=6.0)
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--autoencoder", type=Path, help="folder of a trained autoencoder, not trained again")
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts to measure on")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
