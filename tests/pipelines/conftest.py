"""The tiny checkpoint, loaded once, and what tests ask of it: one clip, or a batch of three with little in common."""

from pathlib import Path
from typing import Any

import pytest
import torch

from numina.prompts.targets import Target
from numina.prompts.tokens import TokenSpans, locate_tokens
from pipelines.base import GenerationConfig, Text
from pipelines.models.wan import WanModel

PROMPT = "three red circles and two blue squares moving on a grey background"
TARGETS = (Target("circles", 3), Target("squares", 2))
GENERATION = GenerationConfig(height=64, width=64, num_frames=17, fps=8, steps=6, guidance_scale=4.0)

PROMPTS = (
    PROMPT,
    "one green cross drifting on a white background",
    "four yellow triangles and three cyan circles floating over a black background",
)
BATCH_TARGETS = (TARGETS, (Target("cross", 1),), (Target("triangles", 4), Target("circles", 3)))
NEGATIVES = ("", "blurred", "")
SEEDS = (1, 7, 2**40)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> WanModel:
    return WanModel.load(tiny_checkpoint)


def of_pipeline(model: Any, clip: GenerationConfig) -> torch.Tensor:
    """The latents of PROMPT by diffusers' own pipeline, from the model's noise of seed 1."""
    turned = model.facts.joint  # it has frames before channels
    noise = model.noise([1], clip)
    found: torch.Tensor = model.pipeline(
        PROMPT,
        negative_prompt="",
        height=clip.height,
        width=clip.width,
        num_frames=clip.num_frames,
        num_inference_steps=clip.steps,
        guidance_scale=clip.guidance_scale,
        latents=noise.transpose(1, 2) if turned else noise,
        max_sequence_length=model.text_tokens,
        output_type="latent",
    ).frames
    return found.transpose(1, 2) if turned else found


@pytest.fixture(scope="session")
def texts(tiny_model: WanModel) -> list[Text]:
    """PROMPTS, encoded together."""
    return tiny_model.encode(PROMPTS, NEGATIVES, GENERATION)


@pytest.fixture(scope="session")
def spans(texts: list[Text]) -> list[tuple[TokenSpans, ...]]:
    """Where the BATCH_TARGETS stand in `texts`."""
    return [locate_tokens(text.prompt, own, text.offsets) for text, own in zip(texts, BATCH_TARGETS, strict=True)]
