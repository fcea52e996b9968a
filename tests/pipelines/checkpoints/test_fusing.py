"""Published layouts of LoRA files: every tensor is in the weights, or an error names it.

Files have the true names at tiny shapes; what they add is written out here in float64.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from numina.errors import ModelError
from pipelines.base import VideoModel
from pipelines.checkpoints.lora import LoraConfig
from pipelines.models.registry import load_model

SCALE, RANK = 0.7, 2
BLOCK = {  # a block's layers: Wan's own names, diffusers'
    **{f"{own}_attn.{side}": f"attn{n}.to_{side}" for n, own in ((1, "self"), (2, "cross")) for side in "qkv"},
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
NORMS = {f"{own}_attn.norm_{side}": f"attn{n}.norm_{side}" for n, own in ((1, "self"), (2, "cross")) for side in "qk"}
AROUND = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}


class Made:
    """A file's tensors, and what they add to each parameter of the transformer, in float64."""

    def __init__(self, model: Any):
        self.parameters = dict(model.transformer.named_parameters())
        self.depth = model.depth
        self.tensors: dict[str, Tensor] = {}
        self.added: dict[str, Tensor] = {}

    def pair(self, theirs: str, ours: str, sides: tuple[str, str], alpha: float | None = None) -> None:
        weight = self.parameters[f"{ours}.weight"]
        down, up = torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK)
        self.tensors |= {f"{theirs}.{sides[0]}.weight": down, f"{theirs}.{sides[1]}.weight": up}
        if alpha is not None:
            self.tensors[f"{theirs}.alpha"] = torch.tensor(alpha)
        factor = 1 if alpha is None else alpha / RANK
        self.added[f"{ours}.weight"] = factor * up.double() @ down.double()

    def difference(self, theirs: str, ours: str) -> None:
        self.tensors[theirs] = torch.randn(self.parameters[ours].shape)
        self.added[ours] = self.tensors[theirs].double()

    def save(self, file: Path) -> LoraConfig:
        save_file({key: tensor.contiguous() for key, tensor in self.tensors.items()}, file)
        return LoraConfig(path=str(file), scale=SCALE)


def lightx2v(made: Made) -> None:
    """Pairs and differences of biases everywhere, norms, modulations, and the patches' convolution whole."""
    layers = {f"blocks.{i}.{theirs}": f"blocks.{i}.{ours}" for i in range(made.depth) for theirs, ours in BLOCK.items()}
    for theirs, ours in (layers | AROUND).items():
        made.pair(f"diffusion_model.{theirs}", ours, ("lora_down", "lora_up"))
        made.difference(f"diffusion_model.{theirs}.diff_b", f"{ours}.bias")
    for i in range(made.depth):
        for theirs, ours in NORMS.items():
            made.difference(f"diffusion_model.blocks.{i}.{theirs}.diff", f"blocks.{i}.{ours}.weight")
        made.difference(f"diffusion_model.blocks.{i}.norm3.diff", f"blocks.{i}.norm2.weight")
        made.difference(f"diffusion_model.blocks.{i}.norm3.diff_b", f"blocks.{i}.norm2.bias")
        made.difference(f"diffusion_model.blocks.{i}.diff_m", f"blocks.{i}.scale_shift_table")
    made.difference("diffusion_model.patch_embedding.diff", "patch_embedding.weight")
    made.difference("diffusion_model.patch_embedding.diff_b", "patch_embedding.bias")
    made.difference("diffusion_model.head.diff_m", "scale_shift_table")


def causvid(made: Made) -> None:
    """With alpha, also around the blocks; PEFT's names of the sides; no first block, as in its second form."""
    for i in range(1, made.depth):
        for theirs, ours in BLOCK.items():
            name = f"diffusion_model.blocks.{i}.{theirs}"
            made.pair(name, f"blocks.{i}.{ours}", ("lora_A", "lora_B"), alpha=3.0)
            made.difference(f"{name}.diff_b", f"blocks.{i}.{ours}.bias")
    for theirs, ours in AROUND.items():
        made.pair(f"diffusion_model.{theirs}", ours, ("lora_A", "lora_B"), alpha=0.5)


def accvideo(made: Made) -> None:
    """A bias of a layer without a pair, and the head's weight as a difference."""
    made.pair("diffusion_model.blocks.0.self_attn.q", "blocks.0.attn1.to_q", ("lora_down", "lora_up"))
    made.difference("diffusion_model.time_projection.1.diff_b", "condition_embedder.time_proj.bias")
    made.difference("diffusion_model.head.head.diff", "proj_out.weight")


def kohya(made: Made) -> None:
    """Names without dots."""
    for i in range(made.depth):
        for theirs, ours in BLOCK.items():
            name = f"lora_unet_blocks_{i}_{theirs.replace('.', '_')}"
            made.pair(name, f"blocks.{i}.{ours}", ("lora_down", "lora_up"), alpha=1.0)


def differences_alone(made: Made) -> None:
    """No pair at all."""
    made.difference("diffusion_model.blocks.0.norm3.diff", "blocks.0.norm2.weight")


LAYOUTS = (lightx2v, causvid, accvideo, kohya, differences_alone)


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> VideoModel:
    return load_model(str(tiny_checkpoint))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_tensor_is_in_the_weights(
    layout: Callable[[Made], None], base: VideoModel, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """W + scale · alpha/r · up·down, and biases, norms and modulations + scale · difference; all else as it was."""
    torch.manual_seed(0)
    made = Made(base)
    layout(made)
    model = load_model(str(tiny_checkpoint), loras=[made.save(tmp_path / "lora.safetensors")])
    parameters = dict(model.transformer.named_parameters())
    assert list(parameters) == list(made.parameters)
    for name, before in made.parameters.items():
        expected = before.double() + SCALE * made.added.get(name, torch.zeros(1))
        torch.testing.assert_close(parameters[name].double(), expected, atol=2e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("diffusion_model.blocks.0.cross_attn.norm_k_img.diff", (64,)),  # of an image-to-video model
        ("diffusion_model.blocks.9.norm3.diff", (64,)),
        ("diffusion_model.blocks.0.norm3.diff", (65,)),
        ("diffusion_model.blocks.0.self_attn.q.alpha", ()),  # of no pair
        ("diffusion_model.blocks.0.self_attn.q.lora_mid.weight", (2, 2)),
        ("diffusion_model.patch_embedding.lora_down.weight", (2, 16, 1, 2, 2)),
        ("diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight", (2, 64)),
        ("blocks.0.self_attn.q.lora_down.weight", (2, 64)),  # without the prefix of the others
    ],
)
def test_a_tensor_too_many_is_named(
    key: str, shape: tuple[int, ...], base: VideoModel, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A file of which something isn't used is refused."""
    made = Made(base)
    made.pair("diffusion_model.blocks.0.self_attn.k", "blocks.0.attn1.to_k", ("lora_down", "lora_up"))
    made.tensors[key] = torch.ones(shape)
    named = key.removeprefix("diffusion_model.").replace(".", r"\.")
    with pytest.raises(ModelError, match=rf"{named}.*; use a LoRA that was made for this model"):
        load_model(str(tiny_checkpoint), loras=[made.save(tmp_path / "lora.safetensors")])
