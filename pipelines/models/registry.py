"""From a model's name to its adapter: `testbed` and `scenes` are embedded models, others are folders or hub ids.

To look at a model needs no torch, which takes seconds to import; to load one does.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from numina.errors import ModelError
from pipelines.base import ModelFacts, TextEncoder, VaeDtype, VideoModel
from pipelines.checkpoints.embedded import EMBEDDED, EMBEDDED_LORAS
from pipelines.checkpoints.files import SMALL_FILES, numbers
from pipelines.checkpoints.hub import cached, commit_of, fetch, is_repository
from pipelines.checkpoints.lora import LoraConfig, with_loras
from pipelines.models.families import FAMILIES, check_family, check_known, inspect
from pipelines.models.published import published_facts, published_names
from pipelines.parallel.config import MemoryConfig
from pipelines.parallel.devices import check_gpu, gpu_usable

if TYPE_CHECKING:
    import torch

FLOAT8 = "float8"  # see pipelines/checkpoints/quantize.py
VARIANTS = "*.*.safetensors"  # half-precision copies and the like, such as model.fp16.safetensors
ENCODER_PARTS = ("tokenizer", "text_encoder")  # all that `load_text_encoder` reads
GIB = 2**30


def model_folder(path: str, revision: str | None = None, parts: Sequence[str] | None = None) -> Path:
    """The checkpoint folder that `model.path` and `model.revision` stand for; a hub's parts are downloaded, if need be.

    Raises ConfigError for a branch of a hub id, ModelError for what can't be had or is of no known family: that is
    found before gigabytes are fetched.
    """
    check_known(path)
    commit = commit_of(path, revision, "model")
    if commit is None:
        return EMBEDDED.get(path) or Path(path)
    family = FAMILIES[check_family(fetch(path, commit, ["model_index.json"]))]
    return fetch(path, commit, _files(parts or family.parts), but=VARIANTS)


def _files(parts: Iterable[str]) -> list[str]:
    """The files of a repository that parts are made of, as patterns."""
    return ["model_index.json", *(f"{part}/*{end}" for part in parts for end in (*SMALL_FILES, ".safetensors"))]


def place_free(path: str) -> str:
    """A model's or LoRA's path as it means the same in every working directory."""
    return path if path in EMBEDDED or path in EMBEDDED_LORAS or is_repository(path) else os.path.abspath(path)


def inspect_model(path: str, revision: str | None = None, loras: Sequence[LoraConfig] = ()) -> ModelFacts:
    """What a checkpoint is, without loading it. Raises ModelError for what is missing."""
    return _named(inspect(model_folder(path, revision)), path, loras)


def known_model(path: str, revision: str | None = None) -> ModelFacts:
    """What a checkpoint is, as it is here or in the hub's cache; else, without any of its files, as it was published.

    For a plan: the revision may be unread, and LoRAs, which change no shape, are left out. Raises ModelError for a hub
    id that is neither.
    """
    if path in EMBEDDED or not is_repository(path):
        return inspect_model(path, revision)
    check_known(path)
    parts = {part for family in FAMILIES.values() for part in family.parts}
    if revision is not None:
        commit_of(path, revision, "model")
    if folder := cached(path, revision, _files(parts), but=VARIANTS):
        return _named(inspect(folder), path, ())
    if facts := published_facts(path):
        return facts
    raise ModelError(
        f"{path} isn't in the hub's cache here, and its shape isn't one of those shipped"
        f" ({', '.join(published_names())}); fetch it first,"
        f" `numina models check {path}`, or give the folder that has it as model.path"
    )


def load_model(
    path: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    memory: MemoryConfig = MemoryConfig(),  # noqa: B008 - frozen
    text_encoder: bool = True,
    revision: str | None = None,
    loras: Sequence[LoraConfig] = (),
    vae_dtype: VaeDtype = "auto",
) -> VideoModel:
    """Loads a checkpoint for this process's device; what it took is in the model's `loading`. `vae_dtype` is the
    `generation.vae_dtype` of the clips that it will make.

    In a gang, every rank calls it at the same time, after its process group stands, and the first reads for all; LoRAs
    are fused by each rank for itself. With `text_encoder=False` that part stays unread, and encoding is for
    `load_text_encoder`. Raises ModelError for what is missing or doesn't fit, its device's memory included, ConfigError
    where a device or a way of sharding can't be had.
    """
    import torch

    device, folder = resolve_device(device), model_folder(path, revision)
    adapter, precision = adapter_of(folder), _precision(dtype, device)
    if device.startswith("cuda"):
        needed = weight_bytes(folder, precision, memory, text_encoder, vae_dtype)
        check_room(needed, *torch.cuda.mem_get_info(device), what=path)
    model = adapter.load(
        folder, dtype=precision, device=device, memory=memory, text_encoder=text_encoder, vae_dtype=vae_dtype
    )
    if loras:
        from pipelines.checkpoints.fusing import fuse

        for lora in loras:
            fuse(model.pipeline, lora)
    if dtype == FLOAT8:
        from pipelines.checkpoints.quantize import quantize

        quantize(model.blocks)
    model.facts = _named(model.facts, path, loras)
    loaded: VideoModel = model
    return loaded


def weight_bytes(
    folder: Path, dtype: torch.dtype, memory: MemoryConfig, text_encoder: bool, vae_dtype: VaeDtype = "auto"
) -> int:
    """What the weights of a checkpoint take of this rank's device; from its files' headers."""
    import torch.distributed as dist

    parts = ["transformer", *(["text_encoder"] if text_encoder else [])]
    held = sum(numbers(folder / part).total() for part in parts) * dtype.itemsize
    if memory.shard != "none":
        held = 0 if memory.shard == "zero3_offload" else held // (dist.get_world_size() if dist.is_initialized() else 1)
    vae = FAMILIES[check_family(folder)].vae_precision(dtype, vae_dtype)
    return held + numbers(folder / "vae").total() * vae.itemsize


def check_room(needed: int, free: int, total: int, *, what: str) -> None:
    """Raises ModelError where weights take more bytes than a GPU has left; asked before they are read."""
    if needed > free:
        raise ModelError(
            f"{what} needs {needed / GIB:.1f} GiB on every GPU for its weights alone, {(needed - free) / GIB:.1f} GiB"
            f" more than the {free / GIB:.1f} that are free of {total / GIB:.1f} here; spread them over the gang's GPUs"
            " with memory.shard=zero3, move the text encoder off them with memory.text_encoder=apart, or stop other"
            " processes there; `numina plan` shows what a clip needs in addition"
        )


def adapter_of(folder: Path) -> Any:
    """The adapter's class. It is imported here: diffusers takes seconds, and only ranks need it."""
    place = FAMILIES[check_family(folder)].adapter
    with uncollected():
        return resolve_name(place)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, for imports: what they make lives as long as the process, and walking through it
    again and again takes a fifth of diffusers' and transformers' CPU time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_text_encoder(
    path: str, *, dtype: str = "auto", device: str = "auto", revision: str | None = None
) -> TextEncoder:
    """Loads a checkpoint's tokenizer and text encoder alone; its encodings are the whole model's, bit for bit.

    Raises ModelError for what is missing or doesn't fit, ConfigError where the device can't be had.
    """
    device, folder = resolve_device(device), model_folder(path, revision, ENCODER_PARTS)
    encoder: TextEncoder = adapter_of(folder).load_text_encoder(folder, dtype=_precision(dtype, device), device=device)
    return encoder


def _named(facts: ModelFacts, path: str, loras: Sequence[LoraConfig]) -> ModelFacts:
    """The embedded model by its name, a hub's by its id, another one by its folder's; LoRAs are in the revision."""
    known = path in EMBEDDED or is_repository(path)
    return replace(facts, name=path if known else facts.name, revision=with_loras(facts.revision, loras))


def resolve_device(device: str) -> str:
    """`auto` is the GPU where there is one. Raises MachineError where a GPU is asked for and none can be used."""
    if device == "auto":
        return "cuda" if gpu_usable() else "cpu"
    if device == "cuda":
        check_gpu()
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    return dtype if dtype != "auto" else "bfloat16" if device.startswith("cuda") else "float32"


def _precision(dtype: str, device: str) -> torch.dtype:
    """Of the weights as they are read; float8 ones are made from bfloat16."""
    import torch

    name = resolve_dtype(dtype, device)
    precision: torch.dtype = getattr(torch, "bfloat16" if name == FLOAT8 else name)
    return precision
