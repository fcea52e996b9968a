"""The tiny checkpoint, loaded once, and what the tests ask of it."""

from pathlib import Path

import pytest

from numina.prompts import Target
from pipelines.base import GenerationConfig
from pipelines.wan import WanModel

PROMPT = "three red circles and two blue squares moving on a grey background"
TARGETS = (Target("circles", 3), Target("squares", 2))
GENERATION = GenerationConfig(height=64, width=64, num_frames=17, fps=8, steps=6, guidance_scale=4.0)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> WanModel:
    return WanModel.load(tiny_checkpoint)
