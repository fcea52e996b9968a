"""What decoding holds at its most, with diffusers' layers and with ours, counted on fake tensors.

    python -m tests.benchmarks.decode_held --model wan2.1-1.3b wan2.2-5b --ranks 1 2 4

The true decoders at their own clip's size; nothing is computed, so any machine will do. Four latent frames
are decoded: from the third on no more is held. Printed are GiB of living tensors without weights; an allocator and the
kernels' workspace come on top. A GPU's own kernels (`pipelines/video/kernels.py`) hold nothing but what they write.
Of several ranks it is the first one, whose band is none the thinner.
"""

import argparse
import weakref
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.video import decode, layers
from pipelines.video.bands import Band, shares
from pipelines.video.layers import fast_layers
from tests.benchmarks.shapes import SHAPES

FRAMES = 4  # latent
MODELS = [name for name, shape in SHAPES.items() if shape.family == "WanPipeline"]


class Held(TorchDispatchMode):
    """Bytes of living storages that were made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: Any = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen[storage] = True
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def gone(self, size: int) -> None:
        self.now -= size


def held(name: str, on_gpu: bool | None, dtype: torch.dtype = torch.float32, ranks: int = 1) -> float:
    """GiB of a model's decoder on one of so many ranks; with diffusers' layers where `on_gpu` is None."""
    shape = SHAPES[name]
    with FakeTensorMode(), torch.inference_mode():
        torch.set_default_dtype(dtype)
        vae = AutoencoderKLWan(**shape.vae)
        space = vae.config.scale_factor_spatial
        height = shape.clip.height // space
        latents = torch.empty(1, vae.config.z_dim, FRAMES, height, shape.clip.width // space)
        band = Band(None, 0, shares(height, ranks)) if ranks > 1 else None
        with ExitStack() as within:
            if on_gpu is not None:
                within.enter_context(fast_layers(vae.decoder, on_gpu=on_gpu, band=band))
            if on_gpu:
                within.enter_context(patch.object(layers, "norm_silu", lambda *_, **__: None))
                within.enter_context(patch.object(layers, "add_bias", lambda x, bias, other: torch.empty_like(other)))
            within.enter_context(patch.object(Band, "_exchange", lambda *_: None))
            counted = within.enter_context(Held())
            for _ in decode._frames(vae, latents, band):
                pass
        torch.set_default_dtype(torch.float32)
        return counted.most / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=["wan2.1-1.3b", "wan2.2-5b"], choices=MODELS)
    parser.add_argument("--ranks", nargs="*", type=int, default=[1])
    options = parser.parse_args()
    print("model        dtype     ranks  diffusers  ours  on a GPU [GiB]")
    for name in options.model:
        for dtype in (torch.float32, torch.bfloat16):
            for ranks in options.ranks:
                theirs = f"{held(name, None, dtype):.1f}" if ranks == 1 else "-"
                cpu, gpu = (held(name, on_gpu, dtype, ranks) for on_gpu in (False, True))
                kind = str(dtype).removeprefix("torch.")
                print(f"{name:12} {kind:9} {ranks:5} {theirs:>10} {cpu:5.1f} {gpu:9.1f}", flush=True)


if __name__ == "__main__":
    main()
