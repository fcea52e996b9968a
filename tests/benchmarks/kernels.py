"""What self-attention's kernel does to a forward of Wan2.1's transformer: time and error, at its true shape.

    python -m tests.benchmarks.kernels --models 1.3b 14b --repeat 5
    python -m tests.benchmarks.kernels --models 1.3b --exact --frames 5
    python -m tests.benchmarks.kernels --models 14b --profile
    python -m tests.benchmarks.kernels --models 14b --float8

480×832, 81 frames: 32,760 tokens, 512 of text, random weights in bfloat16, blocks compiled. Forwards by the kernels
alternate; printed are the medians and the ratio to PyTorch's own kernel (cuDNN on Hopper). `--exact` compares one
forward by each kernel with one in float32; `--profile` adds what the GPU does in a forward, kernel by kernel.
`--float8` then multiplies the blocks' linear layers in 8-bit floats (`model.dtype=float8`, torchao), with flash_3 and
with flash_3_fp8, the same kernel on queries, keys and values in 8 bits. Needs fa3-fwd for flash_3; `--tiny` is a small
model for a machine without a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from pipelines.attention.cross import processors, project
from pipelines.attention.kernels import FLASH_3, FLASH_3_FP8, FlashSelfAttention, flash3_lacks
from pipelines.checkpoints.quantize import quantize
from tests.benchmarks.guidance_cost import GRID, TEXT, TINY_GRID, TINY_TEXT, Model, build

NATIVE = "native"


def inputs(model: Model, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    frames, height, width = TINY_GRID if options.tiny else (options.frames or GRID[0], *GRID[1:])
    device = torch.device(options.device)
    generator = torch.Generator(device).manual_seed(0)
    latents = torch.randn(1, 16, frames, 2 * height, 2 * width, generator=generator, device=device)
    tokens = TINY_TEXT if options.tiny else TEXT
    text = torch.randn(1, tokens, model.transformer.config.text_dim, generator=generator, device=device)
    return latents, torch.full((1,), 500.0, device=device), text


@contextmanager
def kernel(model: Model, name: str) -> Iterator[None]:
    """Self-attention of all blocks by a kernel; diffusers' own processor for `native`."""
    if name == NATIVE:
        yield
        return
    flash = FlashSelfAttention(project, name)
    with processors({block.attn1: flash for block in model.transformer.blocks}):
        yield


@torch.inference_mode()
def timed(model: Model, names: list[str], options: argparse.Namespace, base: float = 0.0) -> float:
    """Prints the times by each kernel, and what share they are of `base` [ms]; without one, of the first kernel's,
    which is returned."""
    latents, step, text = inputs(model, options)
    latents, text = latents.bfloat16(), text.bfloat16()
    if not options.eager:
        model.transformer.compile_repeated_blocks(fullgraph=True)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.repeat + 1):
        for name in names:
            with kernel(model, name):
                torch.cuda.synchronize() if latents.is_cuda else None
                began = time.perf_counter()
                model.transformer(latents, step, text, return_dict=False)
                torch.cuda.synchronize() if latents.is_cuda else None
                seconds = time.perf_counter() - began
            if turn:
                times[name].append(1000 * seconds)
            else:
                print(f"  {name}: first forward {seconds:.1f} s", flush=True)
    base = base or statistics.median(times[names[0]])
    for name, own in times.items():
        median = statistics.median(own)
        print(f"  {name:<11} {median:8.1f} ms  {median / base:.3f} of {NATIVE}  {[round(t) for t in own]}")
    print(f"  graphs: {counters['stats'].get('unique_graphs', 0)}", flush=True)
    if options.profile:
        for name in names:
            with kernel(model, name), profile(activities=[ProfilerActivity.CUDA]) as seen:
                model.transformer(latents, step, text, return_dict=False)
                torch.cuda.synchronize()
            print(
                f"  {name}:\n"
                + seen.key_averages().table(sort_by="cuda_time_total", row_limit=14, max_name_column_width=70)
            )
    return base


@torch.inference_mode()
def exact(model: Model, names: list[str], options: argparse.Namespace) -> None:
    latents, step, text = inputs(model, options)

    def output() -> torch.Tensor:
        return model.transformer(latents.bfloat16(), step, text.bfloat16(), return_dict=False)[0].float()

    outputs = {}
    for name in names:
        with kernel(model, name):
            outputs[name] = output()
    model.transformer.float()
    whole = model.transformer(latents.bfloat16().float(), step, text.bfloat16().float(), return_dict=False)[0]
    if options.float8:
        model.transformer.bfloat16()
        quantize(model.transformer.blocks)
        for name in eight_bit_names(names):
            with kernel(model, name):
                outputs[f"float8, {name}"] = output()
    for name, found in outputs.items():
        error = (found - whole).square().mean().sqrt() / whole.square().mean().sqrt()
        print(f"  {name:<11} {error.item():.5f} root mean square error against float32, of its own", flush=True)


def eight_bit_names(names: list[str]) -> list[str]:
    """The kernels that are tried beside linear layers in 8 bits."""
    return [FLASH_3, FLASH_3_FP8] if FLASH_3 in names else names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["1.3b", "14b"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--frames", type=int, help="latent frames, 21 by default")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--float8", action="store_true", help="also with the linear layers in 8-bit floats")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    lacking = flash3_lacks(device, torch.bfloat16)
    names = [NATIVE] + ([] if lacking else [FLASH_3])
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", torch.__version__, lacking or "")
    for name in options.models:
        model = build(name, options.layers, options.tiny, options.device)
        print(f"{name}, {len(model.transformer.blocks)} blocks", flush=True)
        if options.exact:
            exact(model, names, options)
        else:
            base = timed(model, names, options)
            if options.float8:
                torch.compiler.reset()
                quantize(model.transformer.blocks)
                print("  linear layers in 8-bit floats:")
                timed(model, eight_bit_names(names), options, base)
        del model
        torch.compiler.reset()


if __name__ == "__main__":
    main()
