"""Checkpoints of the models' shapes without their weights, and planners of jobs on them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from cluster.job.config import load_job
from cluster.job.prepared import PreparedJob
from cluster.planner import Gpu, Planner, Setup, load_gpu
from cluster.planner.measured import ForwardRow
from cluster.prompts.files import PromptFile
from cluster.prompts.promptset import PromptSet
from pipelines.base import ModelFacts
from pipelines.models.families import inspect

H100 = load_gpu("h100")
SMALL = Gpu(name="a 24 GiB GPU", memory_gib=24)
TEN_ROWS = PromptFile(fs=LocalFileSystem(), path="ten rows", stored=pa.schema([]), groups=((10, 0),), options={})
PROMPTS = PromptSet(path="ten rows", files=(TEN_ROWS,))


@dataclass(frozen=True)
class Wan:
    """The shape of a Wan transformer, and the VAE and shift that go with it."""

    depth: int
    heads: int
    ffn: int
    channels: int = 16  # of latents
    decoder: int = 96  # the VAE's width
    space: int = 8  # pixels of a latent
    vae_parameters: int = 126_892_531
    shift: float = 3.0
    joint: ClassVar = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        d = 128 * self.heads
        block: dict[str, tuple[int, ...]] = {"scale_shift_table": (1, 6, d), "norm2.weight": (d,), "norm2.bias": (d,)}
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                block |= {f"{attention}.{name}.weight": (d, d), f"{attention}.{name}.bias": (d,)}
            block |= {f"{attention}.norm_q.weight": (d,), f"{attention}.norm_k.weight": (d,)}
        block |= {"ffn.net.0.proj.weight": (self.ffn, d), "ffn.net.2.weight": (d, self.ffn)}
        tables = {
            "patch_embedding.weight": (d, self.channels, 1, 2, 2),
            "condition_embedder.time_proj.weight": (6 * d, d),
        }
        return tables | {f"blocks.{n}.{name}": shape for n in range(self.depth) for name, shape in block.items()}

    @property
    def classes(self) -> list[str]:
        return [
            "WanPipeline",
            "WanTransformer3DModel",
            "AutoencoderKLWan",
            "UMT5EncoderModel",
            "UniPCMultistepScheduler",
        ]

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        return {
            "transformer": {
                "num_layers": self.depth,
                "num_attention_heads": self.heads,
                "attention_head_dim": 128,
                "ffn_dim": self.ffn,
                "in_channels": self.channels,
                "patch_size": [1, 2, 2],
            },
            "vae": {
                "base_dim": 96 if self.decoder == 96 else 160,
                "decoder_base_dim": None if self.decoder == 96 else self.decoder,
                "scale_factor_temporal": 4,
                "scale_factor_spatial": self.space,
            },
            "scheduler": {"prediction_type": "flow_prediction", "flow_shift": self.shift},
        }


@dataclass(frozen=True)
class CogVideoX:
    """The shape of a CogVideoX transformer, and its VAE."""

    depth: int
    heads: int
    vae_parameters: int = 215_583_907
    joint: ClassVar = True

    def tensors(self) -> dict[str, tuple[int, ...]]:
        d = 64 * self.heads
        block: dict[str, tuple[int, ...]] = {"ff.net.0.proj.weight": (4 * d, d), "ff.net.2.weight": (d, 4 * d)}
        block |= {f"attn1.{name}.weight": (d, d) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        block |= {f"{norm}.linear.weight": (6 * d, 512) for norm in ("norm1", "norm2")}
        tables = {"patch_embed.proj.weight": (d, 16, 2, 2), "patch_embed.text_proj.weight": (d, 4096)}
        return tables | {
            f"transformer_blocks.{n}.{name}": shape for n in range(self.depth) for name, shape in block.items()
        }

    @property
    def classes(self) -> list[str]:
        kinds = ["CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX", "T5EncoderModel", "CogVideoXDDIMScheduler"]
        return ["CogVideoXPipeline", *kinds]

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        return {
            "transformer": {
                "num_layers": self.depth,
                "num_attention_heads": self.heads,
                "attention_head_dim": 64,
                "in_channels": 16,
                "patch_size": 2,
                "max_text_seq_length": 226,
            },
            "vae": {"block_out_channels": [128, 256, 256, 512], "temporal_compression_ratio": 4},
            "scheduler": {"prediction_type": "v_prediction"},
        }


Shape = Wan | CogVideoX

WAN_14B, WAN_1_3B = Wan(40, 40, 13824), Wan(30, 12, 8960)
WAN_5B = Wan(30, 24, 14336, channels=48, decoder=256, space=16, vae_parameters=704_690_000, shift=5.0)
COG_5B = CogVideoX(42, 48)
UNMEASURED = Wan(3, 24, 8192)
FOUR = Setup(ulysses=4)
T5_BLOCK = {f"SelfAttention.{name}.weight": (4096, 4096) for name in "qkvo"}
T5_BLOCK |= {f"DenseReluDense.{name}.weight": (10240, 4096) for name in ("wi_0", "wi_1", "wo")}
T5 = {f"encoder.block.{n}.layer.{name}": shape for n in range(24) for name, shape in T5_BLOCK.items()}


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """What a checkpoint tells without its weights: configs, and weight files that are headers before holes."""
    pipeline, *names = shape.classes
    classes = dict(zip(("transformer", "vae", "text_encoder", "scheduler"), names, strict=True))
    classes["tokenizer"] = "T5TokenizerFast"
    configs = {"text_encoder": {"d_model": 4096, "num_layers": 24}, "tokenizer": {}} | shape.configs
    vocabulary = folder / "tokenizer/spiece.model"
    vocabulary.parent.mkdir(parents=True, exist_ok=True)
    vocabulary.write_bytes(b"pieces")
    weights = {
        "transformer/diffusion_pytorch_model": shape.tensors(),
        "vae/diffusion_pytorch_model": {"decoder.conv_in.weight": (shape.vae_parameters,)},
        "text_encoder/model": {"shared.weight": (32128 if shape.joint else 256384, 4096)} | T5,
    }
    for part, config in configs.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        name = "scheduler_config" if part == "scheduler" else "config"
        (folder / part / f"{name}.json").write_text(json.dumps(config))
    index = {"_class_name": pipeline} | {part: ["diffusers", name] for part, name in classes.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, tensors in weights.items():
        write_header(folder / f"{name}.safetensors", tensors)
    return folder


def write_header(file: Path, tensors: Mapping[str, Sequence[int]]) -> None:
    """A safetensors file of float32 tensors that were never written."""
    entries, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)


Models = Mapping[Shape, ModelFacts]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A checkpoint of each shape: the released ones, and one that nobody measured."""
    folder = tmp_path_factory.mktemp("models")
    shapes: tuple[Shape, ...] = (WAN_14B, WAN_1_3B, WAN_5B, COG_5B, UNMEASURED)
    return {shape: inspect(write_checkpoint(folder / str(number), shape)) for number, shape in enumerate(shapes)}


CLIPS = {
    WAN_5B: ["generation.height=704", "generation.width=1280", "generation.num_frames=121", "generation.flow_shift=5"],
    COG_5B: ["generation.width=720", "generation.num_frames=49", "generation.flow_shift=null"],
}


def with_rows(*rows: ForwardRow) -> Gpu:
    """An H100 on which more was measured, and of batches nothing else."""
    alone = [row for row in H100.forward.rows if row.batch == 1]
    return replace(H100, forward=replace(H100.forward, rows=[*alone, *rows]))


Plan = Callable[..., Planner]  # (*overrides, wan=…, gpu=…)


@pytest.fixture(scope="session")
def planner(models: Models) -> Plan:
    """A planner of `configs/wan14b.yaml`, of a model's own clip, with overrides, as on GPUs."""

    def make(*overrides: str, wan: Shape = WAN_14B, gpu: Gpu = H100) -> Planner:
        return Planner(job_plan(models[wan], *CLIPS.get(wan, []), *overrides), gpu)

    return make


def job_plan(model: ModelFacts, *overrides: str) -> PreparedJob:
    job = load_job("wan14b", [f"model.path={model.path}", *overrides])
    return PreparedJob(job=job, model=model, device="cuda", dtype="bfloat16", prompts=PROMPTS)
