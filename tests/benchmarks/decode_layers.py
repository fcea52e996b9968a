"""Seconds from latents to bytes on one GPU: diffusers' layers beside ours, float32 beside bfloat16, random weights.

    python -m tests.benchmarks.decode_layers --model wan2.1-14b wan2.2-5b [--profile]
    python -m tests.benchmarks.decode_layers --tiny            # for a machine without a GPU

The true VAEs at their own clip's size. `first` is the first decode, compiling included; `seconds` the median of three
more; PSNR is to diffusers' layers in float32 without TF32. `--profile` prints where the GPU's time goes.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from pipelines.video import decode
from tests.benchmarks.decode_cost import TINY, synchronize
from tests.benchmarks.shapes import SHAPES

REPEATS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@contextmanager
def layers(ours: bool) -> Iterator[None]:
    """Decoding's own layers, or diffusers'."""
    kept = decode.fast_layers
    if not ours:
        decode.fast_layers = lambda decoder, **how: nullcontext()  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        decode.fast_layers = kept


def build(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(**config).to(device, dtype).eval().requires_grad_(False)


def pixels_of(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    decoded = decode.decode_pixels(vae, latents)
    assert decoded is not None
    return decoded.pixels


def psnr(one: Tensor, other: Tensor) -> float:
    """[dB] of bytes."""
    error = (one.float() - other.float()).square().mean().clamp_min(1e-9)
    return float(10 * torch.log10(255**2 / error))


def measure(
    name: str, config: dict[str, Any], shape: tuple[int, ...], device: torch.device, dtypes: list[str], profile: bool
) -> None:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    torch.backends.cudnn.allow_tf32 = False
    with layers(ours=False):
        exact = pixels_of(build(config, torch.float32, device), latents)
    torch.backends.cudnn.allow_tf32 = True
    for dtype in dtypes:
        for ours in (False, True):
            vae, times = build(config, DTYPES[dtype], device), []
            with layers(ours):
                for repeat in range(1 + REPEATS):
                    if repeat == 1 and device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    synchronize(device)
                    began = time.perf_counter()
                    pixels = pixels_of(vae, latents)
                    times.append(time.perf_counter() - began)
                peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device.type == "cuda" else "-"
                print(
                    f"{name:12} {dtype:9} {'ours' if ours else 'diffusers':10} {times[0]:7.2f}"
                    f" {statistics.median(times[1:]):8.3f} {psnr(pixels, exact):6.1f} {peak:>6}",
                    flush=True,
                )
                if profile and ours and dtype == "bfloat16":
                    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                        pixels_of(vae, latents)
                    print(
                        profiler.key_averages().table(sort_by="cuda_time_total", row_limit=16, max_name_column_width=60)
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [name for name, shape in SHAPES.items() if shape.family == "WanPipeline"]
    parser.add_argument("--model", nargs="*", default=["wan2.1-14b"], choices=models)
    parser.add_argument("--dtype", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a small VAE, and 9 frames of 96×160")
    options = parser.parse_args()
    diffusers_logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print("model        dtype     layers       first  seconds   PSNR    GiB", flush=True)
    if options.tiny:
        measure("tiny", TINY, (1, 16, 3, 12, 20), device, options.dtype, profile=False)
        return
    for name in options.model:
        shape = SHAPES[name]
        vae = AutoencoderKLWan.from_config(shape.vae)
        space, clip = vae.config.scale_factor_spatial, shape.clip
        size = (1, vae.config.z_dim, (clip.num_frames - 1) // 4 + 1, clip.height // space, clip.width // space)
        measure(name, shape.vae, size, device, options.dtype, options.profile)


if __name__ == "__main__":
    main()
