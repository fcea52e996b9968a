"""Wan2.1 text-to-video through diffusers: loads `Wan-AI/Wan2.1-T2V-*-Diffusers` and any folder of that layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from numina.errors import ModelError
from pipelines.base import GenerationConfig, Grid, ModelFacts, Scheduler, Text, prompt_offsets
from pipelines.checkpoint import inspect

MAX_TEXT_TOKENS = 512  # Wan2.1's text length; a tokenizer with a smaller `model_max_length` wins


class WanModel:
    """A Wan2.1 text-to-video checkpoint as a `VideoModel`."""

    def __init__(self, pipeline: WanPipeline, facts: ModelFacts, device: torch.device):
        self.facts = facts
        self.device = device
        self.pipeline = pipeline
        self.transformer = pipeline.transformer

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Self:
        """Loads a checkpoint folder. `dtype` is the transformer's and text encoder's; the VAE stays float32.

        Raises ModelError when a part is missing or of another family.
        """
        facts = inspect(path)
        quiet_loading()
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        pipeline = WanPipeline.from_pretrained(
            facts.path, local_files_only=True, dtype={"default": dtype, "vae": torch.float32}
        )
        if not pipeline.tokenizer.is_fast:
            raise ModelError(f"{facts.path}/tokenizer is not a fast tokenizer; token offsets need tokenizer.json")
        for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
            part.to(device).eval().requires_grad_(False)
        return cls(pipeline, facts, torch.device(device))

    @property
    def depth(self) -> int:
        return self.facts.depth

    def grid(self, generation: GenerationConfig) -> Grid:
        return self.facts.grid(generation)

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], generation: GenerationConfig
    ) -> list[Text]:
        length = min(self.pipeline.tokenizer.model_max_length, MAX_TEXT_TOKENS)
        guided = generation.guidance_scale > 1
        with torch.inference_mode():
            conditional, unconditional = self.pipeline.encode_prompt(
                list(prompts),
                list(negative_prompts),
                do_classifier_free_guidance=guided,
                max_sequence_length=length,
                device=self.device,
                dtype=self.transformer.dtype,
            )
        cleaned = [prompt_clean(prompt) for prompt in prompts]
        tokens = self.pipeline.tokenizer(
            cleaned, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True
        )
        return [
            Text(
                prompt,
                conditional[i : i + 1],
                unconditional[i : i + 1] if guided else None,
                prompt_offsets(tokens["offset_mapping"][i]),
            )
            for i, prompt in enumerate(cleaned)
        ]

    def noise(self, seeds: Sequence[int], generation: GenerationConfig) -> Tensor:
        grid, patch = self.grid(generation), self.transformer.config.patch_size
        shape = (
            self.transformer.config.in_channels,
            grid.frames * patch[0],
            grid.height * patch[1],
            grid.width * patch[2],
        )
        clips = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return torch.stack(clips).to(self.device)

    def scheduler(self, generation: GenerationConfig, kept: Sequence[int] | None = None) -> Scheduler:
        options: dict[str, Any] = {}
        if generation.flow_shift is not None:
            options["flow_shift"] = generation.flow_shift
        scheduler = UniPCMultistepScheduler.from_config(self.pipeline.scheduler.config, **options)
        scheduler.set_timesteps(generation.steps, device=self.device)
        scheduler.set_begin_index(0)
        if kept is not None:
            steps = torch.as_tensor(kept)
            scheduler.timesteps = scheduler.timesteps[steps.to(scheduler.timesteps.device)]
            clean = scheduler.sigmas[-1:]
            scheduler.sigmas = torch.cat([scheduler.sigmas[steps], clean])
            scheduler.num_inference_steps = len(kept)
        return scheduler

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            timestep=timestep.expand(latents.shape[0]),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]

    def self_attention(self, block: int) -> Any:
        return self.transformer.blocks[block].attn1

    def cross_attention(self, block: int) -> Any:
        return self.transformer.blocks[block].attn2

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.device, vae.dtype)
        mean, std = (
            torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        video = vae.decode(latents * std + mean, return_dict=False)[0]  # [B, 3, frames, height, width] in [-1, 1]
        pixels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 4, 1).contiguous().cpu()


def quiet_loading() -> None:
    """Keeps the libraries' loading bars out of logs; errors still show."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
