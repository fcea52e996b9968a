"""CogVideoX text-to-video through diffusers: `THUDM/CogVideoX-5b` and its like.

Text and video are one sequence of joint attention. Clips are denoised by DDIM, which has no randomness of its own, also
where the folder names CogVideoX's DPM sampler: a clip can then be gone on with, and is the same each time. Latents stay
in float32 between steps. The VAE is in the transformer's dtype, as diffusers has it; one rank decodes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch import Tensor
from transformers import T5EncoderModel

from numina.bias import ShardGuidance
from pipelines.attention.joint import GuidedJointAttention, JointOnlooker
from pipelines.base import Attention, Decoded, GenerationConfig, Processor, Scheduler, See
from pipelines.models.adapter import Adapter, Kinds
from pipelines.parallel.shard import Shard
from pipelines.private.diffusers import rotary_tables
from pipelines.video.decode import all_finite, to_pixels


class CogVideoXModel(Adapter):
    """A CogVideoX text-to-video checkpoint as a `VideoModel`."""

    kinds = Kinds(
        pipeline=CogVideoXPipeline,
        transformer=CogVideoXTransformer3DModel,
        vae=AutoencoderKLCogVideoX,
        text_encoder=T5EncoderModel,
        clean=str,  # prompts are taken as they are
    )
    decodes = True  # whether this rank does
    _rotary: tuple[Tensor, Tensor] | None = None
    _rotary_of: torch.Size | None = None  # the latents that these tables are for

    @property
    def blocks(self) -> Sequence[Any]:
        return list(self.transformer.transformer_blocks)

    @property
    def text_width(self) -> int:
        width: int = self.transformer.config.text_embed_dim
        return width

    def noise(self, seeds: Sequence[int], generation: GenerationConfig) -> Tensor:
        grid, patch = self.grid(generation), self.transformer.config.patch_size
        shape = (self.transformer.config.in_channels, grid.frames, grid.height * patch, grid.width * patch)
        return self.seeded(seeds, shape)

    def scheduler(self, generation: GenerationConfig, kept: Sequence[int] | None = None) -> Scheduler:
        assert kept is None, "`ModelFacts.check_stride` refuses it before anything is loaded"
        self.facts.flow_shift(generation)  # refuses one
        scheduler = CogVideoXDDIMScheduler.from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(generation.steps, device=self.device)
        return scheduler

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        if latents.shape[2:] != self._rotary_of:
            self._rotary, self._rotary_of = self._rotary_tables(*latents.shape[2:]), latents.shape[2:]
        predicted = self.transformer(
            hidden_states=latents.transpose(1, 2).to(self.transformer.dtype),
            encoder_hidden_states=text,
            timestep=timestep.expand(latents.shape[0]),
            image_rotary_emb=self._rotary,
            return_dict=False,
        )[0]
        return predicted.float().transpose(1, 2)

    def _rotary_tables(self, frames: int, height: int, width: int) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines for a clip of so many latents: the same in all its forwards."""
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        patch, stride = self.transformer.config.patch_size, self.facts.token_strides
        pixels = (height // patch * stride[1], width // patch * stride[2])
        return rotary_tables(self.pipeline, *pixels, frames, self.device)

    def onlookers(self, block: int, see_cross: See, see_self: See | None) -> Mapping[Attention, Processor]:
        joint = self.blocks[block].attn1
        return {joint: JointOnlooker(joint.processor, see_cross, see_self)}

    def guided(self, guidance: ShardGuidance, shard: Shard) -> Mapping[Attention, Processor]:
        return {block.attn1: GuidedJointAttention(guidance, shard) for block in self.blocks}

    def split_decoder(self, group: Any) -> None:
        """Its decoder can't be split: the group's first rank decodes, the others don't wait."""
        self.decodes = dist.get_rank(group) == 0

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Decoded | None:
        if not self.decodes:
            return None
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels, finite = [], []
        for clip in latents:
            frames = self.vae.decode(clip[None]).sample
            pixels.append(to_pixels(frames).cpu())
            finite.append(all_finite(frames).cpu())
        return Decoded(torch.cat(pixels), torch.cat(finite))
