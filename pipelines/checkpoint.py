"""What a checkpoint folder holds, from its configs and file sizes alone: no weight is read, no model imported."""

import hashlib
import json
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


def check_parts(folder: Path) -> None:
    """Says what a checkpoint folder lacks, before anything heavy is read. Raises ModelError."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(
            f"{folder} has no model_index.json; model.path must be a diffusers folder such as Wan2.1-T2V-14B-Diffusers"
        )
    index = json.loads(index_file.read_text())
    if index.get("_class_name") != "WanPipeline":
        raise ModelError(f"{index_file} names {index.get('_class_name')!r}; this adapter runs WanPipeline checkpoints")
    for part, expected in PARTS.items():
        if not (folder / part).is_dir():
            raise ModelError(f"{folder} lacks the part {part}/; download the whole checkpoint")
        found = (index.get(part) or [None, None])[1]
        if expected and found != expected:
            raise ModelError(f"{index_file}: {part} is {found!r}, expected {expected!r}")
    for part in ("transformer", "vae", "text_encoder"):
        check_weights(folder / part)


def check_weights(folder: Path) -> None:
    """Every safetensors file that a part's index names must be there. Raises ModelError."""
    indexes = list(folder.glob("*.safetensors.index.json"))
    names = {name for index in indexes for name in json.loads(index.read_text())["weight_map"].values()}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, named by its index; download the whole checkpoint")
    if not indexes and not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no .safetensors file; pickled weights are not loaded")


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
