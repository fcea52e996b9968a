"""What a checkpoint folder holds, from its configs and file sizes alone: no weight is read, no model imported."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from numina.errors import ModelError, NuminaError

WEIGHT_NAMES = ("diffusion_pytorch_model", "model")  # of diffusers' and transformers' parts
WEIGHTED = ("transformer", "vae", "text_encoder")  # parts with weights; the others are small files
SMALL_FILES = (".json", ".model", ".txt")  # configs, and what tokenizers are made of
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*")  # a tokenizer has one of them
HEADER_LIMIT = 100_000_000  # bytes; safetensors reads no longer one
LFS_POINTER = b"version https://git-lfs"

Config = Mapping[str, Any]  # a part's config.json
Strides = tuple[int, int, int]  # frames, pixels down, pixels across


def class_of(index: Config, part: str) -> str | None:
    """The class that model_index.json names for a part."""
    match index.get(part):
        case [_, str(name)]:
            return name
    return None


def read_json(file: Path) -> dict[str, Any]:
    """Raises ModelError for what isn't there, or isn't a JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} can't be read: {error}; download the whole checkpoint") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds {str(content)[:40]!r}, no JSON object; download the whole checkpoint")
    return content


@contextmanager
def reading_configs(what: str) -> Iterator[None]:
    """Around what takes values from a checkpoint's configs. Raises ModelError for one that isn't there, or is of
    another kind than its class has it."""
    try:
        yield
    except NuminaError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"has no {error}" if isinstance(error, KeyError) else f"has a value of another kind ({error})"
        raise ModelError(f"{what} {why}; download the whole checkpoint") from error


def check_weights(folder: Path) -> None:
    """Every safetensors file that a part consists of must be there, and whole. Raises ModelError."""
    files = weight_files(folder)
    if missing := [file.name for file in files if not file.is_file()]:
        links = ", as a link that leads nowhere" if any((folder / name).is_symlink() for name in missing) else ""
        raise ModelError(
            f"{folder} lacks {', '.join(missing)}, named by its index{links}; download the whole checkpoint"
        )
    held = {name for file in files for name in header_of(file)}
    if not held:
        raise ModelError(f"{folder}: {files[0].name} holds no tensor; download the whole checkpoint")
    if lost := [name for name in _indexed(folder) if name not in held]:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ModelError(
            f"{folder}: no file holds {lost[0]}{more}, named by its index; the files are of different models: download"
            " the whole checkpoint again"
        )


def check_tokenizer(folder: Path) -> None:
    """A tokenizer's vocabulary must be there, and its JSON whole. Raises ModelError."""
    for file in folder.glob("*.json"):
        read_json(file)
    if not any(file.is_file() and file.stat().st_size for name in VOCABULARIES for file in folder.glob(name)):
        raise ModelError(f"{folder} has none of {', '.join(VOCABULARIES)}; download the whole checkpoint")


def _indexed(folder: Path) -> dict[str, str]:
    """The file of each tensor, by a part's index; of a part without one, nothing. Raises ModelError."""
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.safetensors.index.json"
        if _named(index):
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or not places or not all(isinstance(own, str) for own in places.values()):
                raise ModelError(f"{index} has no weight_map of tensors' files; download the whole checkpoint")
            if outside := next((own for own in places.values() if Path(own).name != own), None):
                raise ModelError(f"{index} names {outside!r}, which isn't in its folder; download the whole checkpoint")
            return places
        if _named(folder / f"{name}.safetensors"):
            return {}
    return {}


def _named(file: Path) -> bool:
    """Whether it is there, if only as a link that leads nowhere, as in a cache that was cleaned: reading it tells."""
    return file.is_symlink() or file.is_file()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a part consists of: those of its index, or its one file; variants are left out.

    Raises ModelError where there is none.
    """
    if places := _indexed(folder):
        return sorted({folder / file for file in places.values()})
    for name in WEIGHT_NAMES:
        if _named(folder / f"{name}.safetensors"):
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
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{file} can't be read: its header isn't JSON; download it again") from error
    try:
        header.pop("__metadata__", None)
        ends = [int(own["data_offsets"][1]) for own in header.values() if own["dtype"] and prod(own["shape"]) >= 0]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{file} can't be read: its header isn't that of tensors; download it again") from error
    whole = 8 + length + max(ends, default=0)
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
    try:
        digest.update(f"{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(16 << 20))
    except OSError as error:  # a link into a cache that leads nowhere, or a file that only its owner may read
        raise ModelError(f"{file} can't be read: {error}; download the whole checkpoint") from error
