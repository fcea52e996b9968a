"""LoRA: low-rank changes of a transformer's weights, W + scale · B·A, made once when a model is loaded.

They are fused into the weights, so that engines, compiled blocks and guidance see plain layers, and a step costs what
it did. Distilled few-step LoRAs are used like any other, each with the sampler it was made for (`configs/recipes/`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from numina.errors import ConfigError, ModelError
from pipelines.checkpoints.embedded import EMBEDDED_LORAS
from pipelines.checkpoints.files import add_file, header_of
from pipelines.checkpoints.hub import commit_of, fetch

FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name
KEY = "model.loras"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A LoRA's file, and its scale."""

    path: str  # a safetensors file, a folder with one, a hub id OWNER/NAME, or testbed:4step, which is embedded
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
    local = EMBEDDED_LORAS.get(lora.path, Path(lora.path))
    place = local if commit is None else fetch(lora.path, commit, [lora.file or FILE])
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
