"""Fuses a LoRA's file into a transformer, every tensor of it: published files hold more than pairs of matrices.

    ….lora_down.weight, ….lora_up.weight, or lora_A, lora_B     W + scale · alpha/r · up·down, r the rank
    ….alpha                                                     r, where there is none
    ….diff, ….diff_b, ….diff_m                                  weight, bias or modulation + scale · difference

diffusers converts the pairs' names, and PEFT multiplies them. Differences, most of which diffusers drops, are added
here.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from numina.errors import ModelError
from pipelines.checkpoints.files import header_of
from pipelines.checkpoints.lora import LoraConfig, lora_file
from pipelines.private.diffusers import wan_name

COMFY = "diffusion_model."  # before Wan's own names of layers, in most published files
DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}


def fuse(pipeline: Any, lora: LoraConfig) -> None:
    """Adds a LoRA to the transformer's weights, which must be whole on this rank.

    The tensors' names may be other tools'; diffusers converts them. Raises ModelError where the LoRA isn't all used.
    """
    file = lora_file(lora)
    header = header_of(file)
    if dora := [key for key in header if "dora_scale" in key]:
        raise ModelError(f"{file} is a DoRA: diffusers doesn't load {dora[0]}; use a LoRA")
    if any(key.startswith(COMFY) for key in header):
        pairs = load_file(file)
        differences = _take_differences(pairs)
        _fold_alphas(pairs)
        if left := [key for key in pairs if not key.startswith(COMFY) or key.endswith(".alpha")]:
            what = "has no pair" if left[0].endswith(".alpha") else f"doesn't begin with {COMFY}, as others do"
            raise ModelError(f"{file} is of no known layout: {left[0]} {what}; use a LoRA that was made for this model")
        added = _check_differences(pipeline.transformer, differences, file)
        if pairs:
            _fuse_pairs(pipeline, lora, file, pairs)
        with torch.no_grad():
            for parameter, difference in added:
                parameter.add_(difference.to(parameter.device, torch.float32), alpha=lora.scale)
    else:
        _fuse_pairs(pipeline, lora, file)


def _take_differences(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The differences of a file with Wan's own names, taken out of it."""
    return {key: tensors.pop(key) for key in list(tensors) if key.rpartition(".")[2] in DIFFERENCES}


def _fold_alphas(tensors: dict[str, Tensor]) -> None:
    """Multiplies the factor alpha/r into one matrix of each pair; diffusers does so for some layers only."""
    for key in [key for key in tensors if key.endswith(".alpha")]:
        stem = key.removesuffix(".alpha")
        for down, up in (("lora_down", "lora_up"), ("lora_A", "lora_B")):
            names = [f"{stem}.{side}.weight" for side in (down, up)]
            if all(name in tensors for name in names):
                first, second = (tensors[name].float() for name in names)
                tensors |= {names[0]: first * (tensors.pop(key).item() / len(first)), names[1]: second}


def _check_differences(
    transformer: Any, differences: dict[str, Tensor], file: Path
) -> list[tuple[torch.nn.Parameter, Tensor]]:
    """Pairs each difference with the parameter that it changes. Raises ModelError if no parameter has its shape."""
    parameters, added = dict(transformer.named_parameters()), []
    for key, difference in differences.items():
        stem, _, kind = key.removeprefix(COMFY).rpartition(".")
        name = wan_name(f"{stem}.{DIFFERENCES[kind]}")
        if name not in parameters or parameters[name].shape != difference.shape:
            shape = f" {list(parameters[name].shape)}" if name in parameters else ""
            raise ModelError(
                f"{file} doesn't fit {type(transformer).__name__}: {key} {list(difference.shape)} is no difference of"
                f" {name}{shape}; use a LoRA that was made for this model"
            )
        added.append((parameters[name], difference))
    return added


def _fuse_pairs(pipeline: Any, lora: LoraConfig, file: Path, pairs: dict[str, Tensor] | None = None) -> None:
    """Adds the products of matrices, by diffusers and PEFT; all of the file where its `pairs` aren't given."""
    from peft.utils import get_peft_model_state_dict

    kind = type(pipeline.transformer).__name__
    source: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    try:
        given = pipeline.lora_state_dict(pairs or str(file.parent), **source)
        pipeline.load_lora_weights(given if pairs else str(file.parent), adapter_name="lora", **source)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        problem = " ".join(str(error).split())[:300]
        raise ModelError(f"{file} doesn't fit {kind}: {problem}; use a LoRA that was made for this model") from error
    added = hasattr(pipeline.transformer, "peft_config")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*have invalid shape")  # it takes biases for shards
        used = get_peft_model_state_dict(pipeline.transformer, adapter_name="lora") if added else {}
    left = [key for key in given if key.removeprefix("transformer.") not in used]
    if len(given) > len(used):
        raise ModelError(
            f"{file} doesn't fit {kind}: {len(given) - len(used)} of its {len(given)} tensors belong to no layer, such"
            f" as {left[0]}; use a LoRA that was made for this model"
        )
    pipeline.fuse_lora(lora_scale=lora.scale, adapter_names=["lora"])
    pipeline.unload_lora_weights()
