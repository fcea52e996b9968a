"""GroundingDINO's own layers: transformers' sums in float32, and places that half precision doesn't blur."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GroundingDinoForObjectDetection

from pipelines.judges import Judge
from pipelines.judges.dino_layers import CaptionAttention, DeformableAttention, attend, proposals
from pipelines.private.transformers import grounding_dino_layers
from tests.pipelines.judges.conftest import a_video

SIZES = [(7, 11), (4, 6), (1, 2)]


@pytest.fixture(scope="module")
def plain(load: Callable[..., Judge]) -> Any:
    """The tiny judge's model as transformers loads it."""
    judge: Any = load("grounding-dino")
    return GroundingDinoForObjectDetection.from_pretrained(judge.config.path).eval()


@pytest.mark.parametrize("at", [2, 4], ids=["points", "boxes"])
@torch.inference_mode()
def test_deformable_attention_is_transformers_own(plain: Any, at: int) -> None:
    """With its weights, around points and in boxes, near a map's edges and beyond them."""
    for _, _, layer in grounding_dino_layers(plain, "MultiscaleDeformableAttention"):
        own: Any = DeformableAttention(layer)
        generator = torch.Generator().manual_seed(at)
        sizes, channels = [(9 - i, 13 - 2 * i) for i in range(own.maps)], own.output.in_features
        tokens = sum(h * w for h, w in sizes)
        layer.sampling_offsets.weight.normal_(std=1.0, generator=generator)
        layer.attention_weights.weight.normal_(std=1.0, generator=generator)
        given: dict[str, Any] = {
            "hidden_states": torch.randn(2, 5, channels, generator=generator),
            "encoder_hidden_states": torch.randn(2, tokens, channels, generator=generator),
            "position_embeddings": torch.randn(2, 5, channels, generator=generator),
            "reference_points": torch.rand(2, 5, own.maps, at, generator=generator),
            "spatial_shapes_list": sizes,
        }
        theirs, _ = layer(spatial_shapes=torch.tensor(sizes), **given)
        torch.testing.assert_close(own(**given)[0], theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [0, 3])
@torch.inference_mode()
def test_caption_attention_is_transformers_own(plain: Any, masked: int) -> None:
    """Both ways, padding of captions left out or not."""
    for _, _, layer in grounding_dino_layers(plain, "BiMultiHeadAttention"):
        theirs: Any = layer
        generator = torch.Generator().manual_seed(masked)
        for part in (theirs.vision_proj, theirs.text_proj, theirs.values_vision_proj, theirs.out_vision_proj):
            part.bias.normal_(generator=generator)
        channels = theirs.vision_dim
        frames, caption = (
            torch.randn(2, 40, channels, generator=generator),
            torch.randn(2, 7, channels, generator=generator),
        )
        padding = torch.zeros(2, 7, dtype=torch.bool)
        padding[0, 7 - masked :] = True
        given = (frames, caption, None, padding if masked else None)
        for mine, other in zip(CaptionAttention(theirs)(*given), theirs(*given), strict=True):
            torch.testing.assert_close(mine[0], other[0], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_frame_is_read_as_alone(load: Callable[..., Judge]) -> None:
    """In half precision, too. transformers subtracts a pass's highest score from all: a quiet frame's are rounded."""
    judge: Any = load("grounding-dino", dtype="float16")
    for layer in judge.model.modules():
        if isinstance(layer, CaptionAttention):
            generator = torch.Generator().manual_seed(0)
            channels = layer.text.in_features
            frames, caption = (torch.randn(2, n, channels, generator=generator) for n in (40, 7))
            frames[1] *= 30
            together = layer(frames.half(), caption.half())
            alone = layer(frames[:1].half(), caption[:1].half())
            for both, one in zip(together, alone, strict=True):
                torch.testing.assert_close(both[0][:1], one[0], atol=2e-3, rtol=2e-3)
            exact = copy.deepcopy(layer).float()(frames[:1], caption[:1])
            for both, one in zip(together, exact, strict=True):
                torch.testing.assert_close(both[0][:1].float(), one[0], atol=5e-3, rtol=5e-3)


def ramp(width: int, dtype: torch.dtype) -> torch.Tensor:
    """[1, 2·width, 1, 1], two rows of a map whose values are its columns' numbers, in shares of the last one."""
    return torch.arange(width).div(width - 1).repeat(2)[None, :, None, None].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_places_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    """A place is read where it is. In half precision, one near the far end of a map could be a tenth of a token off."""
    width = 167
    places = torch.arange(width - 1) + 0.3  # in tokens, from the middle of the first one
    reference = torch.stack([(places + 0.5) / width, torch.full_like(places, 0.5)], dim=-1)[None, :, None]
    offsets = torch.zeros(1, width - 1, 1, 1, 1, 2, dtype=dtype)
    logits = torch.zeros(1, width - 1, 1, 1, 1, dtype=dtype)
    found = attend(ramp(width, dtype), offsets, logits, reference, [(2, width)]).flatten().float()
    apart = (found - places / (width - 1)).abs() * (width - 1)
    assert apart.max() < (width - 1) * torch.finfo(dtype).eps  # what one rounding of the value may make
    rounded = reference.to(dtype)
    blurred = attend(ramp(width, dtype), offsets, logits, rounded, [(2, width)]).flatten().float()
    assert (blurred - found).abs().max() * (width - 1) > 0.05


def test_beyond_a_map_there_is_nothing() -> None:
    """A place on its corner has a quarter of it, one outside nothing, however far away."""
    reference = torch.tensor([[0.5, 0.5], [0.0, 0.0], [-9.0, 0.5], [0.5, 1e9]]).view(1, 4, 1, 2)
    zeros = torch.zeros(1, 4, 1, 1, 1)
    found = attend(torch.ones(1, 15, 1, 1), zeros[..., None].expand(-1, -1, -1, -1, -1, 2), zeros, reference, [(3, 5)])
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 0.25, 0.0, 0.0]))


def test_proposals_are_transformers_own(plain: Any) -> None:
    """Boxes around tokens, those near the frame's edges left out."""
    sizes = [(60, 80), (30, 40), (15, 20)]
    states = torch.ones(1, sum(h * w for h, w in sizes), plain.config.d_model)
    _, theirs = plain.model.generate_encoder_output_proposals(states, torch.zeros(states.shape[:2]).bool(), sizes)
    boxes, inside = proposals(sizes, torch.device("cpu"))
    torch.testing.assert_close(boxes, theirs, atol=1e-5, rtol=1e-5)
    assert 0 < inside.sum() < inside.numel()
    assert (boxes.isfinite().all(-1, keepdim=True) == inside).all()


def test_boxes_of_half_precision(load: Callable[..., Judge]) -> None:
    """All places on the way to a box are float32. A box in ten is another one: random scores of proposals are close."""
    found, frames = [], torch.from_numpy(a_video(8, (96, 160))).permute(0, 3, 1, 2)
    for dtype in ("float16", "float32"):
        judge: Any = load("grounding-dino", dtype=dtype)
        with torch.inference_mode():
            logits, boxes = judge.forward(frames, [judge.read(["cats", "teddy bear"])] * len(frames))
        assert logits.amax(-1).isfinite().all()
        found.append(boxes)
    apart = (found[0] - found[1]).abs().amax(-1).flatten()  # shares of the frame
    assert apart.median() < 1.5e-3
    assert apart.quantile(0.85) < 3e-3
