"""torch.compile of the repeated blocks, and what makes a job's first clip as fast as its last: a warm-up on noise.

Blocks of one kind share one graph, which serves every prompt, step and δ; guided blocks have their own. Captured
passes run uncompiled: they are one in a clip, and a watched block would cost a graph of its own. What was compiled
lies in inductor's cache on disk, so that a gang that takes another's place warms up in seconds.
"""

import time
from collections.abc import Callable, Iterable

import numpy as np
import torch

from numina.config import MethodConfig
from numina.guidance import GuidancePlan
from numina.private.torch import allow_graphs
from numina.prompts.tokens import TokenSpans
from numina.regions import Region
from pipelines.base import GenerationConfig, Text, VideoModel
from pipelines.parallel.shard import Shard
from pipelines.sampling import denoise

NOUN = TokenSpans(noun=(1,), phrase=(0, 1), first=(1,))  # of a prompt that nobody wrote


def compile_blocks(model: VideoModel, backend: str = "inductor") -> None:
    """Compiles the transformer's repeated blocks, at their next call; after an engine has put in its processors."""
    # Plain, guided by a mask, guided row by row: each with its own graph, and more with several sizes of a batch, or
    # with a text of more than 240 tokens (`numina.bias.SHORT`).
    allow_graphs(32)
    for block in model.blocks:
        block.compile(backend=backend)


@torch.inference_mode()
def warm_up(
    model: VideoModel,
    shard: Shard,
    generation: GenerationConfig,
    methods: Iterable[MethodConfig | None],
    batch: int = 1,
    progress: Callable[[str, float], None] = lambda name, seconds: None,
) -> dict[str, float]:
    """Runs once, on noise, each kind of pass that a job's methods need (None: plain generation); seconds by name.

    All ranks of a gang must call this together. `progress` hears of each pass when it is done.
    """
    once = generation.first(1)
    texts = [blank_text(model, generation)] * batch
    seeds = [0] * batch
    passes: dict[str, Callable[[], object]] = {
        "plain": lambda: denoise.finish(model, denoise.start(model, seeds, once), texts, once, shard=shard)
    }
    for method in {method for method in methods if method is not None}:
        passes |= _of_method(model, shard, once, method, texts, seeds)
    seconds: dict[str, float] = {}
    for name, run in passes.items():
        began = time.perf_counter()
        run()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds[name] = time.perf_counter() - began
        progress(name, seconds[name])
    return seconds


def blank_text(model: VideoModel, generation: GenerationConfig) -> Text:
    """Zeros of a prompt's shape."""
    blank = torch.zeros(1, model.text_tokens, model.text_width, dtype=model.transformer.dtype).to(model.device)
    return Text("", blank, blank if generation.guidance_scale > 1 else None, ())


def _of_method(
    model: VideoModel,
    shard: Shard,
    once: GenerationConfig,
    method: MethodConfig,
    texts: list[Text],
    seeds: list[int],
) -> dict[str, Callable[[], object]]:
    plans = [any_plan(model, once, method)] * len(texts)
    return {
        f"{method.preset} identify": lambda: denoise.identify(
            model, shard, texts, [(NOUN,)] * len(texts), seeds, once, method
        ),
        f"{method.preset} guide": lambda: denoise.guide(model, shard, texts, plans, seeds, once),
    }


def any_plan(model: VideoModel, generation: GenerationConfig, method: MethodConfig) -> GuidancePlan:
    """One row of a kind in every frame: all that a plan of this method can ask of the compiler."""
    grid = model.grid(generation)
    regions = np.zeros((1, grid.frames, grid.height * grid.width), dtype=np.int8)
    kinds = (Region.REFERENCE, Region.ADD_COPY, Region.REMOVE)[: regions.shape[2]]
    regions[..., : len(kinds)] = kinds
    shaped = regions.reshape(1, grid.frames, grid.height, grid.width)
    return GuidancePlan(regions=shaped, tokens=(getattr(NOUN, method.guide.tokens),), config=method.guide)
