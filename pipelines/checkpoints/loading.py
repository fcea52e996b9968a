"""Weights onto every rank of a gang: one rank reads, the others receive, and none holds a second copy of a module.

A module is built from its config without memory for its parameters. Rank 0 then reads the weights, tensor by tensor in
the order of the files, moves each to its device and sends it on; every rank puts it in its place before the next comes.
Small tensors travel together in a bucket. A single process does the same and sends nothing.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeVar

import safetensors
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedModel

from numina.errors import GangError, ModelError, NuminaError
from pipelines.checkpoints.files import header_of, weight_files
from pipelines.private import diffusers, transformers

BUCKET = 64 << 20  # bytes that travel together; a larger tensor goes alone, in pieces of this size
ALIGNMENT = 16  # bytes: a tensor of any dtype may begin there

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Placement(Protocol):
    """What becomes of a module's tensors on this rank."""

    def parameter(self, whole: Tensor) -> nn.Parameter:
        """The parameter that holds a tensor, or this rank's share of it; all ranks call in the same order."""

    def complete(self, module: nn.Module) -> None:
        """Called once all of a module's parameters are in place."""


class Whole:
    """Every rank has all of a module."""

    def parameter(self, whole: Tensor) -> nn.Parameter:
        return nn.Parameter(whole, requires_grad=False)

    def complete(self, module: nn.Module) -> None:
        pass


@dataclass(frozen=True)
class Entry:
    """A tensor of a module, and where it is read."""

    name: str  # in the module
    key: str  # in the file
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype  # in the module

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Loader:
    """Loads modules onto this rank's device; in a gang, all ranks call the same at the same time.

    `spent` sums up over all modules: seconds of reading (on other ranks than the first, of waiting for it), seconds of
    sending, and the bytes that the modules take.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.spent = {"read": 0.0, "send": 0.0, "bytes": 0.0}

    def load(self, kind: Any, folder: Path, dtype: torch.dtype, placement: Placement | None = None) -> Any:
        """A diffusers or transformers module of class `kind`, as its `from_pretrained(folder, dtype=dtype)` gives it.

        Raises ModelError, on every rank, where files can't be read or don't hold what the folder's config asks for.
        """
        placement, before = placement or Whole(), dict(self.spent)
        module = build(kind, folder, dtype)
        buckets = agree(lambda: list(fill_buckets(plan(module, folder, dtype))), self.device)
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        for bucket in buckets:
            for entry, tensor in zip(bucket, self._fetch(bucket), strict=True):
                put(module, entry.name, placement.parameter(tensor) if entry.name in parameters else tensor)
        for target, source in ties(module).items():
            put(module, target, find(module, source))
        for owner in module.modules():  # what is computed and not stored, such as rotary tables
            for name, buffer in list(owner.named_buffers(recurse=False, remove_duplicate=False)):
                setattr(owner, name, buffer.to(self.device))
        placement.complete(module.eval().requires_grad_(False))
        read, sent, size = (self.spent[key] - before[key] for key in ("read", "send", "bytes"))
        logger.info("%s: %.2f GB, read in %.1f s, sent in %.1f s", folder, size / 1e9, read, sent)
        return module

    def _fetch(self, bucket: list[Entry]) -> list[Tensor]:
        """A bucket's tensors, on every rank."""
        began = time.perf_counter()
        tensors = [torch.empty(entry.shape, dtype=entry.dtype, device=self.device) for entry in bucket]
        agree(lambda: read(bucket, tensors), self.device)
        self._wait()
        read_at = time.perf_counter()
        if in_gang():
            send(tensors)
            self._wait()
        self.spent["read"] += read_at - began
        self.spent["send"] += time.perf_counter() - read_at
        self.spent["bytes"] += sum(entry.bytes for entry in bucket)
        return tensors

    def _wait(self) -> None:
        """A GPU's copies run on by themselves: they are waited for, so that each second is counted where it belongs."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def in_gang() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_initialized() and dist.get_world_size() > 1


def agree(make: Callable[[], T], device: torch.device) -> T:
    """What rank 0 makes, on every rank; what it raises is raised on every rank, so that none waits for it in vain."""
    if not in_gang():
        return make()
    answer: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:
            failure = error
            known = isinstance(error, NuminaError)
            answer[1] = error if known else GangError(f"rank 0 failed while it loaded: {type(error).__name__}: {error}")
    dist.broadcast_object_list(answer, src=0, device=device)
    if failure or answer[1]:
        raise failure or answer[1]
    result: T = answer[0]
    return result


def build(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A module as its config describes it: parameters without memory, computed buffers real, on the CPU."""
    with default_dtype(dtype), init_empty_weights(include_buffers=False):
        module: nn.Module
        if issubclass(kind, ModelMixin):
            module = kind.from_config(kind.load_config(folder, local_files_only=True))
        else:
            config = kind.config_class.from_pretrained(folder, local_files_only=True)
            module = transformers.from_config(kind, config, dtype)
    return module


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Both libraries build a module under the dtype that it will have: tables that it computes may depend on it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- what is read ---


def plan(module: nn.Module, folder: Path, dtype: torch.dtype) -> list[Entry]:
    """Every tensor of a module where its files hold it, in the files' order; reads the files' headers alone.

    Raises ModelError where one is missing, unexpected or of another shape than the config asks for.
    """
    tied = ties(module)
    expected = {name: tensor for name, tensor in module.state_dict().items() if name not in tied}
    library = transformers if isinstance(module, PreTrainedModel) else diffusers
    ignored = library.ignored_keys(module)
    found: dict[str, Entry] = {}
    for file in weight_files(folder):
        tensors = header_of(file)
        for key in sorted(tensors, key=lambda key: tensors[key]["data_offsets"]):  # as they lie in the file
            shape = tuple(tensors[key]["shape"])
            name = tied.get(key, key)
            if name not in expected:
                if any(re.search(pattern, key) for pattern in ignored):
                    continue
                raise ModelError(
                    f"{file} holds {key} of shape {shape}, which {folder}/config.json has no place for; the files"
                    " are of different models: download the whole checkpoint again"
                )
            if name in found and name != key:
                continue  # a tied tensor that was saved under both its names
            wanted = tuple(expected[name].shape)
            if shape != wanted:
                raise ModelError(
                    f"{file}: {key} has shape {shape}, but {folder}/config.json asks for {wanted}; the files are of"
                    " different models: download the whole checkpoint again"
                )
            found[name] = Entry(name, key, file, shape, kept_dtype(module, name, expected[name], dtype))
    if missing := [name for name in expected if name not in found]:
        first, more = missing[0], f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{folder}: no file holds {first}, of shape {tuple(expected[first].shape)}{more}, which config.json asks"
            " for; download the whole checkpoint again"
        )
    return list(found.values())


def ties(module: nn.Module) -> dict[str, str]:
    """Names that share another's parameter, such as an encoder's embedding that of the whole model: name → its source.

    transformers keeps them by name; by identity they can't be told before there is memory behind them.
    """
    return dict(getattr(module, "all_tied_weights_keys", None) or {})


def kept_dtype(module: nn.Module, name: str, built: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype that the libraries' own loading gives a tensor: parts of a half-precision model may stay in float32."""
    if not built.is_floating_point():
        return built.dtype
    if isinstance(module, PreTrainedModel):
        patterns = transformers.dtype_plan(module, dtype)  # as globs, anywhere in the name
        kept = (own for glob, own in patterns.items() if re.search(glob.replace("*", ".*"), name))
        return next(kept, built.dtype)
    return torch.float32 if set(diffusers.float32_parts(module)) & set(name.split(".")) else dtype


def fill_buckets(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Neighbours in one file, together while they stay under a bucket's size."""
    bucket: list[Entry] = []
    for entry in entries:
        full = sum(other.bytes for other in bucket) + entry.bytes > BUCKET
        if bucket and (full or entry.file != bucket[0].file):
            yield bucket
            bucket = []
        bucket.append(entry)
    if bucket:
        yield bucket


def read(bucket: list[Entry], into: list[Tensor]) -> None:
    """Reads a bucket's tensors from their file. Raises ModelError."""
    with opened(bucket[0].file) as weights:
        for entry, tensor in zip(bucket, into, strict=True):
            tensor.copy_(weights.get_tensor(entry.key).to(tensor.device))  # then cast, where it is fast


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(file, framework="pt") as weights:
            yield weights
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{file} can't be read: {error}; download it again") from error


# --- how it travels and where it goes ---


def send(tensors: list[Tensor]) -> None:
    """Rank 0's tensors into the other ranks'; bytes, so that every backend takes every dtype."""
    parts = [tensor.flatten().view(torch.uint8) for tensor in tensors]
    if len(parts) == 1:
        for piece in parts[0].split(BUCKET):
            dist.broadcast(piece, src=0)
        return
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + -(-part.numel() // ALIGNMENT) * ALIGNMENT)
    joined = torch.empty(starts[-1], dtype=torch.uint8, device=tensors[0].device)
    places = [joined[start : start + part.numel()] for start, part in zip(starts, parts, strict=False)]
    for place, part in zip(places, parts, strict=True):
        place.copy_(part)
    dist.broadcast(joined, src=0)
    for place, part in zip(places, parts, strict=True):
        part.copy_(place)


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a parameter or buffer in the place of the one of this name."""
    owner, leaf = _owner(module, name)
    setattr(owner, leaf, tensor)


def find(module: nn.Module, name: str) -> Tensor:
    owner, leaf = _owner(module, name)
    found: Tensor = getattr(owner, leaf)
    return found


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
