"""Step caches: steps whose prediction is made from earlier steps' instead of computed by the whole transformer.

    with cached(transformer, "taylorseer", steps_of_the_phase, steps_of_the_schedule) as passes:
        ...                               # the cache lives for one phase of one batch, nothing of it stays behind

taylorseer, magcache and first_block are diffusers' own hooks; cfg_cache is ours and a few lines. All but first_block
decide by a step's place alone, so that all ranks decide alike and a clip's batch mates don't matter. What is skipped:
taylorseer a step's blocks, in both passes; magcache the same; first_block all blocks but the first; cfg_cache a step's
unconditional pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from numina.schedule import intensity

if TYPE_CHECKING:
    from torch import Tensor

    from numina.config import IdentifyConfig, MethodConfig


TAYLOR_WARMUP = 3  # steps computed first, diffusers' own default
TAYLOR_INTERVAL = 2  # one in so many steps is computed; diffusers: 5
FIRST_BLOCK_THRESHOLD = 0.1  # relative change of the first block's residual above which the others are computed
CFG_INTERVAL = 2  # one in so many unconditional passes is run; FasterCache (arXiv 2410.19355): 5, in late steps

MAG_THRESHOLD = 0.06  # accumulated error up to which a step is skipped (published)
MAG_MOST_SKIPS = 2  # in a row, K (published: 2 to 4)
MAG_RETAINED = 0.1  # share of the schedule that is always computed (published 0.2, which is half of identification)
# Magnitude of the blocks' residual over the share of the schedule: the course of MagCache's published ratios for
# Wan2.1-T2V-1.3B (arXiv 2506.09045); 14B's course is within 0.02 of it where identification runs.
MAGNITUDES = ((0.0, 1.0), (0.1, 1.0), (0.2, 0.98), (0.4, 0.93), (0.6, 0.86), (0.8, 0.73), (0.9, 0.58), (1.0, 0.3))


class Passes:
    """How the two passes of a step are run; here: both, in full."""

    def conditional(self) -> AbstractContextManager[Any]:
        """Surrounds the conditional pass."""
        return nullcontext()

    def unconditional(self, run: Callable[[], Tensor], conditional: Tensor | None) -> Tensor:
        """The unconditional prediction, given the conditional one (None: another rank has it)."""
        return run()


class HookedPasses(Passes):
    """Tells diffusers' hooks which of the two passes runs, since each has a state of its own."""

    def __init__(self, transformer: Any):
        self.transformer = transformer

    def conditional(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.transformer.cache_context("cond")
        return context

    def unconditional(self, run: Callable[[], Tensor], conditional: Tensor | None) -> Tensor:
        with self.transformer.cache_context("uncond"):
            return run()


class SharedPasses(Passes):
    """CFG-Cache: keeps the difference between the passes and adds it to the conditional prediction of later steps.

    FasterCache (arXiv 2410.19355 §3.3) without its weights per frequency, which it uses in late steps alone.
    """

    def __init__(self, computed: Sequence[bool]):
        self.computed = iter(computed)
        self.difference: Tensor | None = None

    def unconditional(self, run: Callable[[], Tensor], conditional: Tensor | None) -> Tensor:
        assert conditional is not None, "cfg_cache is refused where the branches are on different ranks"
        if not next(self.computed) and self.difference is not None:
            return conditional + self.difference
        away = run()
        self.difference = away - conditional
        return away


@contextmanager
def cached(transformer: Any, name: str, run: Sequence[int], steps: int) -> Iterator[Passes]:
    """A cache for the steps `run` of a schedule of `steps`; it begins empty, and nothing of it stays behind.

    The first of them is always computed: a phase never starts from another one's predictions.
    """
    if name == "none" or not run:
        yield Passes()
    elif name == "cfg_cache":
        yield SharedPasses(computed_steps(name, run, steps))
    else:
        from pipelines.private.diffusers import forget_cache  # seconds to import

        transformer.enable_cache(_hook_config(name, run, steps))
        try:
            yield HookedPasses(transformer)
        finally:
            forget_cache(transformer)  # hooks are in reference cycles: else their tensors wait for the gc
            transformer.disable_cache()


def _hook_config(name: str, run: Sequence[int], steps: int) -> Any:
    import torch
    from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig  # seconds to import

    if name == "taylorseer":
        # Lite: the last layer's output is extrapolated and the blocks do nothing. The full form would keep every
        # attention's output, 36 GB for 1.3B; and its default patterns match nothing of Wan's.
        return TaylorSeerCacheConfig(
            cache_interval=TAYLOR_INTERVAL,
            disable_cache_before_step=TAYLOR_WARMUP,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,
        )
    if name == "magcache":
        return MagCacheConfig(
            threshold=MAG_THRESHOLD,
            max_skip_steps=MAG_MOST_SKIPS,
            retention_ratio=_retained(run, steps) / len(run),
            num_inference_steps=len(run),
            mag_ratios=_magnitude_ratios(run, steps),
        )
    return FirstBlockCacheConfig(threshold=FIRST_BLOCK_THRESHOLD)


def _retained(run: Sequence[int], steps: int) -> int:
    """How many of the steps MagCache may not skip; the first can't be."""
    return max(1, sum(step < MAG_RETAINED * steps for step in run))


def _magnitude_ratios(run: Sequence[int], steps: int) -> list[float]:
    """Each step's residual over the step's before, in magnitude; 1 for the first."""
    magnitudes = np.interp([step / steps for step in run], *np.transpose(MAGNITUDES))
    return [1.0, *(float(after / before) for before, after in pairwise(magnitudes))]


def computed_steps(name: str, run: Sequence[int], steps: int) -> list[bool]:
    """For each step of `run` whether it is computed: for cfg_cache its unconditional pass, else all blocks of both.

    first_block decides as it goes; here it computes all, which is the most that it can cost.
    """
    if name == "taylorseer":
        after = range(-TAYLOR_WARMUP - 1, len(run) - TAYLOR_WARMUP - 1)
        return [place < -1 or place % TAYLOR_INTERVAL == 0 for place in after]
    if name == "magcache":
        return _magcache_steps(run, steps)
    if name == "cfg_cache":
        return [place % CFG_INTERVAL == 0 for place in range(len(run))]
    return [True] * len(run)


def _magcache_steps(run: Sequence[int], steps: int) -> list[bool]:
    """MagCache's decisions, in its own float32."""
    computed = []
    one, zero = np.float32(1), np.float32(0)
    ratio, error, skipped = one, zero, 0
    for place, own in enumerate(np.array(_magnitude_ratios(run, steps), np.float32)):
        skip = False
        if place >= _retained(run, steps):
            ratio, skipped = ratio * own, skipped + 1
            error = error + abs(one - ratio)
            skip = bool(error <= np.float32(MAG_THRESHOLD)) and skipped <= MAG_MOST_SKIPS
            if not skip:
                ratio, error, skipped = one, zero, 0
        computed.append(not skip)
    return computed


def forwards(name: str, run: Sequence[int], steps: int, *, passes: int = 2) -> int:
    """How many full forwards of the transformer the steps cost; what remains of a skipped one is under 1 % of it."""
    computed = sum(computed_steps(name, run, steps))
    if name == "cfg_cache":
        return len(run) + computed * (passes - 1)
    return passes * computed


def identify_forwards(config: IdentifyConfig, times: Sequence[float], steps: int, *, passes: int = 2) -> int:
    """How many full forwards identification costs: the steps before t* under its cache, and t* itself in full."""
    before = [step for step in config.schedule(times) if step < config.capture_step(times)]
    return forwards(config.cache, before, steps, passes=passes) + passes


def clip_forwards(method: MethodConfig, times: Sequence[float], cache: str, *, passes: int = 2) -> tuple[int, int]:
    """How many full forwards a clip costs whose counts are read as right, and one that is guided.

    `times` are its steps', `cache` is generation's, and `passes` are a rank's in a step.
    """
    steps = len(times)
    kept, captured = method.identify.schedule(times), method.identify.capture_step(times)
    identify = identify_forwards(method.identify, times, steps, passes=passes)
    rest = kept[kept.index(captured) + 1 :]
    first = method.guide.first_step(times) if method.guide.start else 0
    biased = sum(intensity(time, method.guide) > 0 for time in times)  # a cache begins anew after it
    parts = (range(first, biased), range(biased, steps))
    guide = sum(forwards(cache, part, steps, passes=passes) for part in parts)
    if method.guide.unconditional == "plain" and passes == 2:
        guide -= captured + 1 - first
    return identify + forwards(cache, rest, steps, passes=passes), identify + guide


def cache_label(identify: str | None, generation: str) -> str:
    """What a row says of its caches: `none`, or each phase that had one; `identify` is None for plain clips.

    A clip's own steps went through identification's cache only if its counts were right (`guided` is false): else the
    cache had a part in its layout alone.
    """
    phases = {"identify": identify or "none", "generation": generation}
    return ",".join(f"{phase}={name}" for phase, name in phases.items() if name != "none") or "none"
