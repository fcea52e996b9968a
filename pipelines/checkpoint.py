"""What a checkpoint folder holds, from its configs and file sizes alone: no weight is read, no model imported."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from numina.errors import ModelError
from pipelines.base import ModelFacts

PARTS = {
    "transformer": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
    "text_encoder": "UMT5EncoderModel",
    "tokenizer": None,  # any fast tokenizer
    "scheduler": "UniPCMultistepScheduler",
}
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")  # of diffusers' and transformers' parts


def inspect(path: str | Path) -> ModelFacts:
    """What a checkpoint folder holds, from its configs and file sizes alone. Raises ModelError for what is missing."""
    folder = Path(path)
    check_parts(folder)
    transformer = json.loads((folder / "transformer/config.json").read_text())
    vae = json.loads((folder / "vae/config.json").read_text())
    patch = transformer["patch_size"]
    return ModelFacts(
        path=str(folder),
        name=folder.name,
        revision=revision_of(folder),
        depth=transformer["num_layers"],
        heads=transformer["num_attention_heads"],
        head_size=transformer["attention_head_dim"],
        token_strides=(
            (vae.get("scale_factor_temporal") or 4) * patch[0],
            (vae.get("scale_factor_spatial") or 8) * patch[1],
            (vae.get("scale_factor_spatial") or 8) * patch[2],
        ),
        transformer_bytes=sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors")),
    )


def check_parts(folder: Path, parts: Collection[str] = tuple(PARTS)) -> None:
    """Says what a checkpoint folder lacks of the named parts, before anything heavy is read. Raises ModelError."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(
            f"{folder} has no model_index.json; model.path must be a diffusers folder such as Wan2.1-T2V-14B-Diffusers"
        )
    index = json.loads(index_file.read_text())
    if index.get("_class_name") != "WanPipeline":
        raise ModelError(f"{index_file} names {index.get('_class_name')!r}; this adapter runs WanPipeline checkpoints")
    for name in ("transformer_2", "boundary_ratio", "expand_timesteps"):
        value = index.get(name)
        if value and value != [None, None]:
            raise ModelError(
                f"{index_file} has {name} {value!r}, which Wan2.2 needs and this adapter doesn't run; use a Wan2.1"
                " checkpoint"
            )
    for part in parts:
        expected = PARTS[part]
        if not (folder / part).is_dir():
            raise ModelError(f"{folder} lacks the part {part}/; download the whole checkpoint")
        found = (index.get(part) or [None, None])[1]
        if expected and found != expected:
            raise ModelError(f"{index_file}: {part} is {found!r}, expected {expected!r}")
    for part in ("transformer", "vae", "text_encoder"):
        if part in parts:
            check_weights(folder / part)


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
