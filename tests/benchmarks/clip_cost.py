"""What a whole clip costs through NUMINA, next to a plain one, by the way identification is made cheaper.

    python -m tests.benchmarks.clip_cost --model 1.3b --presets closed paper

Wan2.1's transformer at its true shape with random weights, 480×832, 81 frames: 21×30×52 tokens, 512 of text, 50 steps,
two passes each. Measured: plain steps and guided steps (medians), the captured step t* (median), and for each way of
identification all of its steps before t*, once. Extrapolated from those: the steps after t*, and the guided run. It is
denoising alone: text encoding, decoding and layout are left out of both sides, so that real ratios are a little lower.

A way is a cache's name, `stride2` or `stride3`, or both: `stride2+taylorseer`. On random weights first_block's
decisions mean nothing; the others decide by a step's place. `--tiny --device cpu` is a small model, for a machine
without a GPU.

The last table: plain clips' cost per correct clip at some accuracy, 1/accuracy, which needs a judge to sort out the
wrong ones; against NUMINA's, given the share of clips whose counts are read right and of guided clips that come out
right, as tests.benchmarks.counting measures both; `--identified stride2=0.9` gives a way its own share.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from types import SimpleNamespace

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from omegaconf import OmegaConf

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.prompts.tokens import TokenSpans
from numina.schedule import intensity
from pipelines.base import GenerationConfig, ModelFacts, Text
from pipelines.models.families import FAMILIES
from pipelines.models.wan import WanModel
from pipelines.parallel.shard import Shard
from pipelines.parallel.support import CACHES, check_cache
from pipelines.sampling import denoise
from pipelines.sampling.cache import identify_forwards
from tests.benchmarks.guidance_cost import (
    GRID,
    MODELS,
    PRESETS,
    TEXT,
    TINY_GRID,
    TINY_TEXT,
    build,
    plan,
    synchronize,
)

WAYS = ["none", "stride2", "taylorseer", "magcache", "cfg_cache", "stride2+cfg_cache", "stride2+taylorseer"]
ACCURACIES = (0.4, 0.6, 0.8)  # of plain clips
GUIDED_STEPS = 10  # that are run of a guided clip; its schedule is that many steps long
NOUNS = (((3, 4), (2, 3, 4)), ((8,), (7, 8)))  # tokens of each noun and of its phrase


class Clock:
    """Seconds of each denoising step, the GPU waited for; told by denoising's own progress."""

    def __init__(self, device: torch.device):
        self.device = device
        self.steps: list[float] = []
        self.start()

    def start(self) -> None:
        synchronize(self.device)
        self.began = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        synchronize(self.device)
        self.steps.append(time.perf_counter() - self.began)
        self.began = time.perf_counter()


def adapter(
    name: str,
    options: argparse.Namespace,
    grid: tuple[int, int, int],
    kind: type[WanTransformer3DModel] = WanTransformer3DModel,
) -> WanModel:
    """The project's own adapter around a transformer of random weights; without text encoder and VAE."""
    transformer = build(name, options.layers, options.tiny, options.device, kind).transformer
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    facts = ModelFacts(
        path="",
        name=name,
        revision="",
        family="WanPipeline",
        depth=len(transformer.blocks),
        heads=transformer.config.num_attention_heads,
        head_size=transformer.config.attention_head_dim,
        token_strides=(4, 16, 16),
        sampler=type(scheduler).__name__,
        shift=scheduler.config.flow_shift,
        large_shift=FAMILIES["WanPipeline"].large_shift,
    )
    return WanModel(SimpleNamespace(transformer=transformer, scheduler=scheduler), facts, torch.device(options.device))


def identification(way: str, preset: str) -> IdentifyConfig:
    """A preset's identification, made cheaper in the given way."""
    config = IdentifyConfig(**OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml").identify))
    for part in way.split("+"):
        if part.startswith("stride"):
            config = replace(config, stride=int(part.removeprefix("stride")))
        else:
            check_cache("--ways", part)
            config = replace(config, cache=part)
    return config


class Bench:
    """Measures the phases of one model's clips."""

    def __init__(self, name: str, options: argparse.Namespace):
        grid, tokens = (TINY_GRID, TINY_TEXT) if options.tiny else (GRID, TEXT)
        self.grid, self.options = grid, options
        self.model = adapter(name, options, grid)
        self.generation = GenerationConfig(
            height=16 * grid[1], width=16 * grid[2], num_frames=4 * (grid[0] - 1) + 1, steps=options.steps
        )
        self.times = self.model.facts.times(self.generation)
        generator = torch.Generator(self.model.device).manual_seed(0)
        shape = (1, tokens, self.model.transformer.config.text_dim)
        both = [
            torch.randn(shape, generator=generator, device=self.model.device, dtype=torch.bfloat16) for _ in range(2)
        ]
        self.texts = [Text("", both[0], both[1], ())]
        self.spans = [tuple(TokenSpans(noun=noun, phrase=phrase, first=noun) for noun, phrase in NOUNS)]

    def clock(self) -> Clock:
        return Clock(self.model.device)

    def plain(self) -> float:
        """Seconds of a plain step."""
        clock = self.clock()
        state = denoise.start(self.model, [1], self.generation)
        until = self.options.repeats + 1
        denoise.advance(self.model, state, self.texts, self.generation, until=until, progress=clock)
        return median(clock.steps[1:])

    def captured(self, preset: str) -> float:
        """Seconds of a step that is looked on at."""
        method = MethodConfig(identify=replace(identification("none", preset), step=0.0))
        seconds = []
        for _ in range(self.options.repeats + 1):
            clock = self.clock()
            work = partial(
                denoise.identify, self.model, Shard(), self.texts, self.spans, [1], self.generation, method, clock
            )
            seconds.append(timed(work, self.model.device))
        return median(seconds[1:])

    def before(self, way: str) -> tuple[float, float]:
        """Seconds of all steps before t*, and the memory at their peak in GiB."""
        config = identification(way, self.options.presets[0])
        kept = config.schedule(self.times)
        reference = kept.index(config.capture_step(self.times))
        state = denoise.start(self.model, [1], self.generation, kept if config.stride > 1 else None)
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clock = self.clock()
        denoise.advance(
            self.model, state, self.texts, self.generation, until=reference, cache=config.cache, progress=clock
        )
        cuda = self.model.device.type == "cuda"
        return sum(clock.steps), torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")

    def guided(self, preset: str) -> float:
        """Seconds of a guided step."""
        config = GuideConfig(**OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml").guide))
        radius = 1 if self.options.tiny else 5
        short = replace(self.generation, steps=GUIDED_STEPS)
        clock = self.clock()
        own = plan(config, self.grid, radius, 0)
        denoise.guide(self.model, Shard(), self.texts, [own], [1], short, clock)
        deltas = [intensity(time, config) for time in self.model.facts.times(short)]
        return median(seconds for seconds, delta in list(zip(clock.steps, deltas, strict=True))[1:] if delta)

    def guided_run(self, preset: str) -> tuple[int, int]:
        """How many steps of a guided run are guided, and how many are not; it may start after the first one."""
        config = GuideConfig(**OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml").guide))
        first = config.first_step(self.times) if config.start else 0
        number = sum(bool(intensity(time, config)) for time in self.times[first:])
        return number, len(self.times) - first - number


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds, the GPU waited for."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def per_correct(accuracy: float, right: float, corrected: float, identified: float, repaired: float) -> float:
    """Expected cost of one correct clip, in plain clips: costs of a clip that goes on and of one that is guided; shares
    of counts that are read right, and of guided clips that come out right."""
    guided = accuracy * (1 - identified) + (1 - accuracy) * identified
    cost = guided * corrected + (1 - guided) * right
    return cost / (accuracy * identified + guided * repaired)


def shares(values: Sequence[str]) -> Callable[[str], float]:
    """`0.93 stride2=0.9` → each way's own share, or the one without a name."""
    pairs = [value.rpartition("=") for value in values]
    named = {way: float(share) for way, _, share in pairs}
    return lambda way: named.get(way, named.get("", 0.93))


def report(name: str, bench: Bench, options: argparse.Namespace) -> None:
    """One model's tables."""
    steps = options.steps
    plain = bench.plain()
    whole = steps * plain
    print(f"{name}: plain step {plain:.4f} s, plain clip of {steps} steps {whole:.1f} s", flush=True)
    before = {way: bench.before(way) for way in options.ways}
    identified = shares(options.identified)
    for preset in options.presets:
        captured, guided = bench.captured(preset), bench.guided(preset)
        number, others = bench.guided_run(preset)
        run = number * guided + others * plain
        print(
            f"\n{preset}: captured step {captured:.4f} s (+{captured - plain:.4f}), guided step {guided:.4f} s"
            f" ({100 * (guided / plain - 1):+.1f} %), guided run {run / whole:.3f} × plain"
        )
        print(
            "× plain: identify, a clip whose counts are right, one that is corrected; then per correct clip at accuracy"
        )
        columns = ["forwards", "seconds", "identify", "right", "corrected", "GiB", *map(str, ACCURACIES)]
        print(f"{'way':>20} " + " ".join(f"{column:>9}" for column in columns))
        nothing = float("nan")
        plainly = row(nothing, 1.0, nothing, nothing, *(1 / accuracy for accuracy in ACCURACIES))
        print(f"{'plain':>20} {2 * steps:>9} {whole:>9.2f} {plainly}")
        for way, (seconds, memory) in before.items():
            config = identification(way, preset)
            phase = seconds + captured
            rest = steps - config.capture_step(bench.times) - 1
            right, corrected = (phase + rest * plain) / whole, (phase + run) / whole
            costs = [per_correct(a, right, corrected, identified(way), options.corrected) for a in ACCURACIES]
            cells = row(phase / whole, right, corrected, memory, *costs)
            forwards = identify_forwards(config, bench.times, steps, passes=2)
            print(f"{way:>20} {forwards:>9} {phase:>9.2f} {cells}", flush=True)


def row(*cells: float) -> str:
    """Cells of a table."""
    return " ".join(f"{cell:>9.3f}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=["1.3b"], choices=list(MODELS))
    parser.add_argument("--presets", nargs="*", default=["closed", "paper"])
    parser.add_argument("--ways", nargs="*", default=WAYS, help=f"stride2, …, {', '.join(CACHES)}, or two with a +")
    parser.add_argument("--identified", nargs="*", default=["0.93"], help="share of clips whose counts are read right")
    parser.add_argument("--corrected", type=float, default=0.93, help="share of guided clips that come out right")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layers", type=int, help="run fewer blocks than the model has")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a small model and clip")
    options = parser.parse_args()

    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{device}, torch {torch.__version__}; denoising alone")
    print("run: the steps before t*; medians: plain, captured, guided steps; extrapolated: steps after t*, guided run")
    print(f"counts read right {' '.join(options.identified)}, guided clips that come out right {options.corrected}")
    began = time.perf_counter()
    for name in options.model:
        with torch.inference_mode():
            report(name, Bench(name, options), options)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
