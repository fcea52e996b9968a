"""The models at their true shapes with random weights, as their hubs' configs have them; tiny ones for machines without
a GPU. What a pass costs doesn't depend on the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn

from pipelines.base import GenerationConfig, ModelFacts, Text
from pipelines.checkpoints.loading import default_dtype, kept_dtype, put
from pipelines.models.adapter import Adapter
from pipelines.models.cogvideox import CogVideoXModel
from pipelines.models.families import FAMILIES
from pipelines.models.wan import WanModel
from tests.twins import cogvideox_scheduler


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model, and the clip it is made for."""

    family: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=dict)
    strides: tuple[int, int, int] = (4, 16, 16)
    shift: float | None = 3.0
    clip: GenerationConfig = GenerationConfig()  # noqa: RUF009 - frozen
    text_tokens: int = 512


WAN22_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "in_channels": 12,
    "out_channels": 12,
    "is_residual": True,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
COG_VAE = {"scaling_factor": 0.7, "sample_height": 480, "sample_width": 720}
TINY_WAN = {"num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 64, "num_layers": 2, "text_dim": 32}
TINY_VAE = {"base_dim": 8, "num_res_blocks": 1}

SHAPES = {
    "wan2.1-1.3b": Shape(
        family="WanPipeline", transformer={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    ),
    "wan2.1-14b": Shape(
        family="WanPipeline", transformer={"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
    ),
    "wan2.2-5b": Shape(
        family="WanPipeline",
        transformer={
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "num_layers": 30,
            "in_channels": 48,
            "out_channels": 48,
        },
        vae=WAN22_VAE,
        strides=(4, 32, 32),
        shift=5.0,
        clip=GenerationConfig(height=704, width=1280, num_frames=121, fps=24),
    ),
    "cogvideox-5b": Shape(
        family="CogVideoXPipeline",
        transformer={
            "num_attention_heads": 48,
            "num_layers": 42,
            "use_rotary_positional_embeddings": True,
        },
        vae=COG_VAE,
        shift=None,
        clip=GenerationConfig(height=480, width=720, num_frames=49, fps=8, guidance_scale=6.0),
        text_tokens=226,
    ),
}

WRITTEN = 40  # tokens of a random text, before its padding
SMALL = GenerationConfig(height=128, width=256, num_frames=9, fps=8)
TINY = {
    "wan2.1-1.3b": Shape(family="WanPipeline", transformer=TINY_WAN, vae=TINY_VAE, clip=SMALL, text_tokens=48),
    "wan2.2-5b": Shape(
        family="WanPipeline",
        transformer=TINY_WAN | {"in_channels": 48, "out_channels": 48},
        vae=WAN22_VAE | TINY_VAE | {"decoder_base_dim": 8},
        strides=(4, 32, 32),
        shift=5.0,
        clip=SMALL,
        text_tokens=48,
    ),
    "cogvideox-5b": Shape(
        family="CogVideoXPipeline",
        transformer={
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "num_layers": 2,
            "text_embed_dim": 32,
            "use_rotary_positional_embeddings": True,
        },
        vae=COG_VAE | {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1},
        shift=None,
        clip=SMALL,
        text_tokens=48,
    ),
}


def build(name: str, device: torch.device, *, tiny: bool = False, vae: bool = True) -> Adapter:
    """The project's own adapter around random weights; without a text encoder."""
    shape = (TINY if tiny else SHAPES)[name]
    joint = shape.family == "CogVideoXPipeline"
    kinds: tuple[Any, ...] = (
        (CogVideoXTransformer3DModel, AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXModel)
        if joint
        else (WanTransformer3DModel, AutoencoderKLWan, WanPipeline, WanModel)
    )
    transformer_kind, vae_kind, pipeline_kind, adapter = kinds
    transformer = filled(transformer_kind, shape.transformer, torch.bfloat16, device)
    vae_dtype = FAMILIES[shape.family].vae_precision(torch.bfloat16)
    parts: dict[str, Any] = {
        "tokenizer": None,
        "text_encoder": None,
        "transformer": transformer,
        "vae": filled(vae_kind, shape.vae, vae_dtype, device) if vae else None,
        "scheduler": scheduler(shape),
    }
    if shape.family == "WanPipeline":
        parts["expand_timesteps"] = name == "wan2.2-5b"
    pipeline = pipeline_kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    facts = ModelFacts(
        path="",
        name=name,
        revision="",
        family=shape.family,
        depth=shape.transformer["num_layers"],
        heads=shape.transformer["num_attention_heads"],
        head_size=transformer.config.attention_head_dim,
        joint=joint,
        frame_step=8 if joint else 4,
        token_strides=shape.strides,
        sampler=type(pipeline.scheduler).__name__,
        shift=shape.shift,
        large_shift=FAMILIES[shape.family].large_shift,
    )
    built: Adapter = adapter(pipeline, facts, device)
    built.text_tokens = shape.text_tokens
    return built


def scheduler(shape: Shape) -> Any:
    if shape.shift is None:
        return cogvideox_scheduler()
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shape.shift)


def filled(kind: Any, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Random weights, made on the device in the dtypes that loading gives them: matrices normal 0.02, scales 1."""
    with default_dtype(dtype), init_empty_weights(include_buffers=False):
        module: nn.Module = kind(**config)
    generator = torch.Generator(device).manual_seed(0)
    for name, built in list(module.named_parameters()):
        value = torch.empty(built.shape, dtype=kept_dtype(module, name, built, dtype), device=device)
        if value.dim() > 1:
            value.normal_(std=0.02, generator=generator)
        else:
            value.fill_(1.0 if name.endswith("weight") else 0.0)
        put(module, name, nn.Parameter(value, requires_grad=False))
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else buffer.to(device)
    return module.eval().requires_grad_(False)


def random_texts(model: Adapter, clips: int = 1) -> list[Text]:
    """What a text encoder could have given, padded as the family's pipeline does it: Wan's with zeros."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (1, model.text_tokens, model.text_width)
    dtype, made = model.transformer.dtype, []
    for _ in range(clips):
        both = [torch.randn(shape, generator=generator).to(model.device, dtype) for _ in range(2)]
        if not model.facts.joint:
            for text in both:
                text[:, WRITTEN:] = 0
        made.append(Text("", both[0], both[1], ()))
    return made
