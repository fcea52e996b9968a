"""Checkpoints of Wan's shapes without their weights, and planners of jobs on them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from cluster.job import load_job
from cluster.plan import JobPlan
from cluster.planner import Gpu, Planner, Setup, load_gpu
from cluster.promptfiles import PromptFile
from cluster.promptset import PromptSet
from pipelines.base import ModelFacts
from pipelines.checkpoint import inspect

H100 = load_gpu("h100")
SMALL = Gpu(name="a 24 GiB GPU", memory_gib=24)
TEN_ROWS = PromptFile(fs=LocalFileSystem(), path="ten rows", schema=pa.schema([]), groups=((10, 0),), options={})
PROMPTS = PromptSet(path="ten rows", files=(TEN_ROWS,))


@dataclass(frozen=True)
class Wan:
    """The shape of a Wan2.1 transformer."""

    depth: int
    heads: int
    ffn: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        d = 128 * self.heads
        block: dict[str, tuple[int, ...]] = {"scale_shift_table": (1, 6, d), "norm2.weight": (d,), "norm2.bias": (d,)}
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                block |= {f"{attention}.{name}.weight": (d, d), f"{attention}.{name}.bias": (d,)}
            block |= {f"{attention}.norm_q.weight": (d,), f"{attention}.norm_k.weight": (d,)}
        block |= {"ffn.net.0.proj.weight": (self.ffn, d), "ffn.net.2.weight": (d, self.ffn)}
        tables = {"patch_embedding.weight": (d, 16, 1, 2, 2), "condition_embedder.time_proj.weight": (6 * d, d)}
        return tables | {f"blocks.{n}.{name}": shape for n in range(self.depth) for name, shape in block.items()}


WAN_14B, WAN_1_3B = Wan(40, 40, 13824), Wan(30, 12, 8960)
UNMEASURED = Wan(3, 24, 8192)
FOUR = Setup(ulysses=4)
UMT5_BLOCK = {f"SelfAttention.{name}.weight": (4096, 4096) for name in "qkvo"}
UMT5_BLOCK |= {f"DenseReluDense.{name}.weight": (10240, 4096) for name in ("wi_0", "wi_1", "wo")}
UMT5 = {"shared.weight": (256384, 4096)}
UMT5 |= {f"encoder.block.{n}.layer.{name}": shape for n in range(24) for name, shape in UMT5_BLOCK.items()}


def write_checkpoint(folder: Path, wan: Wan) -> Path:
    """What a Wan2.1 checkpoint tells without its weights: configs, and weight files that are headers before holes."""
    classes = {
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
        "text_encoder": "UMT5EncoderModel",
        "tokenizer": "T5TokenizerFast",
        "scheduler": "UniPCMultistepScheduler",
    }
    configs: dict[str, dict[str, Any]] = {
        "transformer": {
            "num_layers": wan.depth,
            "num_attention_heads": wan.heads,
            "attention_head_dim": 128,
            "ffn_dim": wan.ffn,
            "in_channels": 16,
            "patch_size": [1, 2, 2],
        },
        "vae": {"base_dim": 96, "scale_factor_temporal": 4, "scale_factor_spatial": 8},
        "text_encoder": {"d_model": 4096, "num_layers": 24},
        "tokenizer": {},
        "scheduler": {},
    }
    weights = {
        "transformer/diffusion_pytorch_model": wan.tensors(),
        "vae/diffusion_pytorch_model": {"decoder.conv_in.weight": (126_892_531,)},
        "text_encoder/model": UMT5,
    }
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    index = {"_class_name": "WanPipeline"} | {part: ["diffusers", name] for part, name in classes.items()}
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


Models = Mapping[Wan, ModelFacts]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A checkpoint of each shape: the two released ones, and one that nobody measured."""
    folder = tmp_path_factory.mktemp("models")
    shapes = (WAN_14B, WAN_1_3B, UNMEASURED)
    return {wan: inspect(write_checkpoint(folder / f"Wan-{wan.heads}", wan)) for wan in shapes}


Plan = Callable[..., Planner]  # (*overrides, wan=…, gpu=…)


@pytest.fixture(scope="session")
def planner(models: Models) -> Plan:
    """A planner of `configs/wan14b.yaml` with overrides, as on GPUs."""

    def make(*overrides: str, wan: Wan = WAN_14B, gpu: Gpu = H100) -> Planner:
        return Planner(job_plan(models[wan], *overrides), gpu)

    return make


def job_plan(model: ModelFacts, *overrides: str) -> JobPlan:
    job = load_job("wan14b", [f"model.path={model.path}", *overrides])
    return JobPlan(job=job, model=model, device="cuda", dtype="bfloat16", prompts=PROMPTS)
