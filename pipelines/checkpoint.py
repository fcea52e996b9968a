"""What a checkpoint folder holds, from its configs and file sizes alone: no weight is read, no model imported."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from numina.errors import ModelError
from pipelines.base import ModelFacts

WEIGHT_NAMES = ("diffusion_pytorch_model", "model")  # of diffusers' and transformers' parts
WEIGHTED = ("transformer", "vae", "text_encoder")  # parts with weights; the others are small files
SMALL_FILES = (".json", ".model", ".txt")  # configs, and what tokenizers are made of
HEADER_LIMIT = 100_000_000  # bytes; safetensors reads no longer one
LFS_POINTER = b"version https://git-lfs"

Config = Mapping[str, Any]  # a part's config.json
Strides = tuple[int, int, int]  # frames, pixels down, pixels across


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of checkpoint: its parts, and what its configs call what `ModelFacts` needs."""

    title: str
    adapter: str  # module and class; imported where a model is loaded, not to look at one
    parts: Mapping[str, tuple[str, ...]]  # part → its classes, of which one must be there; none named: any
    patch: Callable[[Config], Strides]  # the transformer's, in latents
    vae_strides: Callable[[Config], Strides]
    frame_step: int  # s: the VAE decodes to s·k + 1 frames
    joint: bool
    sampler: str  # that denoises, of those in `parts`
    refused: Callable[[Config, Config], str | None]  # model_index.json and the transformer's config → what isn't run

    def facts(self, name: str, folder: Path) -> ModelFacts:
        transformer, vae, scheduler = (
            read_json(folder / file)
            for file in ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")
        )
        flow = scheduler.get("use_flow_sigmas") or scheduler.get("prediction_type") == "flow_prediction"
        return ModelFacts(
            path=str(folder),
            name=folder.name,
            revision=revision_of(folder, self.parts),
            family=name,
            depth=transformer["num_layers"],
            heads=transformer["num_attention_heads"],
            head_size=transformer["attention_head_dim"],
            joint=self.joint,
            frame_step=self.frame_step,
            token_strides=_product(self.patch(transformer), self.vae_strides(vae)),
            transformer_bytes=sum(file.stat().st_size for file in weight_files(folder / "transformer")),
            sampler=self.sampler,
            shift=float(scheduler.get("flow_shift") or 1.0) if flow else None,
        )


def _product(patch: Strides, strides: Strides) -> Strides:
    return patch[0] * strides[0], patch[1] * strides[1], patch[2] * strides[2]


def _wan_patch(transformer: Config) -> Strides:
    time, down, across = transformer["patch_size"]
    return time, down, across


def _wan_vae_strides(vae: Config) -> Strides:
    space = vae.get("scale_factor_spatial") or 8
    return vae.get("scale_factor_temporal") or 4, space, space


def _not_wan(index: Config, transformer: Config) -> str | None:
    for name in ("transformer_2", "boundary_ratio"):
        if index.get(name) and index[name] != [None, None]:
            return f"{name} {index[name]!r}: Wan2.2's 14B pair of transformers isn't run; use Wan2.1, or Wan2.2-TI2V-5B"
    if transformer.get("image_dim") or transformer.get("added_kv_proj_dim"):
        return "a transformer that wants an image; use a text-to-video checkpoint"
    return None


def _cogvideox_patch(transformer: Config) -> Strides:
    return 1, transformer["patch_size"], transformer["patch_size"]


def _cogvideox_vae_strides(vae: Config) -> Strides:
    space = 2 ** (len(vae["block_out_channels"]) - 1)
    return int(vae.get("temporal_compression_ratio") or 4), space, space


def _not_cogvideox(index: Config, transformer: Config) -> str | None:
    if transformer.get("patch_size_t"):
        return "patches of several frames, which CogVideoX 1.5 has and isn't run; use CogVideoX-5b"
    return None


FAMILIES = {  # by the pipeline class that model_index.json names
    "WanPipeline": Family(
        title="Wan text-to-video",
        adapter="pipelines.wan:WanModel",
        parts={
            "transformer": ("WanTransformer3DModel",),
            "vae": ("AutoencoderKLWan",),
            "text_encoder": ("UMT5EncoderModel",),
            "tokenizer": (),
            "scheduler": ("UniPCMultistepScheduler",),
        },
        patch=_wan_patch,
        vae_strides=_wan_vae_strides,
        frame_step=4,
        joint=False,
        sampler="UniPCMultistepScheduler",
        refused=_not_wan,
    ),
    "CogVideoXPipeline": Family(
        title="CogVideoX text-to-video",
        adapter="pipelines.cogvideox:CogVideoXModel",
        parts={
            "transformer": ("CogVideoXTransformer3DModel",),
            "vae": ("AutoencoderKLCogVideoX",),
            "text_encoder": ("T5EncoderModel",),
            "tokenizer": (),
            "scheduler": ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
        },
        patch=_cogvideox_patch,
        vae_strides=_cogvideox_vae_strides,
        frame_step=8,  # it decodes latent frames by twos, and of an even number of them makes too many frames
        joint=True,
        sampler="CogVideoXDDIMScheduler",
        refused=_not_cogvideox,
    ),
}


def inspect(path: str | Path) -> ModelFacts:
    """What a checkpoint folder holds, from its configs and file sizes alone. Raises ModelError for what is missing."""
    folder = Path(path)
    name = check_parts(folder)
    return FAMILIES[name].facts(name, folder)


def check_family(folder: Path) -> str:
    """A checkpoint folder's family, from its model_index.json. Raises ModelError for what isn't run."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(
            f"{folder} has no model_index.json; model.path must be a diffusers folder such as Wan2.1-T2V-14B-Diffusers,"
            " or OWNER/NAME of one on the hub"
        )
    index = read_json(index_file)
    name = index.get("_class_name")
    if name not in FAMILIES:
        raise ModelError(f"{index_file} names {name!r}; what is run: {', '.join(FAMILIES)} checkpoints")
    if refused := FAMILIES[name].refused(index, {}):
        raise ModelError(f"{folder} has {refused}")
    return str(name)


def check_parts(folder: Path, parts: Collection[str] | None = None) -> str:
    """A checkpoint folder's family, once all its parts, or those named, are there.

    Raises ModelError with all that is wrong, a line for each part.
    """
    name, wrong = check_family(folder), []
    for part in FAMILIES[name].parts if parts is None else parts:
        try:
            check_part(folder, part, FAMILIES[name])
        except ModelError as error:
            wrong.append(str(error))
    if wrong:
        raise ModelError("\n".join(wrong))
    return name


def check_part(folder: Path, part: str, family: Family) -> None:
    """A part must be there, of its class, and its weights whole. Raises ModelError."""
    if not (folder / part).is_dir():
        raise ModelError(f"{folder} lacks the part {part}/; download the whole checkpoint")
    index, expected = read_json(folder / "model_index.json"), family.parts[part]
    if expected and (found := class_of(index, part)) not in expected:
        raise ModelError(
            f"{folder}/model_index.json: {part} is {found!r}, expected {' or '.join(map(repr, expected))}; use a"
            f" checkpoint of {family.title}"
        )
    if part == "transformer" and (refused := family.refused(index, read_json(folder / part / "config.json"))):
        raise ModelError(f"{folder} has {refused}")
    if part in WEIGHTED:
        check_weights(folder / part)


def class_of(index: Config, part: str) -> str | None:
    """The class that model_index.json names for a part."""
    name: str | None = (index.get(part) or [None, None])[1]
    return name


def read_json(file: Path) -> dict[str, Any]:
    """Raises ModelError for what isn't there, or isn't JSON."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
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
        f"{folder} has no {' or '.join(f'{name}.safetensors' for name in WEIGHT_NAMES)}; pickled weights are not loaded"
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
                f"{file} is a Git LFS pointer of {size} bytes, and stands for a file of"
                f" {int(real[1]) if real else 'unknown'} bytes; download it again, or run `git lfs pull`"
            )
        length = int.from_bytes(head[:8], "little")
        if length > HEADER_LIMIT:
            raise ModelError(f"{file} can't be read: its {size} bytes are no safetensors; download it again")
        stream.seek(8)
        try:
            header: dict[str, Any] = json.loads(stream.read(length)) if size >= 8 + length else {}
        except ValueError as error:
            raise ModelError(f"{file} can't be read: its header is no JSON; download it again") from error
    header.pop("__metadata__", None)
    whole = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if size != whole:
        least = "" if header else "at least "
        raise ModelError(
            f"{file} can't be read: it has {size} bytes, and by its header {least}{whole}; download it again"
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
