"""Every model at its true shape on one GPU: a step against diffusers' own pipeline, guidance, compilation, batches,
float8, and a whole guided clip with its memory.

    python -m tests.benchmarks.models --model wan2.1-1.3b wan2.2-5b cogvideox-5b wan2.1-14b --parts steps clip compiled

Random weights in bfloat16, each model's own clip, 50 steps' schedule of which few are run. `diffusers` is the same
transformer, sampler and options in diffusers' pipeline, timed between its own step callbacks; ours is
`denoise.advance`; they take turns, printed are medians in ms and their ratio. Guidance is the pass in every conditional
forward, so a guided forward costs what a guided step does more than a plain one, over half a plain step. `clip` goes
from noise to identification, layout, refinement, guidance, pixels and mp4, of few steps, with the text encoder
elsewhere. `--tiny` runs all of it on a machine without a GPU, where the numbers mean nothing.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from omegaconf import OmegaConf

from numina.config import MethodConfig
from numina.correct import correct
from numina.prompts.targets import Target
from numina.prompts.tokens import TokenSpans
from pipelines.base import GenerationConfig, Text
from pipelines.parallel.shard import ALONE
from pipelines.sampling import denoise
from pipelines.sampling.warmup import compile_blocks
from pipelines.video.mp4 import encode_mp4
from tests.benchmarks.clip_cost import Clock
from tests.benchmarks.guidance_cost import PRESETS, plan, synchronize
from tests.benchmarks.shapes import SHAPES, TINY, build, random_texts

NOUNS = (((3, 4), (2, 3, 4)), ((8,), (7, 8)))  # tokens of each noun and of its phrase
SPANS = tuple(TokenSpans(noun=noun, phrase=phrase, first=noun) for noun, phrase in NOUNS)
ASKED = (Target("circles", 3), Target("squares", 2))
BATCHES = (1, 2, 4)
GIB = 2**30


def method(preset: str) -> MethodConfig:
    merged = OmegaConf.merge(OmegaConf.structured(MethodConfig), OmegaConf.load(PRESETS / f"{preset}.yaml"))
    loaded = OmegaConf.to_object(merged)
    assert isinstance(loaded, MethodConfig)
    return loaded


class Bench:
    """One model."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.options = name, options
        self.device = torch.device(options.device)
        self.model = build(name, self.device, tiny=options.tiny)
        self.clip = replace((TINY if options.tiny else SHAPES)[name].clip, steps=50)
        self.grid = self.model.grid(self.clip)
        self.texts = random_texts(self.model)

    def say(self, *cells: object) -> None:
        print(" | ".join([self.name, *map(str, cells)]), flush=True)

    # --- steps ---

    def theirs(self, steps: int) -> list[float]:
        """Seconds of the steps of diffusers' pipeline but the first."""
        clock, text = Clock(self.device), self.texts[0]

        def after(pipeline: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            clock("", step, steps)
            return kept

        noise = self.model.noise([0], self.clip)
        if self.model.facts.joint:
            noise = noise.transpose(1, 2).to(torch.bfloat16)
        if self.model.facts.shift is not None:
            self.model.pipeline.scheduler.register_to_config(flow_shift=self.model.facts.flow_shift(self.clip))
        with torch.inference_mode():
            self.model.pipeline(
                prompt_embeds=text.conditional,
                negative_prompt_embeds=text.unconditional,
                height=self.clip.height,
                width=self.clip.width,
                num_frames=self.clip.num_frames,
                num_inference_steps=steps,
                guidance_scale=self.clip.guidance_scale,
                latents=noise,
                output_type="latent",
                callback_on_step_end=after,
            )
        return clock.steps[1:]

    def ours(
        self, steps: int, texts: Sequence[Text] | None = None, clip: GenerationConfig | None = None
    ) -> list[float]:
        """Seconds of our steps but the first."""
        clock = Clock(self.device)
        texts, clip = texts or self.texts, replace(clip or self.clip, steps=steps)
        state = denoise.start(self.model, range(len(texts)), clip)
        clock.start()
        denoise.advance(self.model, state, texts, clip, until=steps, progress=clock)
        return clock.steps[1:]

    def guided(self, preset: str, steps: int) -> list[float]:
        """Seconds of guided steps but the first."""
        config = replace(method(preset).guide, until=1.0, schedule="constant", anchor=None)
        own = plan(config, (self.grid.frames, self.grid.height, self.grid.width), 1 if self.options.tiny else 4, 0)
        clock = Clock(self.device)
        denoise.guide(self.model, ALONE, self.texts, [own], [0], replace(self.clip, steps=steps), clock)
        return clock.steps[1:]

    def steps(self) -> float:
        """Theirs, ours and guided in turns; ms of diffusers' step."""
        n = self.options.repeats + 1
        theirs, ours = self.turns(lambda: self.theirs(n), lambda: self.ours(n))
        self.say("step, diffusers' pipeline", f"{theirs:.1f} ms")
        self.say("step, ours", f"{ours:.1f} ms", f"{ours / theirs:.4f} x")
        self.guidance(n, "eager")
        return theirs

    def guidance(self, n: int, how: str) -> None:
        for preset in self.options.presets:
            plain, guided = self.turns(lambda: self.ours(n), lambda preset=preset: self.guided(preset, n))
            added = (guided - plain) / (plain / 2)
            self.say(f"guided forward, {preset}, {how}", f"{guided - plain:+.1f} ms", f"{100 * added:+.2f} %")

    def turns(self, first: Callable[[], list[float]], second: Callable[[], list[float]]) -> tuple[float, float]:
        """Medians in ms of two ways that take turns."""
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(self.options.rounds):
            seconds[0].extend(first())
            seconds[1].extend(second())
        return 1000 * statistics.median(seconds[0]), 1000 * statistics.median(seconds[1])

    # --- compiled ---

    def compiled(self, theirs: float | None) -> None:
        n = self.options.repeats + 1
        if theirs is None:
            theirs = 1000 * statistics.median(self.theirs(n))
            self.say("step, diffusers' pipeline", f"{theirs:.1f} ms")
        compile_blocks(self.model, **({"backend": "aot_eager"} if self.options.tiny else {}))
        began = time.perf_counter()
        self.ours(2)
        self.say("first compiled steps", f"{time.perf_counter() - began:.1f} s")
        ours = 1000 * statistics.median([*self.ours(n), *self.ours(n)])
        self.say("step, ours, compiled", f"{ours:.1f} ms", f"{ours / theirs:.4f} x of diffusers' eager")
        self.guidance(n, "compiled")

    # --- batches ---

    def batches(self) -> None:
        """Steps of several clips at once, at the model's own size and a small one."""
        small = replace(self.clip, height=256, width=448, num_frames=33)
        for label, clip in (("own clip", self.clip), ("33 frames of 256×448", small)):
            if self.options.tiny:
                clip = self.clip
            alone = None
            for batch in BATCHES:
                self.fresh()
                ms = 1000 * statistics.median(
                    self.ours(self.options.repeats + 1, random_texts(self.model, batch), clip)
                )
                alone = alone or ms
                self.say(
                    f"batch {batch}, {label}", f"{ms:.1f} ms", f"{batch * alone / ms:.3f} x clips an hour", self.peak()
                )

    # --- a whole clip ---

    def whole(self) -> None:
        """Noise to mp4 under each preset; few steps."""
        for preset in self.options.presets:
            self.fresh()
            own = method(preset)
            clip = replace(self.clip, steps=self.options.clip_steps)
            marks = [("", time.perf_counter())]

            def mark(name: str, marks: list[tuple[str, float]] = marks) -> None:
                synchronize(self.device)
                marks.append((name, time.perf_counter()))

            state, [capture] = denoise.identify(self.model, ALONE, self.texts, [SPANS], [0], clip, own)
            mark("identify")
            correction = correct(capture, ASKED, SPANS, own)
            mark("layout")
            if correction.plan is None:
                latents = denoise.finish(self.model, state, self.texts, clip)
            else:
                plans, by = [correction.plan], own.schedule_by
                latents = denoise.guide(self.model, ALONE, self.texts, plans, [0], clip, path=state.path, by=by)
            mark("guide" if correction.plan else "finish")
            denoising = self.peak()
            del state
            self.fresh()
            decoded = self.model.decode(latents)
            mark("decode")
            assert decoded is not None
            mp4 = encode_mp4(decoded.pixels[0].numpy(), fps=clip.fps, crf=51)
            mark("mp4")
            took = ", ".join(f"{name} {at - before:.2f}" for (_, before), (name, at) in pairwise(marks))
            self.say(
                f"clip of {clip.steps} steps, {preset}",
                f"{took} s",
                f"denoising {denoising}, decoding {self.peak()}",
                f"{len(mp4) / 1e6:.1f} MB, {tuple(decoded.pixels.shape[1:])}, finite {bool(latents.isfinite().all())}",
            )

    # --- fp8 ---

    def fp8(self) -> None:
        from pipelines.checkpoints.quantize import quantize

        n = self.options.repeats + 1
        before = 1000 * statistics.median(self.ours(n))
        state = denoise.start(self.model, [0], replace(self.clip, steps=2))
        timestep = state.scheduler.timesteps[0]
        with torch.inference_mode():
            exact = self.model.predict(state.latents, timestep, self.texts[0].conditional)
            quantize(self.model.blocks)
            rounded = self.model.predict(state.latents, timestep, self.texts[0].conditional)
        error = (exact - rounded).float().norm() / exact.float().norm()
        self.say("fp8 against bf16, one prediction", f"{100 * error:.2f} % apart")
        ours = 1000 * statistics.median(self.ours(n))
        self.say("step, fp8", f"{ours:.1f} ms", f"{ours / before:.4f} x of bf16, both as compiled before", self.peak())

    def peak(self) -> str:
        if self.device.type != "cuda":
            return "- GiB"
        return f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB"

    def fresh(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def run(name: str, options: argparse.Namespace) -> None:
    """One model's parts, in the order in which one spoils the next: what is compiled stays so."""
    began = time.perf_counter()
    bench = Bench(name, options)
    bench.say("built", f"{time.perf_counter() - began:.1f} s", f"{bench.grid.tokens} tokens", bench.peak())
    theirs = None
    for part in options.parts:
        began = time.perf_counter()
        try:
            if part == "steps":
                theirs = bench.steps()
            elif part == "clip":
                bench.whole()
            elif part == "batches":
                bench.batches()
            elif part == "compiled":
                bench.compiled(theirs)
            elif part == "fp8":
                bench.fp8()
        except Exception as error:  # the other parts' numbers are wanted all the same
            bench.say(f"{part} failed", f"{type(error).__name__}: {error}"[:600])
            if options.tiny:
                raise
        bench.say(f"({part} took {time.perf_counter() - began:.0f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--parts", nargs="*", default=["steps", "clip", "compiled"])
    parser.add_argument("--presets", nargs="*", default=["closed", "paper"])
    parser.add_argument("--repeats", type=int, default=4, help="steps that are timed, in each turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns")
    parser.add_argument("--clip-steps", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    diffusers_logging.set_verbosity_error()
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}", flush=True)
    for name in options.model:
        run(name, options)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        torch._dynamo.reset()


if __name__ == "__main__":
    main()
