"""Frames prepared on the device are those of transformers' own image processors, which go frame by frame over PIL."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

from pipelines.judges import Judge
from pipelines.judges.images import PIL_FILTERS, resize
from tests.pipelines.judges.conftest import a_video

LEVEL = 1 / 255 / 0.225  # of a byte, after normalisation
SIZES = [(48, 80), (80, 48), (33, 57), (64, 64), (180, 100), (61, 200)]  # smaller and larger than what models see


def prepared(judge: Any, video: np.ndarray) -> np.ndarray:
    """As `judge` hands frames to its model."""
    return judge.prepare(torch.from_numpy(video).permute(0, 3, 1, 2)).numpy()


def noise(size: tuple[int, int]) -> np.ndarray:
    """The hardest to resize: pixels with nothing in common."""
    return np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)


def reference(processor: Any, video: np.ndarray) -> np.ndarray:
    return np.asarray(processor(images=list(video), return_tensors="np")["pixel_values"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("grounding-dino", GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 112})),
        ("clip", CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})),
    ],
)
def test_resized_as_pil_does(kind: str, processor: Any, size: tuple[int, int], load: Callable[..., Judge]) -> None:
    """To a byte's level: PIL works in integers, so a value between two levels may fall to either."""
    video = noise(size)
    ours, theirs = prepared(load(kind), video), reference(processor, video)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1.01 * LEVEL
    assert (np.abs(ours - theirs) > 0.01 * LEVEL).mean() < 0.01


@pytest.mark.parametrize("mode", PIL_FILTERS.values())
@pytest.mark.parametrize("size", [(30, 50), (32, 53), (64, 106), (48, 80)])
def test_a_half_is_rounded_up_however_sums_are_made(mode: str, size: tuple[int, int]) -> None:
    """Blotches make many values halfway between two levels; devices add in other orders, here in another precision."""
    frames = torch.from_numpy(a_video(2, (96, 160))).permute(0, 3, 1, 2)
    exact = frames.double()
    for between in ((96, size[1]), size):
        if tuple(exact.shape[-2:]) != between:
            exact = torch.nn.functional.interpolate(exact, between, mode=mode, antialias=True)
            exact = exact.add(0.5 + 1e-6).floor().clamp(0, 255)
    assert (resize(frames, size, mode) == exact).float().mean() > 0.9999


@pytest.mark.parametrize("size", SIZES)
def test_owlv2_s_square_is_its_own(size: tuple[int, int], load: Callable[..., Judge]) -> None:
    """Filled, smoothed and interpolated as its processor does; it mirrors beyond the border, where we go on level."""
    processor = Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    video = a_video(2, (size[0] // 8 * 8, size[1] // 8 * 8))
    ours, theirs = prepared(load("owlv2"), video), reference(processor, video)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], atol=0.02 * LEVEL)
    assert np.abs(ours - theirs).mean() < LEVEL


def test_half_precision_is_rounded_once(load: Callable[..., Judge]) -> None:
    """Arithmetic is float32 until the model's dtype: pixels are those of float32, rounded."""
    video = a_video(1)
    half, full = (
        load("grounding-dino", dtype=dtype).prepare(torch.from_numpy(video).permute(0, 3, 1, 2))
        for dtype in ("float16", "float32")
    )
    assert torch.equal(half, full.half())
