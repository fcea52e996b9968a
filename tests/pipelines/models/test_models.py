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
from tests.pipelines.video.test_decode import psnr
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
def test_clips_are_decoded_in_the_dtype_that_is_asked_for(twin: Callable[[str], Path], name: str) -> None:
    """Half precision is near float32 (random layers of few channels: 34 to 52 dB); with auto, a family has its own."""
    exact, half, own = (
        load_model(str(twin(name)), dtype=dtype, vae_dtype=vae)  # type: ignore[arg-type]
        for dtype, vae in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "auto"))
    )
    beside_half = "bfloat16" if name == "cogvideox-5b" else "float32"
    assert [model.vae_dtype for model in (exact, half, own)] == ["float32", "bfloat16", beside_half]
    latents = exact.noise([1, 2], clip_of(name))
    one, other = (model.decode(latents) for model in (exact, half))
    assert one is not None
    assert other is not None
    assert 30 < psnr(one.pixels, other.pixels) < 70


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
