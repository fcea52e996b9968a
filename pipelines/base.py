"""What every video model offers the method: the one protocol behind which families differ.

Names: B clips of a batch, F latent frames, H W token grid of a frame, N heads, D head size, T text tokens, C latent
channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from numina.errors import ConfigError
from pipelines.cache import check_cache


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What a clip looks like and how it is sampled. All of it enters a row's key."""

    height: int = 480  # pixels
    width: int = 832  # pixels
    num_frames: int = 81  # 4k + 1, as causal video VAEs need
    fps: int = 16  # frames per second of the mp4; Wan2.1's own rate
    steps: int = 50  # denoising steps; Wan2.1's default
    guidance_scale: float = 5.0  # classifier-free guidance; 1 turns the unconditional pass off
    flow_shift: float | None = None  # schedule shift; null keeps the checkpoint's own
    negative_prompt: str = ""  # used where a row has none
    cache: str = "none"  # step cache of plain, continued and guided denoising (see pipelines/cache.py)
    crf: int = 18  # x264 quality of the mp4, 0 (lossless) to 51

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.num_frames % 4 != 1:
            near = max(1, round((self.num_frames - 1) / 4) * 4 + 1)
            raise ConfigError(f"generation.num_frames is {self.num_frames}; it must be 4k + 1: use {near}")
        for name in ("height", "width"):
            if getattr(self, name) < 16 or getattr(self, name) % 16:
                raise ConfigError(f"generation.{name} is {getattr(self, name)}; it must be a positive multiple of 16")
        if self.steps < 1:
            raise ConfigError(f"generation.steps is {self.steps}; at least one step is needed")
        if self.fps < 1:
            raise ConfigError(f"generation.fps is {self.fps}; it must be at least 1")
        check_cache("generation.cache", self.cache)
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"generation.crf is {self.crf}; x264 takes 0 (lossless) to 51 (worst)")


@dataclass(frozen=True)
class Grid:
    """A clip's tokens: F latent frames of H × W tokens, numbered frame by frame, row by row."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a checkpoint's own configs say, read without loading a weight."""

    path: str
    name: str
    revision: str  # content-derived
    depth: int  # transformer blocks
    heads: int
    head_size: int
    token_strides: tuple[int, int, int]  # frames, pixels down, pixels across per token
    transformer_bytes: int  # of the weight files

    def grid(self, generation: GenerationConfig) -> Grid:
        """The token grid of a clip. Raises ConfigError where a side is no multiple of the model's stride."""
        time, *space = self.token_strides
        for name, stride in zip(("height", "width"), space, strict=True):
            value = getattr(generation, name)
            if value % stride:
                near = max(stride, round(value / stride) * stride)
                raise ConfigError(f"generation.{name} is {value}; {self.name} needs a multiple of {stride}: use {near}")
        height, width = generation.height // space[0], generation.width // space[1]
        return Grid((generation.num_frames - 1) // time + 1, height, width)


@dataclass(frozen=True)
class Text:
    """A prompt as the transformer takes it, and where its tokens stand in the prompt.

    `conditional` and `unconditional` are [1, T, text_dim]; `offsets` has one (start, end) per token, in characters of
    `prompt`, which is the prompt after the pipeline's own cleaning. Special and padding tokens have (0, 0).
    """

    prompt: str
    conditional: Tensor
    unconditional: Tensor | None
    offsets: tuple[tuple[int, int], ...]


class Scheduler(Protocol):
    """The part of a diffusers scheduler that denoising uses; it carries its own multistep history."""

    timesteps: Tensor

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool) -> tuple[Tensor, ...]: ...


class TextEncoder(Protocol):
    """What makes of prompts what the transformer takes."""

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], generation: GenerationConfig
    ) -> list[Text]: ...


class VideoModel(TextEncoder, Protocol):
    """A text-to-video diffusion transformer with its text encoder, sampler and VAE."""

    facts: ModelFacts
    device: torch.device
    transformer: Any  # diffusers' transformer
    vae: Any  # diffusers' autoencoder
    text_tokens: int  # T, of every encoded prompt
    loading: dict[str, float]  # what it took: seconds to read and to send, and the bytes

    @property
    def depth(self) -> int: ...

    def grid(self, generation: GenerationConfig) -> Grid: ...

    def noise(self, seeds: Sequence[int], generation: GenerationConfig) -> Tensor:
        """Seeded noise [B, C, F, h, w], float32, each clip's drawn on the CPU from its own seed: any number of ranks,
        and any batch, starts from the same."""

    def scheduler(self, generation: GenerationConfig, kept: Sequence[int] | None = None) -> Scheduler:
        """The sampler at its start; with only the `kept` steps of its schedule (ascending indices) where given."""

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """One forward of the transformer: [B, C, F, h, w], one timestep, [B, T, text_dim] → velocities."""

    def self_attention(self, block: int) -> Any: ...

    def cross_attention(self, block: int) -> Any: ...

    def decode(self, latents: Tensor) -> Tensor | None:
        """[B, C, F, h, w] → uint8 [B, num_frames, height, width, 3] on the CPU.

        All ranks of a gang have a part in it, and the first one has the result; the others get None.
        """


def prompt_offsets(offsets: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """A tokenizer's offsets as plain tuples."""
    return tuple((int(start), int(end)) for start, end in offsets)
