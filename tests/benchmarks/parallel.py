"""One classifier-free step of Wan2.1's transformer on the GPUs of one host, by how ranks share it.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.benchmarks.parallel --model 1.3b 14b

480×832, 81 frames: 21×30×52 tokens, 512 of text, random weights in bfloat16, two forwards to a step. `xdit` is xDiT's
own wrapper of the model, its two forwards called in a bare loop: the anchor. The other ways are ours, through
`denoise.advance` with its sampler and exchange of branches, `bare` the same engine's forwards without them, `guided`
under the preset's plan in every step. `alone` is one GPU while the others rest; `beside`, all at once, each with its
own clip. Milliseconds are medians of --repeats steps; `warm-up` is the seconds of the first, which compiles. `--tiny`
is a small model on gloo ranks, for a machine without a GPU (ours and diffusers' only).
"""

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from pipelines.attention.engines import parallelize
from pipelines.base import GenerationConfig, Text
from pipelines.models.wan import WanModel
from pipelines.parallel.config import ParallelConfig
from pipelines.parallel.shard import Shard
from pipelines.sampling import denoise
from pipelines.sampling.warmup import NOUN, compile_blocks
from tests.benchmarks.clip_cost import Clock, adapter
from tests.benchmarks.guidance_cost import GRID, PRESETS, TEXT, TINY_GRID, TINY_TEXT, plan, synchronize


@dataclass
class Row:
    """What one way of sharing costs."""

    way: str
    ranks: int
    step: float  # ms
    warm_up: float  # s
    memory: float  # GiB, peak of the rank that needs most
    more: dict[str, float] = field(default_factory=dict)  # ms, other kinds of steps


class Bench:
    """One model, shared in one way after another."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.options = name, options
        self.grid, self.tokens = (TINY_GRID, TINY_TEXT) if options.tiny else (GRID, TEXT)
        self.generation = GenerationConfig(
            height=16 * self.grid[1],
            width=16 * self.grid[2],
            num_frames=4 * (self.grid[0] - 1) + 1,
            steps=options.repeats + 1,
        )
        self.device = torch.device(options.device)

    def model(self) -> WanModel:
        torch.manual_seed(0)  # all ranks, all ways: the same weights
        return adapter(self.name, self.options, self.grid)

    def texts(self, model: WanModel) -> list[Text]:
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (1, self.tokens, model.transformer.config.text_dim)
        dtype = model.transformer.dtype
        both = [torch.randn(shape, generator=generator).to(self.device, dtype) for _ in range(2)]
        return [Text("", both[0], both[1], ())]

    def steps(self, run: Callable[[Clock], object]) -> tuple[float, float]:
        """Median ms of a run's steps but the first, and that one's seconds."""
        clock = Clock(self.device)
        with torch.inference_mode():
            run(clock)
        return 1000 * statistics.median(clock.steps[1:]), clock.steps[0]

    def forwards(self, model: WanModel, texts: list[Text], branches: int = 2) -> float:
        """Median ms of the forwards of so many branches in a bare loop; `first` has the seconds of the first round."""
        latents, timestep = model.noise([0], self.generation), torch.full((1,), 500.0, device=self.device)
        seconds = []
        with torch.inference_mode():
            for _ in range(self.options.repeats + 1):
                synchronize(self.device)
                began = time.perf_counter()
                for text in (texts[0].conditional, texts[0].unconditional)[:branches]:
                    model.predict(latents, timestep, text)
                synchronize(self.device)
                seconds.append(time.perf_counter() - began)
        self.first = seconds[0]
        return 1000 * statistics.median(seconds[1:])

    def xdit(self) -> Row:
        """xDiT's own wrapper, Ulysses over all ranks."""
        from xfuser import xFuserArgs
        from xfuser.core import distributed as xdit
        from xfuser.core.distributed import parallel_state, runtime_state
        from xfuser.model_executor.models.transformers.transformer_wan import xFuserWanTransformer3DWrapper

        ranks = dist.get_world_size()
        xdit.init_distributed_environment(ranks, dist.get_rank(), local_rank=self.device.index)
        xdit.initialize_model_parallel(ulysses_degree=ranks)
        state = runtime_state.RuntimeState(xFuserArgs(ulysses_degree=ranks).create_config()[0])
        state.increment_step_counter = lambda: None  # what the wrapper asks of xDiT's own runner
        runtime_state._RUNTIME = state
        torch.manual_seed(0)
        model = adapter(self.name, self.options, self.grid, xFuserWanTransformer3DWrapper)
        if self.options.compile:
            model.transformer.compile_repeated_blocks()
        step = self.forwards(model, self.texts(model))
        row = Row(f"xdit ulysses {ranks}", ranks, step, self.first, self.peak())
        parallel_state.destroy_model_parallel()
        runtime_state._RUNTIME = None
        return row

    def ours(self, parallel: ParallelConfig) -> Row:
        """Our loop over an engine: plain, guided, captured steps."""
        model = self.model()
        shard = parallelize(model, parallel)
        if self.options.compile:
            compile_blocks(model)
        texts, done = self.texts(model), self.generation

        def plain(clock: Clock) -> None:
            state = denoise.start(model, [0], done)
            denoise.advance(model, state, texts, done, until=done.steps, shard=shard, progress=clock)

        step, warm_up = self.steps(plain)
        row = Row(describe(parallel), parallel.ranks, step, warm_up, 0.0)
        row.more["bare"] = self.forwards(model, texts, 2 // parallel.cfg)
        for preset in self.options.presets:
            row.more |= self.of_method(model, shard, texts, preset)
        row.memory = self.peak()
        return row

    def of_method(self, model: WanModel, shard: Shard, texts: list[Text], preset: str) -> dict[str, float]:
        """Milliseconds of a guided step, and of the step that is captured, under a preset."""
        loaded: Any = OmegaConf.load(PRESETS / f"{preset}.yaml")
        guide = GuideConfig(**{**OmegaConf.to_container(loaded.guide), "until": 1.0, "anchor": None})
        identify = IdentifyConfig(**OmegaConf.to_container(loaded.identify))
        radius = 1 if self.options.tiny else 5
        # The clip's plan is the same on every rank: it travels once and each takes its rows.
        plans = [plan(guide, self.grid, radius, 0)]
        guided, _ = self.steps(lambda clock: denoise.guide(model, shard, texts, plans, [0], self.generation, clock))
        short = replace(self.generation, steps=2)  # t* is its first step
        method = MethodConfig(identify=replace(identify, step=0.0), guide=replace(guide, anchor=None))
        seconds = []
        for _ in range(3):
            with torch.inference_mode():
                synchronize(self.device)
                began = time.perf_counter()
                denoise.identify(model, shard, texts, [(NOUN, NOUN)], [0], short, method)
                synchronize(self.device)
                seconds.append(time.perf_counter() - began)
        return {f"{preset} guided": guided, f"{preset} captured": 1000 * min(seconds)}

    def beside(self) -> list[Row]:
        """One GPU alone, then every GPU with a clip of its own."""
        model = self.model()
        if self.options.compile:
            compile_blocks(model)
        texts, done = self.texts(model), self.generation

        def plain(clock: Clock) -> None:
            denoise.advance(model, denoise.start(model, [0], done), texts, done, until=done.steps, progress=clock)

        warm_up = self.steps(plain)[1]
        rows = []
        for way, ranks in (("alone", 1), ("beside", dist.get_world_size())):
            self.meet()
            step = self.steps(plain)[0] if dist.get_rank() < ranks else 0.0
            self.meet()
            rows.append(Row(way, ranks, self.slowest(step), warm_up, self.peak()))
        return rows

    def slowest(self, value: float) -> float:
        """The largest of all ranks' values."""
        all_values = torch.tensor([value], device=self.device, dtype=torch.float64)
        dist.all_reduce(all_values, dist.ReduceOp.MAX)
        return float(all_values)

    def meet(self) -> None:
        dist.barrier()
        synchronize(self.device)

    def peak(self) -> float:
        return self.slowest(torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0)

    def fresh(self) -> None:
        """Nothing of the way before: its graphs, its tensors, its peak of memory."""
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def describe(parallel: ParallelConfig) -> str:
    degrees = [
        f"{name} {getattr(parallel, name)}" for name in ("cfg", "ulysses", "ring") if getattr(parallel, name) > 1
    ]
    return f"{'' if parallel.sequence_ranks == 1 else parallel.engine + ' '}{' × '.join(degrees)}"


def ways(ranks: int, device: str) -> dict[str, ParallelConfig]:
    """All that this number of GPUs can do and a clip may want."""
    engine = "xfuser" if device.startswith("cuda") else "diffusers"
    found = {"ulysses": ParallelConfig(engine=engine, ulysses=ranks)}
    found["diffusers"] = ParallelConfig(engine="diffusers", ulysses=ranks)
    if ranks % 2 == 0:
        found["cfg"] = ParallelConfig(engine=engine if ranks > 2 else "single", cfg=2, ulysses=ranks // 2)
    if engine == "xfuser":
        found["ring"] = ParallelConfig(engine="xfuser", ring=ranks)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=["1.3b"], choices=["1.3b", "14b"])
    parser.add_argument("--ways", nargs="*", default=["xdit", "ulysses", "cfg", "diffusers", "ring", "beside"])
    parser.add_argument("--presets", nargs="*", default=["closed"])
    parser.add_argument("--layers", type=int, help="run fewer blocks than the model has")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--eager", dest="compile", action="store_false")
    parser.add_argument("--tiny", action="store_true", help="a small model and clip")
    options = parser.parse_args()
    local = int(os.environ["LOCAL_RANK"])
    options.device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    if options.device.startswith("cuda"):
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    ranks = dist.get_world_size()
    lead = dist.get_rank() == 0
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    mode = "compiled" if options.compile else "eager"
    rows: dict[str, list[Row]] = {}
    for size in options.model:
        bench = Bench(size, options)
        known = ways(ranks, options.device)
        rows[size] = []
        for way in options.ways:
            bench.fresh()
            if way == "xdit" and not options.tiny:
                rows[size].append(bench.xdit())
            elif way == "beside":
                rows[size] += bench.beside()
            elif way in known:
                rows[size].append(bench.ours(known[way]))
            if lead and rows[size]:
                print(size, rows[size][-1], flush=True)
    if lead:
        print(f"\n{ranks} × {name}, torch {torch.__version__}, {mode}, medians of {options.repeats} steps")
        print(f"{'model':>5} {'way':<26} {'step ms':>8} {'warm-up s':>9} {'GiB':>5}  other steps, ms")
        for size, found in rows.items():
            for row in found:
                others = ", ".join(f"{key} {value:.1f}" for key, value in row.more.items())
                print(f"{size:>5} {row.way:<26} {row.step:>8.1f} {row.warm_up:>9.1f} {row.memory:>5.1f}  {others}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
