"""What guidance adds to one forward of Wan's transformers, at their true shapes with random weights.

    python -m tests.benchmarks.guidance_cost --model 1.3b 14b 5b --presets paper closed released --compile

480×832, 81 frames: 21×30×52 tokens (5b: 704×1280, 121 frames: 31×22×40), 512 of text, of which `--written` aren't
padding; 512: no column is saved. The plan has 2 nouns with a removed and an added region in each of 21
frames. Plain and guided forwards alternate; printed are the medians and the median of the pairs' differences, the share
of rows that change, synchronising CUDA calls in a guided forward, and, compiled, graphs and recompilations after the
first guided forward (other prompts, other δ). `--tiny` is a small model, for a machine without a GPU.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from omegaconf import OmegaConf
from torch._dynamo.utils import counters

from numina.bias import ShardGuidance
from numina.config import GuideConfig
from numina.guidance import GuidancePlan
from numina.regions import Region, disc
from pipelines.attention.cross import GuidedCrossAttention, guided
from pipelines.base import Attention, Processor
from pipelines.parallel.shard import Shard

PRESETS = Path(__file__).parents[2] / "configs" / "method"
MODELS: dict[str, dict[str, int]] = {
    "1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    "5b": {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
}
TINY = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "num_layers": 2, "text_dim": 32}
GRID, TINY_GRID = (21, 30, 52), (3, 16, 16)  # F, H, W
GRID_5B = (31, 22, 40)
TEXT, TINY_TEXT = 512, 48


@dataclass
class Model:
    """As much of a video model as guidance asks for."""

    transformer: WanTransformer3DModel

    def guided(self, guidance: ShardGuidance, shard: Shard) -> Mapping[Attention, Processor]:
        return {block.attn2: GuidedCrossAttention(guidance, shard) for block in self.transformer.blocks}


def build(
    name: str, layers: int | None, tiny: bool, device: str, kind: type[WanTransformer3DModel] = WanTransformer3DModel
) -> Model:
    """Random weights in bfloat16, made on the device; float32 where diffusers keeps it when it loads a checkpoint.

    Not through the meta device: the rotary tables are buffers that no checkpoint holds, computed at construction.
    """
    options = dict(TINY if tiny else MODELS[name])
    if layers:
        options["num_layers"] = layers
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            transformer = kind(**options)
    finally:
        torch.set_default_dtype(default)
    for path, parameter in transformer.named_parameters():
        if set(path.split(".")) & set(transformer._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.02)
    return Model(transformer.eval().requires_grad_(False))


def plan(config: GuideConfig, grid: tuple[int, int, int], radius: int, shift: int) -> GuidancePlan:
    """Per noun and frame a kept instance that is copied, its copy, and a removed one, all discs; moved by `shift`."""
    frames, height, width = grid
    shape = disc(radius)
    side = len(shape)
    regions = np.zeros((2, *grid), dtype=np.int8)
    kinds = (Region.REFERENCE, Region.ADD_COPY, Region.REMOVE)
    for noun, (number, kind) in ((noun, item) for noun in range(2) for item in enumerate(kinds)):
        top = (height - side) * noun
        left = (width - side) * number // 2
        for frame in range(frames):
            down = (frame + shift) % max(1, (height - 2 * side) // 2 + 1)  # the nouns' regions never meet
            row = top + down if noun == 0 else top - down
            regions[noun, frame, row : row + side, left : left + side][shape] = kind
    return GuidancePlan(regions, ((3 + shift, 4 + shift), (8 + shift,)), config)


def measure(model: Model, config: GuideConfig, options: argparse.Namespace, compiled: bool) -> dict[str, object]:
    """One preset's row of the table."""
    channels = model.transformer.config.in_channels
    grid, text_tokens = (TINY_GRID, TINY_TEXT) if options.tiny else (GRID if channels == 16 else GRID_5B, TEXT)
    device, dtype = torch.device(options.device), torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    size = (1, channels, grid[0], 2 * grid[1], 2 * grid[2])
    latents = torch.randn(size, generator=generator, device=device, dtype=dtype)
    text = torch.randn(
        1, text_tokens, model.transformer.config.text_dim, generator=generator, device=device, dtype=dtype
    )
    text[:, options.written :] = 0
    lengths = [min(options.written, text_tokens)]
    timestep = torch.full((1,), 500.0, device=device)

    def prepared(radius: int, shift: int) -> ShardGuidance:
        plans = [plan(config, grid, radius, shift)]
        return ShardGuidance.prepare(plans, slice(0, plans[0].rows), text_tokens, device, dtype, lengths=lengths)

    def forward() -> None:
        model.transformer(latents, timestep, text, return_dict=False)

    def timed(run: Callable[[], None]) -> float:
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        return 1000 * (time.perf_counter() - began)

    radius = options.radius or (1 if options.tiny else 5)
    began = time.perf_counter()
    guidance = prepared(radius, 0)
    synchronize(device)
    preparing = 1000 * (time.perf_counter() - began)

    def guided_forward(own: ShardGuidance = guidance, delta: float = 1.75) -> None:
        with guided(model, Shard(), own, delta):
            forward()

    forward()
    guided_forward()
    before = graphs()
    others = [prepared(radius, 1), prepared(radius + 1, 2), prepared(max(1, radius - 1), 3)]
    for number, other in enumerate(others):
        guided_forward(other, 1.5 - number / 4)
        forward()
    recompiled = graphs() - before
    syncs = synchronising(partial(guided_forward, delta=1.6), device) - synchronising(forward, device)
    fixed = config.schedule == "constant"
    plain, changed = [], []
    for repeat in range(options.repeats):
        # A falling δ writes its masks anew at every step, as generation does.
        delta = 1.75 if fixed else 1.75 - repeat / (options.repeats + 1)
        for times, run in [(plain, forward), (changed, partial(guided_forward, delta=delta))][:: 1 - 2 * (repeat % 2)]:
            times.append(timed(run))
    extra = statistics.median(b - a for a, b in zip(plain, changed, strict=True))
    return {
        "plain": statistics.median(plain),
        "guided": statistics.median(changed),
        "extra": 100 * extra / statistics.median(plain),
        "form": "+".join(name for name in ("bias", "row_bias", "copies") if getattr(guidance, name) is not None),
        "rows": sum(
            part.shape[1] for part in (guidance.rows, guidance.copies and guidance.copies.rows) if part is not None
        ),
        "prepare": preparing,
        "syncs": syncs,
        "columns": guidance.order.shape[1],
        "graphs": graphs() if compiled else "-",
        "recompiled": recompiled if compiled else "-",
    }


def synchronising(run: Callable[[], None], device: torch.device) -> int:
    """How many CUDA calls of `run` made the host wait."""
    if device.type != "cuda":
        return 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Not the notice that the mode is a prototype, which torch gives once, at the first use.
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


def graphs() -> int:
    """Graphs that torch.compile has made since its last reset."""
    return counters["stats"]["unique_graphs"]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=["1.3b"], choices=list(MODELS))
    parser.add_argument("--presets", nargs="*", default=["paper", "closed", "released"])
    parser.add_argument("--layers", type=int, help="run fewer blocks than the model has")
    parser.add_argument("--written", type=int, default=40, help="tokens of a prompt, before its padding")
    parser.add_argument("--radius", type=int, help="of the regions, in tokens; 5: 81 tokens")
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks too, after eager ones")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="a small model and clip")
    options = parser.parse_args()

    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}, medians of {options.repeats} pairs", flush=True)
    print(
        f"{'model':>6} {'mode':>8} {'preset':>9} {'plain ms':>9} {'guided ms':>9} {'extra %':>8} {'rows':>6} ", end=""
    )
    print(f"{'prepare ms':>10} {'syncs':>5} {'graphs':>6} {'recompiled':>10} {'columns':>7}  form")
    for size in options.model:
        model = build(size, options.layers, options.tiny, options.device)
        for mode in ("eager", "compiled") if options.compile else ("eager",):
            for preset in options.presets:
                if mode == "compiled":
                    torch._dynamo.reset()
                    counters.clear()
                    model.transformer.compile_repeated_blocks(fullgraph=True, backend=options.backend)
                config = GuideConfig(**OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml").guide))
                with torch.inference_mode():
                    row = measure(model, config, options, mode == "compiled")
                print(
                    f"{size:>6} {mode:>8} {preset:>9} {row['plain']:>9.2f} {row['guided']:>9.2f} {row['extra']:>8.2f} "
                    f"{row['rows']:>6} {row['prepare']:>10.1f} {row['syncs']:>5} {row['graphs']:>6} "
                    f"{row['recompiled']:>10} {row['columns']:>7}  {row['form']}",
                    flush=True,
                )
        del model


if __name__ == "__main__":
    main()
