"""Wan2.1 text-to-video through diffusers: loads `Wan-AI/Wan2.1-T2V-*-Diffusers` and any folder of that layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from numina.errors import ModelError
from pipelines.base import GenerationConfig, Grid, ModelFacts, Scheduler, Text, prompt_offsets
from pipelines.checkpoint import check_parts, inspect
from pipelines.decode import decode_pixels
from pipelines.loading import Loader, agree
from pipelines.parallel import MemoryConfig
from pipelines.sharding import placement

MAX_TEXT_TOKENS = 512  # Wan2.1's text length; a tokenizer with a smaller `model_max_length` wins


class WanTextEncoder:
    """A Wan checkpoint's tokenizer and text encoder: prompts to what the transformer attends to."""

    def __init__(self, pipeline: WanPipeline, dtype: torch.dtype, device: torch.device):
        self.pipeline = pipeline  # of which the tokenizer and the text encoder are used
        self.dtype = dtype  # of the encodings
        self.device = device
        self.loading: dict[str, float] = {}  # seconds and bytes: see `Loader`

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Self:
        """Loads these two parts of a checkpoint folder alone. Raises ModelError where one is missing or doesn't fit."""
        folder, place = Path(path), torch.device(device)
        agree(lambda: check_parts(folder, ("tokenizer", "text_encoder")), place)
        quiet_loading()
        dtype = dtype or default_dtype_of(place)
        loader = Loader(place)
        encoder = loader.load(UMT5EncoderModel, folder / "text_encoder", dtype)
        loaded = cls(assemble(folder, text_encoder=encoder, transformer=None, vae=None, scheduler=None), dtype, place)
        loaded.loading = loader.spent
        return loaded

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], generation: GenerationConfig
    ) -> list[Text]:
        """One text per prompt, each with its own negative prompt's where the generation is guided."""
        length = text_tokens(self.pipeline.tokenizer)
        guided = generation.guidance_scale > 1
        with torch.inference_mode():
            conditional, unconditional = self.pipeline.encode_prompt(
                list(prompts),
                list(negative_prompts),
                do_classifier_free_guidance=guided,
                max_sequence_length=length,
                device=self.device,
                dtype=self.dtype,
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


class WanModel:
    """A Wan2.1 text-to-video checkpoint as a `VideoModel`."""

    def __init__(self, pipeline: WanPipeline, facts: ModelFacts, device: torch.device):
        self.facts = facts
        self.device = device
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        self.vae = getattr(pipeline, "vae", None)
        self.text_tokens = text_tokens(getattr(pipeline, "tokenizer", None))
        self.loading: dict[str, float] = {}  # seconds and bytes: see `Loader`

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        memory: MemoryConfig | None = None,
        text_encoder: bool = True,
    ) -> Self:
        """Loads a checkpoint folder. `dtype` is the transformer's and text encoder's; the VAE stays float32.

        All ranks of a gang call at the same time, with the same arguments; the first reads for all. The VAE is whole on
        every rank, whatever is sharded. Raises ModelError when a part is missing, of another family, or its weights
        don't fit its config, and ConfigError where sharding can't be had.
        """
        place = torch.device(device)
        facts = agree(lambda: inspect(path), place)
        quiet_loading()
        dtype = dtype or default_dtype_of(place)
        sharded = placement((memory or MemoryConfig()).shard, place)
        loader, folder = Loader(place), Path(facts.path)
        parts = {
            "transformer": loader.load(WanTransformer3DModel, folder / "transformer", dtype, sharded),
            "vae": loader.load(AutoencoderKLWan, folder / "vae", torch.float32),
        }
        encoder = loader.load(UMT5EncoderModel, folder / "text_encoder", dtype, sharded) if text_encoder else None
        model = cls(assemble(folder, text_encoder=encoder, **parts), facts, place)
        model.loading = loader.spent
        return model

    @property
    def depth(self) -> int:
        return self.facts.depth

    def grid(self, generation: GenerationConfig) -> Grid:
        return self.facts.grid(generation)

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], generation: GenerationConfig
    ) -> list[Text]:
        if self.pipeline.text_encoder is None:
            raise ModelError(
                f"{self.facts.path} was loaded without its text encoder; encode with `load_text_encoder`, as"
                " memory.text_encoder=apart does, or load the model with text_encoder=True"
            )
        return WanTextEncoder(self.pipeline, self.transformer.dtype, self.device).encode(
            prompts, negative_prompts, generation
        )

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

    def decode(self, latents: Tensor) -> Tensor | None:
        """See `decode_pixels`: after `split_decoder`, ranks share the work and only the first returns pixels."""
        return decode_pixels(self.pipeline.vae, latents)


def assemble(folder: Path, **parts: Any) -> WanPipeline:
    """A pipeline of parts that are loaded, or left out by None; the others of the folder, which are small, are read.

    Raises ModelError where the tokenizer can't tell offsets.
    """
    pipeline = WanPipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, transformer_2=None, **parts
    )
    if not pipeline.tokenizer.is_fast:
        raise ModelError(f"{folder}/tokenizer is not a fast tokenizer; token offsets need tokenizer.json")
    return pipeline


def text_tokens(tokenizer: Any | None) -> int:
    """How many tokens every prompt is padded to."""
    return min(tokenizer.model_max_length, MAX_TEXT_TOKENS) if tokenizer else MAX_TEXT_TOKENS


def default_dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def quiet_loading() -> None:
    """Keeps the libraries' loading bars out of logs; errors still show."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
