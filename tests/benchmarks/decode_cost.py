"""What decoding a clip costs on one rank and split over a gang's, with Wan2.1's VAE at its true shape, random weights.

    python -m torch.distributed.run --nproc-per-node 4 -m tests.benchmarks.decode_cost --dtype float32 bfloat16

81 frames of 480×832. Per dtype two rows: the first rank alone while the others wait, then all of them. Seconds are from
latents to bytes on the CPU, the median of 3 after a warm-up; peaks are of allocated GPU memory, weights included. On a
machine without a GPU the ranks talk over gloo: `--tiny` is a small VAE and clip for there.
"""

import argparse
import os
import statistics
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from pipelines.video.decode import decode_pixels, split_decoder

TINY = {"base_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
REPEATS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Cost:
    seconds: float  # of the first rank
    peaks: list[float]  # GiB, of each rank
    pixels: Tensor | None  # on the first rank


def build(dtype: torch.dtype, tiny: bool, device: torch.device) -> AutoencoderKLWan:
    """The same weights on every rank."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**(TINY if tiny else {}))
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
    return Cost(statistics.median(times[1:]), peaks, pixels)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(dtype: str, cost: Cost, base: Cost, ranks: int) -> str:
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
    return (
        f"{ranks:>5} {dtype:>9} {cost.seconds:>8.3f} {base.seconds / cost.seconds:>6.2f}× "
        f"{memory[0]:>9} {memory[1]:>10} {memory[2]:>8} {int(apart.max()):>11} {share:>11.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], choices=list(DTYPES))
    parser.add_argument("--height", type=int, help="pixels; 480")
    parser.add_argument("--width", type=int, help="pixels; 832")
    parser.add_argument("--frames", type=int, help="4k + 1; 81")
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
    height, width, frames = (
        given or default
        for given, default in zip(
            (options.height, options.width, options.frames),
            (96, 160, 9) if options.tiny else (480, 832, 81),
            strict=True,
        )
    )
    if leads:
        name = torch.cuda.get_device_name() if cuda else "CPU"
        print(f"{name}, torch {torch.__version__}, {frames} frames of {height}×{width}, medians of {REPEATS}")
        print("ranks     dtype  seconds    gain  peak GiB  of others  % whole  most apart  % of bytes", flush=True)
    for dtype in options.dtype:
        vae = build(DTYPES[dtype], options.tiny, device)
        generator = torch.Generator().manual_seed(0)
        shape = (1, vae.config.z_dim, (frames - 1) // 4 + 1, height // 8, width // 8)
        latents = torch.randn(shape, generator=generator).to(device)
        costs = {1: measure(vae, latents, alone=True)}
        if ranks > 1:
            split_decoder(vae, dist.group.WORLD)
            costs[ranks] = measure(vae, latents, alone=False)
        if leads:
            for count, cost in costs.items():
                print(row(dtype, cost, costs[1], count), flush=True)
        del vae
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
