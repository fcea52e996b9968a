"""The known model families: their parts, shapes, sampler and adapter, read from a checkpoint's configs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from numina.errors import ModelError
from pipelines.base import ModelFacts
from pipelines.checkpoints.files import (
    WEIGHTED,
    Config,
    Strides,
    check_weights,
    class_of,
    read_json,
    revision_of,
    weight_files,
)


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
            return f"{name} {index[name]!r}: Wan2.2's pair of 14B transformers isn't supported; use Wan2.1 or Wan2.2-5B"
    if transformer.get("image_dim") or transformer.get("added_kv_proj_dim"):
        return "a transformer that needs an image; use a text-to-video checkpoint"
    return None


def _cogvideox_patch(transformer: Config) -> Strides:
    return 1, transformer["patch_size"], transformer["patch_size"]


def _cogvideox_vae_strides(vae: Config) -> Strides:
    space = 2 ** (len(vae["block_out_channels"]) - 1)
    return int(vae.get("temporal_compression_ratio") or 4), space, space


def _not_cogvideox(index: Config, transformer: Config) -> str | None:
    if transformer.get("patch_size_t"):
        return "patches of several frames, as CogVideoX 1.5 does, which isn't supported; use CogVideoX-5b"
    return None


FAMILIES = {  # by the pipeline class that model_index.json names
    "WanPipeline": Family(
        title="Wan text-to-video",
        adapter="pipelines.models.wan:WanModel",
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
        adapter="pipelines.models.cogvideox:CogVideoXModel",
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
        raise ModelError(f"{index_file} names {name!r}; supported are {', '.join(FAMILIES)} checkpoints")
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
