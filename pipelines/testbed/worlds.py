"""The worlds of the embedded models by name, and what training and measuring need of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.testbed import scenes, world
from pipelines.testbed.world import Split


class World(Protocol):
    """A module that draws prompts and the clips that they describe; `world` says what each name means."""

    FRAMES: int
    SIZE: int
    NOUNS: tuple[str, ...]
    MAX_COUNT: int
    MAX_OBJECTS: int
    TEXT_TOKENS: int
    TRANSFORMER: tuple[int, int]
    BATCH: int
    REFRESH_EVERY: int
    CROWDED: tuple[int, ...]

    def words(self) -> list[str]: ...

    def make_prompts(
        self,
        number: int,
        seed: int | np.random.Generator,
        *,
        nouns: Sequence[int] = ...,
        counts: Sequence[int] = ...,
        split: Split = ...,
    ) -> Sequence[Any]: ...

    def heldout_prompts(self, number: int, seed: int) -> Sequence[Any]: ...

    def miscount(self, prompts: Sequence[Any], share: float, rng: np.random.Generator) -> Sequence[Any]: ...

    def draw_scenes(self, prompts: Sequence[Any], rng: np.random.Generator) -> Any: ...

    def render(
        self, scenes: Any, *, frames: Sequence[int] | None = None, device: torch.device | str = ...
    ) -> Tensor: ...

    def owners(self, drawn: Any, *, device: torch.device | str = ...) -> Tensor | None: ...

    def clips(self, number: int, seed: int, *, split: Split = ...) -> tuple[Sequence[Any], NDArray[np.uint8]]: ...


SHAPES: World = world
SCENES: World = scenes
WORLDS: dict[str, World] = {"shapes": SHAPES, "scenes": SCENES}
MODELS: dict[str, World] = {"testbed": SHAPES, "scenes": SCENES}
"""The world of each embedded model, by `model.path`."""
