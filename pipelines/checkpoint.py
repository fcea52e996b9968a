"""What a checkpoint folder holds, from its configs and file sizes alone: no weight is read, no model imported."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numina.errors import ModelError
from pipelines.base import ModelFacts

WEIGHT_NAMES = ("diffusion_pytorch_model", "model")  # of diffusers' and transformers' parts

Config = Mapping[str, Any]  # a part's config.json


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of checkpoint: its parts, and what its configs call what `ModelFacts` needs."""

    title: str
    adapter: str  # module and class; imported where a model is loaded, not to look at one
    parts: Mapping[str, tuple[str, ...]]  # part → its classes, of which one must be there; none named: any
    strides: Callable[[Config, Config], tuple[int, int, int]]  # of transformer and VAE
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
            revision=revision_of(folder),
            family=name,
            depth=transformer["num_layers"],
            heads=transformer["num_attention_heads"],
            head_size=transformer["attention_head_dim"],
            joint=self.joint,
            token_strides=self.strides(transformer, vae),
            transformer_bytes=sum(file.stat().st_size for file in weight_files(folder / "transformer")),
            sampler=self.sampler,
            shift=float(scheduler.get("flow_shift") or 1.0) if flow else None,
        )


def _wan_strides(transformer: Config, vae: Config) -> tuple[int, int, int]:
    time, down, across = transformer["patch_size"]
    space = vae.get("scale_factor_spatial") or 8
    return (vae.get("scale_factor_temporal") or 4) * time, space * down, space * across


def _not_wan(index: Config, transformer: Config) -> str | None:
    for name in ("transformer_2", "boundary_ratio"):
        if index.get(name) and index[name] != [None, None]:
            return f"{name} {index[name]!r}: Wan2.2's 14B pair of transformers isn't run; use Wan2.1, or Wan2.2-TI2V-5B"
    if transformer.get("image_dim") or transformer.get("added_kv_proj_dim"):
        return "a transformer that wants an image; use a text-to-video checkpoint"
    return None


def _cogvideox_strides(transformer: Config, vae: Config) -> tuple[int, int, int]:
    space = 2 ** (len(vae["block_out_channels"]) - 1) * transformer["patch_size"]
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
        strides=_wan_strides,
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
        strides=_cogvideox_strides,
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


def check_parts(folder: Path, parts: Collection[str] | None = None) -> str:
    """A checkpoint folder's family, once all its parts, or those named, are there. Raises ModelError."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(
            f"{folder} has no model_index.json; model.path must be a diffusers folder such as Wan2.1-T2V-14B-Diffusers"
        )
    index = read_json(index_file)
    name = index.get("_class_name")
    if name not in FAMILIES:
        raise ModelError(f"{index_file} names {name!r}; what is run: {', '.join(FAMILIES)} checkpoints")
    family = FAMILIES[name]
    for part in family.parts if parts is None else parts:
        expected = family.parts[part]
        if not (folder / part).is_dir():
            raise ModelError(f"{folder} lacks the part {part}/; download the whole checkpoint")
        found = (index.get(part) or [None, None])[1]
        if expected and found not in expected:
            raise ModelError(f"{index_file}: {part} is {found!r}, expected {' or '.join(map(repr, expected))}")
        if part in ("transformer", "vae", "text_encoder"):
            check_weights(folder / part)
        if part == "transformer" and (refused := family.refused(index, read_json(folder / part / "config.json"))):
            raise ModelError(f"{folder} has {refused}")
    return name


def read_json(file: Path) -> dict[str, Any]:
    """Raises ModelError for what isn't there, or isn't JSON."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} can't be read: {error}; download the whole checkpoint") from error
    return content


def check_weights(folder: Path) -> None:
    """Every safetensors file that a part consists of must be there. Raises ModelError."""
    missing = [file.name for file in weight_files(folder) if not file.is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, named by its index; download the whole checkpoint")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a part consists of: those of its index, or its one file; variants are left out.

    Raises ModelError where there is none.
    """
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.safetensors.index.json"
        if index.is_file():
            return sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
        if (folder / f"{name}.safetensors").is_file():
            return [folder / f"{name}.safetensors"]
    raise ModelError(
        f"{folder} has no {' or '.join(f'{name}.safetensors' for name in WEIGHT_NAMES)}; pickled weights are not loaded"
    )


def revision_of(folder: Path) -> str:
    """A content-derived revision: name, size and first 16 MB of every config and weights file.

    Hashing all of 14B's 28 GB would cost minutes at every start; a retrained tensor changes the head of its file.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.rglob("*")):
        if file.suffix not in {".json", ".safetensors"}:
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}:{size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(16 << 20))
    return digest.hexdigest()
