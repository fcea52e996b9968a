"""Trains the counting model's autoencoder on true clips."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.nn import functional

from pipelines.private.diffusers import feature_cache
from pipelines.testbed.model import LATENT_CHANNELS
from pipelines.testbed.schedule import Clock, Log, optimizers_for, ramp, take_step
from pipelines.testbed.worlds import World

LATENT_NOISE = 0.05
"""Standard deviation of what is added to the latents while the autoencoder trains, in place of posterior sampling."""


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """What `vae.decode` does, without its final clamp, which would leave overshooting pixels without a gradient."""
    vae.clear_cache()
    states = vae.post_quant_conv(latents)
    chunks = []
    for index in range(states.shape[2]):
        chunk = states[:, :, index : index + 1]
        chunks.append(vae.decoder(chunk, feat_cache=feature_cache(vae), feat_idx=[0], first_chunk=index == 0))
    vae.clear_cache()
    return torch.cat(chunks, 2)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + 2·MSE; shapes and what is within four pixels of one weigh up to nine times as much as the empty ground.

    The surroundings weigh as much as the shapes themselves: otherwise a blob costs less than a cross. The first frame,
    which the causal decoder makes by a path of its own, counts for four.
    """
    colour = target.amax(1) - target.amin(1)
    weight = 1 + 4 * functional.max_pool2d(colour, 9, stride=1, padding=4)[:, None]
    weight = torch.cat([4 * weight[:, :, :1], weight[:, :, 1:]], 2)
    error = output - target
    return ((error.abs() + 2 * error.square()) * weight).sum() / (weight.sum() * target.shape[1])


class _CapturedPass:
    """A forward and backward pass as one CUDA graph: its many small kernels take longer to launch than to run."""

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor], module: nn.Module
    ) -> None:
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
    world: World,
    *,
    minutes: float,
    single_frames: float = 0.2,
    decoder_only: bool = False,
    rng: np.random.Generator,
    device: torch.device,
    log: Log,
    frame_batch: int = 16,
    clip_batch: int = 8,
) -> AutoencoderKLWan:
    """Trains the autoencoder, on single frames for a share of the time and then on whole clips.

    Whole clips, because the causal decoder hands features from frame to frame: trained on 9, its later ones decay. The
    scale of its latents is unknown afterwards (latents_std is 1), and `train.train_dit` measures it. With
    `decoder_only` latents stay what they are, and with them all that a transformer has learned of them.
    """
    vae.to(device).train()
    learns = [vae.decoder, vae.post_quant_conv] if decoder_only else [vae]
    vae.requires_grad_(False)
    parameters = [parameter for part in learns for parameter in part.requires_grad_(True).parameters()]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 4 and min(parameter.flatten(1).shape) > 1]
    known = {id(parameter) for parameter in matrices}
    optimizers = optimizers_for(matrices, [parameter for parameter in parameters if id(parameter) not in known])

    def loss_of(video: Tensor, noise: Tensor) -> Tensor:
        latents = vae.encode(video).latent_dist.mean
        # The small second term only keeps the latents' scale from drifting.
        return reconstruction_loss(decode(vae, latents + noise), video) + 1e-4 * latents.square().mean()

    captured: dict[bool, _CapturedPass] = {}
    clock, step = Clock(minutes), 0
    while (progress := clock.progress) < 1:
        single = progress < single_frames
        # Crowded clips: most of a frame is empty, and teaches nothing about shapes.
        prompts = world.make_prompts(frame_batch if single else clip_batch, rng, nouns=world.CROWDED, split="train")
        scenes = world.draw_scenes(prompts, rng)
        if single:
            video = world.render(scenes, frames=rng.choice(world.FRAMES, 8, replace=False).tolist(), device=device)
            video = video.transpose(1, 2).flatten(0, 1)[:, :, None]
        else:
            video = world.render(scenes, device=device)
        cells = (1 + (video.shape[2] - 1) // 4, world.SIZE // 8, world.SIZE // 8)
        noise = LATENT_NOISE * torch.randn(len(video), LATENT_CHANNELS, *cells, device=device)
        if device.type == "cuda":
            if single not in captured:
                captured.clear()
                captured[single] = _CapturedPass(loss_of, (video, noise), vae)
            loss = captured[single](video, noise)
        else:
            vae.zero_grad()
            loss = loss_of(video, noise)
            loss.backward()
        take_step(optimizers, ramp(step, progress, 0.5))
        if step % 50 == 0:
            log("vae", step=step, single=single, loss=loss.item())
        step += 1
    log("vae", step=step)
    if not decoder_only:
        set_scale(vae, torch.zeros(LATENT_CHANNELS), torch.ones(LATENT_CHANNELS))
    return vae.eval()


def set_scale(vae: AutoencoderKLWan, mean: Tensor, std: Tensor) -> None:
    """Writes the channels' mean and deviation into the configuration, by which the pipeline normalises latents."""
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
