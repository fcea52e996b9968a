"""Wan text-to-video through diffusers: `Wan-AI/Wan2.1-T2V-*-Diffusers`, `Wan2.2-TI2V-5B-Diffusers`, and their like.

Text has cross-attention of its own. Wan2.2's TI2V gives every token a timestep (`expand_timesteps`), so that the
tokens of a given image can have another one; from text alone all are equal, and one stands for all: the same numbers
without a table of six vectors per token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from transformers import UMT5EncoderModel

from numina.bias import ShardGuidance
from pipelines.attention.cross import GuidedCrossAttention, Onlooker, project
from pipelines.base import Attention, Decoded, GenerationConfig, Processor, Scheduler, Seams, See
from pipelines.models.adapter import Adapter, Kinds
from pipelines.models.samplers import flow_scheduler
from pipelines.parallel.shard import Shard
from pipelines.video.decode import decode_pixels, split_decoder


class WanModel(Adapter):
    """A Wan text-to-video checkpoint as a `VideoModel`."""

    kinds = Kinds(
        pipeline=WanPipeline,
        transformer=WanTransformer3DModel,
        vae=AutoencoderKLWan,
        text_encoder=UMT5EncoderModel,
        clean=prompt_clean,
        left_out=("transformer_2",),
    )

    @property
    def blocks(self) -> Sequence[Any]:
        return list(self.transformer.blocks)

    @property
    def seams(self) -> Seams:
        own = self.transformer
        attentions = [block.attn1 for block in self.blocks]
        return Seams(
            patches=own.patch_embedding, tables=own.rope, rows=own.proj_out, attentions=attentions, project=project
        )

    @property
    def text_width(self) -> int:
        width: int = self.transformer.config.text_dim
        return width

    def noise(self, seeds: Sequence[int], generation: GenerationConfig) -> Tensor:
        grid, patch = self.grid(generation), self.transformer.config.patch_size
        sizes = (grid.frames * patch[0], grid.height * patch[1], grid.width * patch[2])
        return self.seeded(seeds, (self.transformer.config.in_channels, *sizes))

    def scheduler(self, generation: GenerationConfig, kept: Sequence[int] | None = None) -> Scheduler:
        scheduler = flow_scheduler(self.pipeline.scheduler.config, self.facts, generation, self.device)
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

    def onlookers(self, block: int, see_cross: See, see_self: See | None) -> Mapping[Attention, Processor]:
        cross, own = self.cross_attention(block), self.self_attention(block)
        watched = {cross: Onlooker(cross.processor, see_cross)}
        return watched if see_self is None else watched | {own: Onlooker(own.processor, see_self)}

    def guided(self, guidance: ShardGuidance, shard: Shard) -> Mapping[Attention, Processor]:
        return {self.cross_attention(block): GuidedCrossAttention(guidance, shard) for block in range(self.depth)}

    def split_decoder(self, group: Any) -> None:
        split_decoder(self.vae, group)

    def decode(self, latents: Tensor) -> Decoded | None:
        """See `decode_pixels`: after `split_decoder`, ranks share the work and only the first returns pixels."""
        return decode_pixels(self.vae, latents)
