"""diffusers' private names."""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.transformers import transformer_wan
from torch import Tensor

from numina.private.library import Library

DIFFUSERS = Library("diffusers", "==0.42.1")

wan_projections = DIFFUSERS.private(transformer_wan, "_get_qkv_projections")
"""Queries, keys and values of one of Wan's attentions, as its own processor makes them."""


def enable_parallelism(transformer: Any, config: Any, device: torch.device) -> None:
    """The transformer's own `enable_parallelism`, without a plan for its inputs, on any device.

    diffusers 0.42 finds the device by `rank % accelerator count`, which divides by zero on a CPU machine.
    """
    kind = DIFFUSERS.private(DIFFUSERS.module("diffusers.models._modeling_parallel"), "ParallelConfig")
    DIFFUSERS.private(transformer, "_resolve_parallel_config")

    def resolve(self: Any, chosen: Any) -> Any:
        resolved = kind(context_parallel_config=chosen)
        resolved.setup(dist.get_rank(), dist.get_world_size(), device, mesh=chosen.mesh)
        self._parallel_config = resolved
        return resolved

    transformer._resolve_parallel_config = MethodType(resolve, transformer)
    transformer.enable_parallelism(config=config, cp_plan={})


def forget_cache(transformer: Any) -> None:
    """Frees what the hooks of a step cache hold."""
    DIFFUSERS.private(transformer, "_reset_stateful_cache")()


def rotary_tables(pipeline: Any, height: int, width: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a CogVideoX clip of so many pixels and latent frames."""
    tables: tuple[Tensor, Tensor] = DIFFUSERS.private(pipeline, "_prepare_rotary_positional_embeddings")(
        height, width, frames, device
    )
    return tables


def wan_name(name: str) -> str:
    """diffusers' name of a tensor that Wan's own code names so."""
    names = DIFFUSERS.module("diffusers.loaders.single_file_utils")
    convert = DIFFUSERS.private(names, "convert_wan_transformer_to_diffusers")
    [converted] = convert({name: torch.empty(0)})
    return str(converted)


def padding_of(convolution: Any) -> Sequence[int]:
    """Of a `WanCausalConv3d`: left, right, top, bottom, frames before, frames after."""
    padding: Sequence[int] = DIFFUSERS.private(convolution, "_padding")
    return padding


def feature_cache(vae: Any) -> list[Any]:
    """What a Wan VAE's decoder keeps of the frames before, after `clear_cache`."""
    cache: list[Any] = DIFFUSERS.private(vae, "_feat_map")
    return cache


def float32_parts(module: Any) -> Sequence[str]:
    """Names of the parts of a half-precision model that stay in float32."""
    return DIFFUSERS.private(module, "_keep_in_fp32_modules") or ()


def ignored_keys(module: Any) -> Sequence[str]:
    """Patterns of tensors that files may hold and the model doesn't."""
    return DIFFUSERS.private(module, "_keys_to_ignore_on_load_unexpected") or ()


def attention_backend(processor: Any) -> str:
    """The name of the kernel that a processor calls; one without a choice calls PyTorch's own."""
    if not hasattr(processor, "_attention_backend"):
        return "native"
    chosen = processor._attention_backend
    if chosen is None:
        dispatch = DIFFUSERS.module("diffusers.models.attention_dispatch")
        chosen = DIFFUSERS.private(dispatch, "_AttentionBackendRegistry").get_active_backend()[0]
    return str(chosen.value)
