"""Tiny judges, built once, and clips to judge."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from numina.prompts.targets import Target
from pipelines.judges import Case, Judge, JudgeConfig, load_judge
from tests.pipelines.judges import tiny

BUILD = {"grounding-dino": tiny.grounding_dino, "owlv2": tiny.owlv2, "clip": tiny.clip}
THRESHOLDS = {  # at which a tiny random model keeps some boxes and drops others
    "grounding-dino": {"box_threshold": 0.5, "text_threshold": 0.3},
    "owlv2": {"box_threshold": 0.2},
    "clip": {},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny judge, by its kind."""
    return cache(lambda kind: BUILD[kind](tmp_path_factory.mktemp("judge") / kind))


@pytest.fixture(scope="session")
def load(folder: Callable[[str], Path]) -> Callable[..., Judge]:
    """A tiny judge by its kind, with changes of its config."""

    def build(kind: str, **changes: Any) -> Any:
        settings = THRESHOLDS[kind] | {"batch": 3} | changes
        return load_judge(JudgeConfig(kind=kind, name=kind, path=str(folder(kind)), **settings))

    return build


def a_video(frames: int, size: tuple[int, int] = (48, 80), seed: int = 0) -> np.ndarray:
    """Blotches of eight pixels, other ones in each frame: what random weights tell apart."""
    blotches = np.random.default_rng(seed).integers(0, 256, (frames, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return blotches.repeat(8, axis=1).repeat(8, axis=2)


CASES = (
    Case(video=a_video(5), prompt="two cats and a teddy bear", targets=(Target("cats", 2), Target("teddy bear", 1))),
    Case(video=a_video(4, seed=1), prompt="three dogs", targets=(Target("dogs", 3),)),
    Case(video=a_video(2, (64, 48), seed=2), prompt="a bird", targets=(Target("bird", 1),)),
)
