"""LoRA: low-rank changes of a transformer's weights, W + scale · B·A, made once when a model is loaded.

They are fused into the weights, so that engines, compiled blocks and guidance see plain layers, and a step costs what
it did. Distilled few-step LoRAs are used like any other, with generation.steps=4 to 8 and generation.guidance_scale=1.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from numina.errors import ConfigError, ModelError
from pipelines.checkpoints.files import add_file, header_of
from pipelines.checkpoints.hub import commit_of, fetch

FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name
KEY = "model.loras"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A LoRA's file, and its scale."""

    path: str  # a safetensors file, a folder with one, or a hub id OWNER/NAME
    scale: float = 1.0  # [factor] on the LoRA's change; 1: as it was trained
    revision: str | None = None  # the commit of a hub id, 40 hex digits; null: as for model.revision
    # its name in the folder or repository; null: the only one, or pytorch_lora_weights.safetensors
    file: str | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.scale):
            raise ConfigError(f"{KEY} has scale {self.scale}; it must be a number")


def lora_file(lora: LoraConfig) -> Path:
    """The file of a LoRA, downloaded where need be. Raises ModelError where there is none, or it isn't whole."""
    commit = commit_of(lora.path, lora.revision, KEY)
    place = Path(lora.path) if commit is None else fetch(lora.path, commit, [lora.file or FILE])
    if commit is None and not place.is_dir():
        file = place
    elif lora.file or (place / FILE).is_file():
        file = place / (lora.file or FILE)
    else:
        found = sorted(place.glob("*.safetensors"))
        if len(found) != 1:
            names = f": {', '.join(other.name for other in found)}" if found else ""
            raise ModelError(f"{KEY}: {lora.path} has no {FILE}; name one of its safetensors files as `file`{names}")
        [file] = found
    if file.suffix != ".safetensors":
        raise ModelError(f"{KEY}: {file} isn't safetensors, and pickled weights are not loaded; convert it first")
    if not file.is_file():
        raise ModelError(f"{KEY}: there is no {file}; correct path or file")
    header_of(file)
    return file


def with_loras(revision: str, loras: Sequence[LoraConfig]) -> str:
    """The revision of a model with LoRAs: the model's own, and what the LoRAs' files hold, with their scales."""
    if not loras:
        return revision
    digest = hashlib.blake2b(digest_size=8)
    for lora in loras:
        digest.update(f"{float(lora.scale)!r}\n".encode())
        add_file(digest, lora_file(lora))
    return f"{revision}+{digest.hexdigest()}"


def fuse(pipeline: Any, lora: LoraConfig) -> None:
    """Adds a LoRA to the transformer's weights, which must be whole on this rank.

    The tensors' names may be other tools'; diffusers converts them. Raises ModelError where the LoRA isn't all used.
    """
    import torch
    from peft.utils import get_peft_model_state_dict

    file = lora_file(lora)
    source: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    kind = type(pipeline.transformer).__name__
    if dora := [key for key in header_of(file) if "dora_scale" in key]:
        raise ModelError(f"{file} is a DoRA: diffusers doesn't load {dora[0]}; use a LoRA")
    try:
        given = pipeline.lora_state_dict(str(file.parent), **source)
        pipeline.load_lora_weights(str(file.parent), adapter_name="lora", **source)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        problem = " ".join(str(error).split())[:300]
        raise ModelError(f"{file} doesn't fit {kind}: {problem}; use a LoRA that was made for this model") from error
    added = hasattr(pipeline.transformer, "peft_config")
    used = get_peft_model_state_dict(pipeline.transformer, adapter_name="lora") if added else {}
    left = [key for key in given if key.removeprefix("transformer.") not in used]
    if len(given) > len(used):
        raise ModelError(
            f"{file} doesn't fit {kind}: {len(given) - len(used)} of its {len(given)} tensors belong to no layer, such"
            f" as {left[0]}; use a LoRA that was made for this model"
        )
    pipeline.fuse_lora(lora_scale=lora.scale, adapter_names=["lora"])
    pipeline.unload_lora_weights()
