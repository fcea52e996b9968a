"""From a model's name to its adapter. `testbed` names the embedded counting model; anything else is a folder."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from numina.errors import ConfigError
from pipelines.base import ModelFacts, TextEncoder, VideoModel
from pipelines.checkpoint import FAMILIES, check_parts, inspect
from pipelines.parallel import MemoryConfig
from pipelines.testbed import WEIGHTS

TESTBED = "testbed"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_folder(path: str) -> Path:
    """The checkpoint folder that a `model.path` stands for."""
    return WEIGHTS if path == TESTBED else Path(path)


def inspect_model(path: str) -> ModelFacts:
    """What a checkpoint is, without loading it. Raises ModelError for what is missing."""
    return _named(inspect(model_folder(path)), path)


def load_model(
    path: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    memory: MemoryConfig = MemoryConfig(),  # noqa: B008 - frozen
    text_encoder: bool = True,
) -> VideoModel:
    """Loads a checkpoint for this process's device; what it took is in the model's `loading`.

    In a gang, every rank calls it at the same time, after its process group stands, and the first reads for all. With
    `text_encoder=False` that part stays unread, and encoding is for `load_text_encoder`. Raises ModelError for what is
    missing or doesn't fit, ConfigError where a device or a way of sharding can't be had.
    """
    device, folder = resolve_device(device), model_folder(path)
    model = adapter_of(folder).load(
        folder,
        dtype=DTYPES[resolve_dtype(dtype, device)],
        device=device,
        memory=memory,
        text_encoder=text_encoder,
    )
    model.facts = _named(model.facts, path)
    loaded: VideoModel = model
    return loaded


def adapter_of(folder: Path) -> Any:
    """The adapter's class. It is imported here: diffusers takes seconds, and only ranks need it."""
    module, _, name = FAMILIES[check_parts(folder, ())].adapter.partition(":")
    return getattr(import_module(module), name)


def load_text_encoder(path: str, *, dtype: str = "auto", device: str = "auto") -> TextEncoder:
    """Loads a checkpoint's tokenizer and text encoder alone; its encodings are the whole model's, bit for bit.

    Raises ModelError for what is missing or doesn't fit, ConfigError where the device can't be had.
    """
    device, folder = resolve_device(device), model_folder(path)
    encoder: TextEncoder = adapter_of(folder).load_text_encoder(
        folder, dtype=DTYPES[resolve_dtype(dtype, device)], device=device
    )
    return encoder


def _named(facts: ModelFacts, path: str) -> ModelFacts:
    """The embedded model by its name; another one by its folder's."""
    return replace(facts, name=TESTBED) if path == TESTBED else facts


def resolve_device(device: str) -> str:
    """`auto` is the GPU where there is one. Raises ConfigError where a GPU is asked for and there is none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is cuda, but torch sees no GPU here; use model.device=cpu or auto")
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    return dtype if dtype != "auto" else "bfloat16" if device.startswith("cuda") else "float32"
