"""Every model's twin in one process: plain clips are diffusers' own, corrected ones come out of the same call."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.job.config import load_job
from numina.prompts.targets import Target
from pipelines.base import GenerationConfig
from pipelines.models.registry import load_model
from pipelines.sampling import denoise
from pipelines.sampling.generate import generate
from pipelines.video.mp4 import decode_mp4
from tests.pipelines.conftest import GENERATION, PROMPT, of_pipeline
from tests.twins import TWINS


def clip_of(name: str) -> GenerationConfig:
    """5 × 4 × 4 tokens."""
    side = 128 if name == "wan2.2-5b" else 64
    return replace(GENERATION, height=side, width=side)


def plain(model: Any, clip: GenerationConfig) -> torch.Tensor:
    texts = model.encode([PROMPT], [""], clip)
    return denoise.finish(model, denoise.start(model, [1], clip), texts, clip)


@pytest.mark.parametrize("name", TWINS)
def test_denoising_is_the_pipelines_own(twin: Callable[[str], Path], name: str) -> None:
    """Plain generation is bit-equal to diffusers' pipeline from the same noise, wherever both multiply matrices of the
    same sizes: CogVideoX's puts two branches into one batch, and Wan2.2's embeds one timestep for every token."""
    model: Any = load_model(str(twin(name)))
    clip = clip_of(name)
    if name == "cogvideox-5b":
        torch.testing.assert_close(plain(model, clip), of_pipeline(model, clip), atol=1e-5, rtol=0)
        clip = replace(clip, guidance_scale=1.0)
    elif name == "wan2.2-5b":
        assert model.pipeline.config.expand_timesteps
        torch.testing.assert_close(plain(model, clip), of_pipeline(model, clip), atol=1e-5, rtol=0)
        model.pipeline.register_to_config(expand_timesteps=False)
    assert torch.equal(plain(model, clip), of_pipeline(model, clip))


@pytest.mark.parametrize("name", TWINS)
def test_one_call_corrects_a_clip(twin: Callable[[str], Path], name: str) -> None:
    """Identified, laid out, guided, decoded, encoded; the same clip each time, and another one than without NUMINA."""
    model, clip = load_model(str(twin(name))), replace(clip_of(name), crf=0)
    method = load_job("testbed", ["method.preset=paper", "method.guide.add=10"]).method
    asked = [Target("circles", 3), Target("squares", 2)]
    first, again = (generate(model, PROMPT, targets=asked, seed=1, generation=clip, method=method) for _ in range(2))
    assert first.correction is not None
    assert first.correction.plan is not None, "random weights don't know these counts"
    assert first.mp4 == again.mp4
    assert decode_mp4(first.mp4).shape == (clip.num_frames, clip.height, clip.width, 3)
    without = generate(model, PROMPT, seed=1, generation=clip, method=None)
    assert np.abs(first.video.astype(int) - without.video).mean() > 0
