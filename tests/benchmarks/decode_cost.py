"""What decoding a clip costs on one rank and split over a gang's: Wan's VAEs at their true shapes, random weights.

    python -m torch.distributed.run --nproc-per-node 4 -m tests.benchmarks.decode_cost --model wan2.1-14b wan2.2-5b
    python -m torch.distributed.run --nproc-per-node 2 -m tests.benchmarks.decode_cost --tiny    # without a GPU

Clips have the size that a model is made for. Per model and dtype two rows: the first rank alone while the others wait,
then all of them. `first` is the first decode, `seconds` the median of 3 more, from latents to bytes on the CPU. Peaks
are of allocated GPU memory, weights included. Pixels are compared with the first rank's alone. On a machine without a
GPU the ranks talk over gloo.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from pipelines.video.decode import decode_pixels, split_decoder
from tests.benchmarks.shapes import SHAPES

TINY = {"base_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
REPEATS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Cost:
    first: float  # seconds of the first rank's first decode
    seconds: float  # median of its others
    peaks: list[float]  # GiB, of each rank
    pixels: Tensor | None  # on the first rank


def build(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> AutoencoderKLWan:
    """The same weights on every rank."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**config)
    return vae.to(device, dtype).eval().requires_grad_(False)


def measure(vae: AutoencoderKLWan, latents: Tensor, alone: bool) -> Cost:
    """Decodes on all ranks, or on the first while the others wait."""
    device, works = latents.device, dist.get_rank() == 0 or not alone
    times, pixels = [], None
    for repeat in range(1 + REPEATS):
        if repeat == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        synchronize(device)
        dist.barrier()
        began = time.perf_counter()
        if works:
            pixels, _ = decode_pixels(vae, latents) or (None, None)
            synchronize(device)
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    peaks = [0.0] * dist.get_world_size()
    dist.all_gather_object(peaks, peak)
    return Cost(times[0], statistics.median(times[1:]), peaks, pixels)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(name: str, dtype: str, cost: Cost, base: Cost, ranks: int) -> str:
    """One line of the table; `base` is the whole decode on one rank."""
    first, others = cost.peaks[0], cost.peaks[1:ranks]
    known = base.peaks[0] > 0
    memory = (
        f"{first:.2f}" if known else "-",
        f"{max(others):.2f}" if known and others else "-",
        f"{100 * first / base.peaks[0]:.0f}" if known else "-",
    )
    assert cost.pixels is not None
    assert base.pixels is not None
    apart = (cost.pixels.short() - base.pixels.short()).abs()
    share = 100 * (apart > 0).float().mean()
    psnr = f"{10 * torch.log10(255**2 / apart.float().square().mean()):.1f}" if apart.any() else "-"
    return (
        f"{name:12} {ranks:>5} {dtype:>9} {cost.first:>6.2f} {cost.seconds:>8.3f} {base.seconds / cost.seconds:>6.2f}× "
        f"{memory[0]:>9} {memory[1]:>10} {memory[2]:>8} {int(apart.max()):>11} {share:>11.4f} {psnr:>7}"
    )


def clip_of(model: str) -> tuple[int, int, int]:
    """Height, width and frames."""
    clip = SHAPES[model].clip
    return clip.height, clip.width, clip.num_frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [name for name, shape in SHAPES.items() if shape.family == "WanPipeline"]
    parser.add_argument("--model", nargs="*", default=["wan2.1-14b"], choices=models)
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], choices=list(DTYPES))
    parser.add_argument("--height", type=int, help="pixels; of the model's own clip if not given, as the next two")
    parser.add_argument("--width", type=int, help="pixels")
    parser.add_argument("--frames", type=int, help="4k + 1")
    parser.add_argument("--tiny", action="store_true", help="a small VAE, and 9 frames of 96×160")
    options = parser.parse_args()

    diffusers_logging.set_verbosity_error()  # it warns of every cast to bfloat16
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo", timeout=timedelta(minutes=10), device_id=device if cuda else None
    )
    ranks, leads = dist.get_world_size(), dist.get_rank() == 0
    if leads:
        name = torch.cuda.get_device_name() if cuda else "CPU"
        print(f"{name}, torch {torch.__version__}, medians of {REPEATS}")
        print(
            "model        ranks     dtype  first  seconds    gain  peak GiB  of others  % whole  most apart  % of bytes"
            "    PSNR",
            flush=True,
        )
    for name in ["tiny"] if options.tiny else options.model:
        config, own = (TINY, (96, 160, 9)) if options.tiny else (SHAPES[name].vae, clip_of(name))
        sizes = zip((options.height, options.width, options.frames), own, strict=True)
        height, width, frames = (given or default for given, default in sizes)
        for dtype in options.dtype:
            vae = build(config, DTYPES[dtype], device)
            space = vae.config.scale_factor_spatial
            shape = (1, vae.config.z_dim, (frames - 1) // 4 + 1, height // space, width // space)
            latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
            costs = {1: measure(vae, latents, alone=True)}
            if ranks > 1:
                split_decoder(vae, dist.group.WORLD)
                costs[ranks] = measure(vae, latents, alone=False)
            if leads:
                for count, cost in costs.items():
                    print(row(name, dtype, cost, costs[1], count), flush=True)
            del vae
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
