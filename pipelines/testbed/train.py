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
from pipelines.testbed.model import LATENT_CHANNELS, TEXT_TOKENS, build_pipeline, build_vae, save_pipeline
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
    """L1 + 2·MSE; shapes and what is within four pixels of one weigh up to nine times as much as the empty ground.

    The surroundings weigh as much as the shapes themselves: otherwise a blob costs less than a cross. The first frame,
    which the causal decoder makes by a path of its own, counts for four.
    """
    colour = target.amax(1) - target.amin(1)
    weight = 1 + 4 * F.max_pool2d(colour, 9, stride=1, padding=4)[:, None]
    weight = torch.cat([4 * weight[:, :, :1], weight[:, :, 1:]], 2)
    error = output - target
    return ((error.abs() + 2 * error.square()) * weight).sum() / (weight.sum() * target.shape[1])


class _CapturedPass:
    """A forward and backward pass as one CUDA graph: launching its many small kernels takes longer than running them."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor], module: nn.Module) -> None:
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                loss(*self.inputs).backward()
        torch.cuda.current_stream().wait_stream(stream)
        # Without gradients at hand the captured pass writes new ones instead of adding, so none need be cleared later.
        module.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = loss(*self.inputs)
            self.loss.backward()

    def __call__(self, *inputs: Tensor) -> Tensor:
        for kept, tensor in zip(self.inputs, inputs, strict=True):
            kept.copy_(tensor)
        self.graph.replay()
        return self.loss


def train_vae(
    vae: AutoencoderKLWan,
    *,
    minutes: float,
    single_frames: float = 0.2,
    rng: np.random.Generator,
    device: torch.device,
    log: Log,
    frame_batch: int = 16,
    clip_batch: int = 8,
) -> AutoencoderKLWan:
    """Trains the autoencoder, on single frames for a share of the time and then on whole clips.

    Whole clips, because the causal decoder hands features from frame to frame: trained on 9 frames, its later ones decay.
    """
    vae.to(device).train()
    matrices = [parameter for parameter in vae.parameters() if parameter.ndim >= 4 and min(parameter.flatten(1).shape) > 1]
    known = {id(parameter) for parameter in matrices}
    optimizers = _optimizers(matrices, [parameter for parameter in vae.parameters() if id(parameter) not in known])

    def loss_of(video: Tensor, noise: Tensor) -> Tensor:
        latents = vae.encode(video).latent_dist.mean
        # The small second term only keeps the latents' scale from drifting.
        return reconstruction_loss(decode(vae, latents + noise), video) + 1e-4 * latents.square().mean()

    captured: dict[bool, _CapturedPass] = {}
    clock, step = _Clock(minutes), 0
    while (progress := clock.progress) < 1:
        single = progress < single_frames
        # Crowded clips: most of a frame is empty, and teaches nothing about shapes.
        prompts = make_prompts(frame_batch if single else clip_batch, rng, nouns=(1, 2, 2, 2), split="train")
        scenes = draw_scenes(prompts, rng)
        if single:
            video = render(scenes, frames=rng.choice(FRAMES, 8, replace=False), device=device)
            video = video.transpose(1, 2).flatten(0, 1)[:, :, None]
        else:
            video = render(scenes, device=device)
        latent_frames = 1 + (video.shape[2] - 1) // 4
        noise = LATENT_NOISE * torch.randn(len(video), LATENT_CHANNELS, latent_frames, 16, 16, device=device)
        if device.type == "cuda":
            if single not in captured:
                captured.clear()
                captured[single] = _CapturedPass(loss_of, (video, noise), vae)
            loss = captured[single](video, noise)
        else:
            vae.zero_grad()
            loss = loss_of(video, noise)
            loss.backward()
        _step(optimizers, _ramp(step, progress, 0.5))
        if step % 50 == 0:
            log("vae", step=step, single=single, loss=loss.item())
        step += 1
    log("vae", step=step)
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
    batch: int = 48,
    pool_size: int = 12288,
    refresh_every: int = 24,
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
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        _step(optimizers, _ramp(step, progress, 0.5))
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

    `autoencoder` is the folder of a trained one to go on from, or to use as it is if `minutes_vae` is 0. Beside the weights are `training.jsonl`, `figures.json` and
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
    vae = build_vae() if autoencoder is None else AutoencoderKLWan.from_pretrained(autoencoder, local_files_only=True)
    if minutes_vae:
        small = {} if on.type == "cuda" else {"frame_batch": 2, "clip_batch": 2}
        single_frames = 0.2 if autoencoder is None else 0.0
        train_vae(vae, minutes=minutes_vae, single_frames=single_frames, rng=rng, device=on, log=log, **small)
        vae.save_pretrained(output / "vae")
    vae.to(on).eval().requires_grad_(False)
    drawn, truth = clips(24, seed, split="train")
    log("reconstruction", **share_right(counts(reconstruct(vae, truth), drawn), drawn))
    small = {} if on.type == "cuda" else {"batch": 4, "pool_size": 8}
    pipeline = train_dit(vae, minutes=minutes_dit, rng=rng, device=on, log=log, **small)
    save_pipeline(pipeline, output / "weights")
    log("saved", megabytes=sum(file.stat().st_size for file in (output / "weights").rglob("*")) / 1e6)
    if not prompts:
        return {}
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
    parser.add_argument("--autoencoder", type=Path, help="folder of a trained autoencoder to go on from")
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts to measure on")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
