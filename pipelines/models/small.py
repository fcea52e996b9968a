"""A job's clip in small, for a preflight: the driver asks for it, and loads no model library for that."""

from collections.abc import Callable
from dataclasses import replace

from numina.errors import ConfigError
from pipelines.base import GenerationConfig, ModelFacts

SIDE = 16  # tokens down and across, where a clip has as many
STEPS = 4


def small(
    generation: GenerationConfig, facts: ModelFacts, fits: Callable[[GenerationConfig], object]
) -> GenerationConfig:
    """A job's generation with fewer steps and, where `fits` refuses it with no ConfigError, few pixels and frames."""
    few = generation.first(STEPS)
    _, down, across = facts.token_strides
    tiny = replace(
        few,
        height=min(few.height, SIDE * down),
        width=min(few.width, SIDE * across),
        num_frames=min(few.num_frames, facts.frame_step + 1),
    )
    try:
        fits(tiny)
    except ConfigError:
        return few
    return tiny
