"""The known model families: the one place to register one.

A family is an adapter in a file of its own and an entry of FAMILIES, which says all that others need of it: the loader
its parts, the support matrix what it can't do, the planner what it holds, the model check its configs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from numina.errors import ModelError
from pipelines.base import ModelFacts, VaeDtype
from pipelines.checkpoints.files import (
    WEIGHTED,
    Config,
    Strides,
    check_tokenizer,
    check_weights,
    class_of,
    header_of,
    read_json,
    reading_configs,
    revision_of,
    weight_files,
)
from pipelines.parallel.support import Lacks

if TYPE_CHECKING:
    import torch


PICKLES = (".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of checkpoint: its parts, what its configs call what `ModelFacts` needs, what it can't do and holds.

    Numbers that a pass holds at once were counted over diffusers' own classes on fake tensors; d is the width of the
    transformer, f that of its feed-forward layers.
    """

    title: str
    adapter: str  # module and class; imported where a model is loaded, not to look at one
    parts: Mapping[str, tuple[str, ...]]  # part → its classes, of which one must be there; none named: any
    patch: Callable[[Config], Strides]  # the transformer's, in latents
    vae_strides: Callable[[Config], Strides]
    frame_step: int  # s: the VAE decodes to s·k + 1 frames
    joint: bool
    sampler: str  # that denoises, of those in `parts`
    refused: Callable[[Config, Config], str | None]  # model_index.json and the transformer's config → what isn't run
    text_tokens: int  # the family's text length; a tokenizer with a smaller `model_max_length` wins
    vae_dtype: str | None  # the VAE's, unless another one is asked for; None: the transformer's
    large_shift: float | None = None  # least flow shift of clips beyond 480p; None: the checkpoint's own at every size
    lacks: Lacks = field(default_factory=Lacks)  # why it can't be run some way
    foreign: Mapping[str, str] = field(default_factory=dict)  # in a name of the transformer's weights → what isn't run
    shipped: Mapping[tuple[int, int], str] = field(default_factory=dict)  # blocks and heads → the config for them
    block_numbers: Callable[[int, int], float]  # d and f → what a block holds at once, per token
    decoder_width: Callable[[Config], int]  # channels of the VAE's last layers
    decoder_numbers: Mapping[int, int]  # by that width: what a decoder holds at once, per pixel and channel
    decoder_splits: bool  # over a gang's ranks; else the first one decodes, clip by clip

    def facts(self, name: str, configs: Mapping[str, Config], *, path: str, title: str, revision: str) -> ModelFacts:
        """From the configs of transformer, VAE and scheduler."""
        transformer, vae, scheduler = (configs[part] for part in ("transformer", "vae", "scheduler"))
        flow = scheduler.get("use_flow_sigmas") or scheduler.get("prediction_type") == "flow_prediction"
        return ModelFacts(
            path=path,
            name=title,
            revision=revision,
            family=name,
            depth=_whole(transformer, "num_layers"),
            heads=_whole(transformer, "num_attention_heads"),
            head_size=_whole(transformer, "attention_head_dim"),
            joint=self.joint,
            frame_step=self.frame_step,
            token_strides=_product(self.patch(transformer), self.vae_strides(vae)),
            sampler=self.sampler,
            shift=float(scheduler.get("flow_shift") or 1.0) if flow else None,
            large_shift=self.large_shift,
        )

    def decodes_in(self, dtype: str, asked: VaeDtype = "auto") -> str:
        """The VAE's dtype beside a transformer of `dtype`; `asked` is `generation.vae_dtype`."""
        return (self.vae_dtype or dtype) if asked == "auto" else asked

    def vae_precision(self, dtype: torch.dtype, asked: VaeDtype = "auto") -> torch.dtype:
        """The same as PyTorch's own."""
        import torch

        own: torch.dtype = getattr(torch, self.decodes_in(str(dtype).removeprefix("torch."), asked))
        return own


def _whole(config: Config, key: str) -> int:
    value = config[key]
    if not isinstance(value, int) or value < 1:
        raise TypeError(f"{key} is {value!r}, no whole number above 0")
    return value


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


def _wan_block(width: int, ffn: int) -> float:
    """The larger of where self-attention's input is normed and modulated, and the feed-forward layers."""
    return max(11.1 * width, 4.1 * width + 2.0 * ffn)


def _wan_decoder_width(vae: Config) -> int:
    width: int = vae.get("decoder_base_dim") or vae["base_dim"]
    return width


def _cogvideox_patch(transformer: Config) -> Strides:
    return 1, transformer["patch_size"], transformer["patch_size"]


def _cogvideox_vae_strides(vae: Config) -> Strides:
    space = 2 ** (len(vae["block_out_channels"]) - 1)
    return int(vae.get("temporal_compression_ratio") or 4), space, space


def _not_cogvideox(index: Config, transformer: Config) -> str | None:
    if transformer.get("patch_size_t"):
        return "patches of several frames, as CogVideoX 1.5 does, which isn't supported; use CogVideoX-5b"
    return None


def _cogvideox_block(width: int, ffn: int) -> float:
    """Where it rotates its keys, in float32."""
    return 13.0 * width


def _cogvideox_decoder_width(vae: Config) -> int:
    width: int = vae["block_out_channels"][0]
    return width


FULL_ATTENTION = "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers"
FEW_STEP_NAMES = {"WanDMDPipeline": "WanPipeline"}  # pipeline classes of few-step models → the family
NOT_RUN = {  # pipeline classes of others → why not
    "AnyFlowPipeline": "a flow map, whose transformer also takes the noise level that a step goes to, which isn't"
    " supported; use a Wan checkpoint"
}
KNOWN_LACKS = {  # hub ids, as patterns, of which it is known before anything is fetched that they can't be run
    r"FastVideo/(FastWan2\.1-.*|FastWan2\.2-TI2V-5B-Diffusers|Wan2\.1-VSA-.*)": "needs video sparse attention (VSA),"
    f" which isn't supported; use {FULL_ATTENTION}",
    r"worstcoder/rcm-Wan": "holds pickled weights (.pt), which are not loaded; configs/recipes/rcm-1.3b.yaml"
    " says how to convert them",
}
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
        foreign={
            "to_gate_compress": "layers of video sparse attention (VSA), which isn't supported; use a checkpoint with"
            f" full attention, such as {FULL_ATTENTION}"
        },
        text_tokens=512,  # its configs don't tell
        vae_dtype="float32",
        large_shift=5.0,  # Wan2.1's README: 3 at 480p, 5 at 720p
        shipped={(30, 12): "wan1.3b", (40, 40): "wan14b", (30, 24): "wan2.2-5b"},
        block_numbers=_wan_block,
        decoder_width=_wan_decoder_width,
        decoder_numbers={96: 51, 256: 21},  # Wan2.1's and Wan2.2's, a latent frame at a time
        decoder_splits=True,
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
        text_tokens=226,
        vae_dtype=None,  # as diffusers has it
        lacks=Lacks(
            split="CogVideoX's text and video are one sequence of attention, which no engine here splits;"
            " use parallel.cfg=2 to spread a clip",
            kernels="diffusers' CogVideoX takes no kernel but PyTorch's own",
            magcache="magcache skips by the magnitudes of Wan's residuals, and CogVideoX's aren't known",
        ),
        shipped={(42, 48): "cogvideox-5b"},
        block_numbers=_cogvideox_block,
        decoder_width=_cogvideox_decoder_width,
        decoder_numbers={128: 179},  # two latent frames at a time
        decoder_splits=False,
    ),
}


def inspect(path: str | Path) -> ModelFacts:
    """What a checkpoint folder holds, from its configs and file sizes alone. Raises ModelError for what is missing."""
    folder = Path(path)
    name = check_parts(folder)
    family = FAMILIES[name]
    files = {"transformer": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}
    configs = {part: read_json(folder / part / file) for part, file in files.items()}
    revision = revision_of(folder, family.parts)
    with reading_configs(f"a config.json of {folder}"):
        return family.facts(name, configs, path=str(folder), title=folder.name, revision=revision)


def check_family(folder: Path) -> str:
    """A checkpoint folder's family, from its model_index.json. Raises ModelError for what isn't run."""
    index_file = folder / "model_index.json"
    if folder.suffix in PICKLES:
        raise ModelError(
            f"{folder} holds pickled weights, which are not loaded; convert them to a diffusers folder with safetensors"
        )
    if not index_file.is_file():
        raise ModelError(
            f"{folder} has no model_index.json; model.path must be a diffusers folder such as Wan2.1-T2V-14B-Diffusers,"
            " or OWNER/NAME of one on the hub"
        )
    index = read_json(index_file)
    given = str(index.get("_class_name"))
    name = FEW_STEP_NAMES.get(given, given)
    if name in NOT_RUN:
        raise ModelError(f"{folder} is {NOT_RUN[name]}")
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
    if part == "tokenizer":
        check_tokenizer(folder / part)
    if part == "transformer":
        names = [name for file in weight_files(folder / part) for name in header_of(file)]
        for foreign, what in family.foreign.items():
            if any(foreign in name for name in names):
                raise ModelError(f"{folder} has {what}")


def check_known(path: str) -> None:
    """Raises ModelError for a hub id that is known not to run."""
    for ids, why in KNOWN_LACKS.items():
        if re.fullmatch(ids, path):
            raise ModelError(f"{path} {why}")
