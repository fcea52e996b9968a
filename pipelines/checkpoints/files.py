"""What a checkpoint folder holds, from its configs and file sizes alone: no weight is read, no model imported."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

from numina.errors import ModelError

WEIGHT_NAMES = ("diffusion_pytorch_model", "model")  # of diffusers' and transformers' parts
WEIGHTED = ("transformer", "vae", "text_encoder")  # parts with weights; the others are small files
SMALL_FILES = (".json", ".model", ".txt")  # configs, and what tokenizers are made of
HEADER_LIMIT = 100_000_000  # bytes; safetensors reads no longer one
LFS_POINTER = b"version https://git-lfs"

Config = Mapping[str, Any]  # a part's config.json
Strides = tuple[int, int, int]  # frames, pixels down, pixels across


def class_of(index: Config, part: str) -> str | None:
    """The class that model_index.json names for a part."""
    name: str | None = (index.get(part) or [None, None])[1]
    return name


def read_json(file: Path) -> dict[str, Any]:
    """Raises ModelError for what isn't there, or isn't JSON."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} can't be read: {error}; download the whole checkpoint") from error
    return content


def check_weights(folder: Path) -> None:
    """Every safetensors file that a part consists of must be there, and whole. Raises ModelError."""
    files = weight_files(folder)
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, named by its index; download the whole checkpoint")
    for file in files:
        header_of(file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a part consists of: those of its index, or its one file; variants are left out.

    Raises ModelError where there is none.
    """
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.safetensors.index.json"
        if index.is_file():
            return sorted({folder / file for file in read_json(index)["weight_map"].values()})
        if (folder / f"{name}.safetensors").is_file():
            return [folder / f"{name}.safetensors"]
    raise ModelError(
        f"{folder} has no {' or '.join(f'{name}.safetensors' for name in WEIGHT_NAMES)};"
        " pickled weights are not loaded, convert them to safetensors"
    )


def header_of(file: Path) -> dict[str, Any]:
    """The dtype, shape and place of each tensor of a safetensors file.

    Raises ModelError where the file hasn't the size that its header tells: no tensor is read for that.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(200)
        if head.startswith(LFS_POINTER):
            real = re.search(rb"size (\d+)", head)
            raise ModelError(
                f"{file} is a Git LFS pointer of {size} bytes for a file of"
                f" {int(real[1]) if real else 'unknown'} bytes; download it again, or run `git lfs pull`"
            )
        length = int.from_bytes(head[:8], "little")
        if length > HEADER_LIMIT:
            raise ModelError(f"{file} can't be read: its {size} bytes aren't safetensors; download it again")
        stream.seek(8)
        try:
            header: dict[str, Any] = json.loads(stream.read(length)) if size >= 8 + length else {}
        except ValueError as error:
            raise ModelError(f"{file} can't be read: its header isn't JSON; download it again") from error
    header.pop("__metadata__", None)
    whole = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if size != whole:
        least = "" if header else "at least "
        raise ModelError(
            f"{file} can't be read: it has {size} bytes, but its header says {least}{whole}; download it again"
        )
    return header


def numbers(folder: Path) -> Counter[str]:
    """How many numbers of each dtype, as safetensors calls it, a part's weights are; from headers alone."""
    counted = Counter[str]()
    for file in weight_files(folder):
        for tensor in header_of(file).values():
            counted[tensor["dtype"]] += prod(tensor["shape"])
    return counted


def revision_of(folder: Path, parts: Collection[str]) -> str:
    """A content-derived revision: name, size and first 16 MB of every file that the model is made of.

    Others beside them, as hubs and half-used caches have them, don't count. Hashing all of 14B's 28 GB would cost
    minutes at every start; a retrained tensor changes the head of its file.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(files_of(folder, parts)):
        digest.update(f"{file.relative_to(folder).as_posix()}:".encode())
        add_file(digest, file)
    return digest.hexdigest()


def files_of(folder: Path, parts: Collection[str]) -> list[Path]:
    """The files that a checkpoint's parts are made of."""
    small = [file for part in parts for file in (folder / part).rglob("*") if file.suffix in SMALL_FILES]
    weights = [file for part in parts if part in WEIGHTED for file in weight_files(folder / part)]
    return [folder / "model_index.json", *small, *weights]


def add_file(digest: Any, file: Path) -> None:
    """A file's size and first 16 MB."""
    digest.update(f"{file.stat().st_size}\n".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(16 << 20))
