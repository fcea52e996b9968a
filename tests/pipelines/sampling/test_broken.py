"""What no real clip can be is told from what a dark or dull one is; in a batch only the broken clip is blamed."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from numina.errors import ClipError
from numina.layout import Capture
from numina.stage import Stage
from pipelines.base import Decoded
from pipelines.models.registry import load_model
from pipelines.models.wan import WanModel
from pipelines.sampling import denoise
from pipelines.sampling.broken import broken_capture, broken_latents, broken_pixels
from pipelines.sampling.clip import Clip, Identified
from pipelines.sampling.generate import ClipGenerator, generate
from tests.pipelines.conftest import GENERATION, PROMPTS
from tests.pipelines.sampling.test_generate import METHOD, REQUESTS
from tests.twins import TWINS, build_twin

GREY = np.full((5, 16, 16, 3), 128, np.uint8)


def dark(*lit: tuple[int, ...], level: int = 40) -> np.ndarray:
    """Black, but for some pixels (frame, row, column)."""
    video = np.zeros_like(GREY)
    for pixel in lit:
        video[pixel] = level
    return video


def fading() -> np.ndarray:
    return np.broadcast_to(np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None], GREY.shape)


FLAT = {
    "black": dark(),
    "white": np.full_like(GREY, 255),
    "grey": GREY,
    "one colour": np.broadcast_to(np.array([200, 30, 90], np.uint8), GREY.shape),
    "between two levels": GREY + (np.indices(GREY.shape[:3])[1:].sum(0) % 2).astype(np.uint8)[..., None],
    "another colour in every frame": fading(),
}
REAL = {
    "a star in a black sky": dark((2, 7, 7)),
    "black until the last frame": dark((4, 0, 0)),
    "a night's noise": np.random.default_rng(0).integers(0, 4, GREY.shape).astype(np.uint8),
    "a gradient": (np.indices(GREY.shape[:3])[2] + 100).astype(np.uint8)[..., None].repeat(3, -1),
    "blue differs alone": GREY
    + (np.indices(GREY.shape)[3] // 2 * (np.indices(GREY.shape)[2] > 7) * 9).astype(np.uint8),
}


@pytest.mark.parametrize("name", FLAT)
def test_one_flat_colour_in_every_frame_is_no_clip(name: str) -> None:
    """Whatever the colour, and whether frames share it; the reason says which."""
    error = broken_pixels(FLAT[name], finite=True)
    assert error is not None
    assert error.stage is Stage.DECODE
    assert "one flat colour in each of its frames" in str(error)
    assert ("5 colours" if name.startswith("another") else f"RGB {tuple(FLAT[name][0, 0, 0].tolist())}") in str(error)


@pytest.mark.parametrize("name", REAL)
def test_a_dark_or_dull_clip_is_a_clip(name: str) -> None:
    """One pixel in one frame is enough to differ."""
    assert broken_pixels(REAL[name], finite=True) is None
    assert "aren't finite" in str(broken_pixels(REAL[name], finite=False))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_latents_are_numbers_of_a_latents_size(value: float) -> None:
    """One bad value of one clip, in any precision; its batch mates are fine."""
    for dtype in (torch.float32, torch.bfloat16):
        latents = (torch.randn(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)
        latents[1, 3, 1, 7, 7] = value
        first, error, last = broken_latents(latents, Stage.GUIDE)
        assert first is None
        assert last is None
        assert error is not None
        assert error.stage is Stage.GUIDE
        assert ("1e+30" if value == 1e30 else "aren't finite") in str(error)


def test_attention_maps_are_numbers() -> None:
    """Of each map, and of the scores' deviation."""
    images, ones = np.ones((2, 4, 4, 3), np.float32), np.ones((1, 2, 4, 4), np.float32)
    whole = Capture(responses=ones, components=images, coordinates=images.astype(np.float16), peaks=ones[:, 0, 0, 0])
    assert broken_capture(whole) is None
    assert broken_capture(replace(whole, components=None)) is None
    kinds = {"responses": "cross-attention", "peaks": "cross-attention"}
    kinds |= dict.fromkeys(("components", "coordinates"), "self-attention")
    for name, said in kinds.items():
        for value in (np.nan, np.inf):
            spoilt = getattr(whole, name).copy()
            spoilt.flat[-1] = value
            error = broken_capture(replace(whole, **{name: spoilt}))
            assert error is not None
            assert error.stage is Stage.IDENTIFY
            assert said in str(error)
    assert "scores" in str(broken_capture(replace(whole, deviation=float("nan"))))


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ClipError("black", Stage.DECODE)))
    assert (str(error), error.stage) == ("black", Stage.DECODE)


# --- a rank's part ---


@pytest.fixture
def worker(tiny_model: WanModel) -> ClipGenerator:
    return ClipGenerator(tiny_model, GENERATION)


def spoil(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """One clip of every batch has a NaN in its noise."""
    noise = WanModel.noise

    def spoilt(self: Any, seeds: Any, generation: Any) -> Tensor:
        drawn = noise(self, seeds, generation)
        drawn[place, 0, 0, 0, 0] = torch.nan
        return drawn

    monkeypatch.setattr(WanModel, "noise", spoilt)


def kinds(answers: Any) -> list[type]:
    return [type(answer) for answer in answers]


def test_only_the_broken_clip_of_a_batch_is_blamed(worker: ClipGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain, identified, continued: a NaN in one clip's noise costs that clip alone, and the others are what they are
    without it. The broken one is kept until it is dropped, as on the ranks that haven't looked."""
    [_, *expected] = worker.plain(REQUESTS) or []
    spoil(monkeypatch, 0)
    broken, *others = worker.plain(REQUESTS) or []
    assert isinstance(broken, ClipError)
    assert broken.stage is Stage.DENOISE
    for one, other in zip(others, expected, strict=True):
        assert isinstance(one, Clip)
        assert np.array_equal(one.video, other.video)
    answers = worker.identify(REQUESTS, METHOD) or []
    assert kinds(answers) == [ClipError, Identified, Identified]
    assert answers[0].stage is Stage.IDENTIFY
    worker.drop(["0"])
    assert kinds(worker.finish(["1", "2"])) == [Clip, Clip]


def test_maps_that_are_no_numbers_are_a_reason(worker: ClipGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the latents are fine and what was read isn't."""
    identify = denoise.identify

    def spoilt(*arguments: Any) -> Any:
        state, captures = identify(*arguments)
        captures[1].responses[0, 0, 0, 0] = np.inf
        return state, captures

    monkeypatch.setattr(denoise, "identify", spoilt)
    answers = worker.identify(REQUESTS, METHOD) or []
    assert kinds(answers) == [Identified, ClipError, Identified]
    assert "cross-attention" in str(answers[1])


@pytest.mark.parametrize(
    ("decoded", "reason"),
    [
        (lambda pixels: Decoded(torch.zeros_like(pixels), torch.ones(len(pixels), dtype=torch.bool)), "flat colour"),
        (lambda pixels: Decoded(pixels, torch.zeros(len(pixels), dtype=torch.bool)), "aren't finite"),
    ],
    ids=["black", "NaN"],
)
def test_a_decoder_that_breaks_a_clip_is_noticed(
    tiny_model: WanModel, monkeypatch: pytest.MonkeyPatch, decoded: Callable[[Tensor], Decoded], reason: str
) -> None:
    """The latents are fine, the pixels aren't: no clip, and `generate` raises."""
    whole = tiny_model.decode(tiny_model.noise([1], GENERATION))
    assert whole is not None
    monkeypatch.setattr(WanModel, "decode", lambda self, latents: decoded(whole.pixels))
    [answer] = ClipGenerator(tiny_model, GENERATION).plain(REQUESTS[:1]) or []
    assert isinstance(answer, ClipError)
    with pytest.raises(ClipError, match=reason):
        generate(tiny_model, PROMPTS[0], generation=GENERATION, method=None)


@pytest.mark.parametrize("twin", TWINS)
def test_every_family_makes_clips_that_are_none_of_this(twin: str, tmp_path: Path) -> None:
    """Random weights make clips; a guidance that no model can stand makes none."""
    model = load_model(str(build_twin(twin, tmp_path)), device="cpu")
    generation = replace(GENERATION, steps=3)
    for method in (None, METHOD):
        assert generate(model, PROMPTS[0], generation=generation, method=method).mp4
        with pytest.raises(ClipError):
            generate(model, PROMPTS[0], generation=replace(generation, guidance_scale=1e30), method=method)
