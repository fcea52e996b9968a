"""Frames as detectors and CLIP want them: transformers' own image processors' rules, for whole batches on the device.

Legend: b frames, H W their pixels, h w those that a model sees. Pixel values are 0…255 until they are normalised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipelines.judges.passes import Frames

Image = Float[Tensor, "b 3 h w"]

TIE = 1e-4  # [levels] by which halves are rounded up, as PIL's whole numbers are, on whatever device sums were made
PIL_FILTERS = {2: "bilinear", 3: "bicubic"}  # of those that PIL numbers, what these models are published with


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Scale, then mean and standard deviation per channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> "Normalisation":
        return cls(scale=processor.rescale_factor, mean=tuple(processor.image_mean), std=tuple(processor.image_std))

    def __call__(self, images: Image, dtype: torch.dtype) -> Image:
        """In float32, then rounded to `dtype`."""
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((images * self.scale - mean) / std).to(dtype)


def detector_size(size: Sequence[int], shortest: int, longest: int) -> tuple[int, int]:
    """Height and width with the shorter side at `shortest`, unless the longer one would be above `longest`."""
    from transformers.image_transforms import get_size_with_aspect_ratio

    height, width = get_size_with_aspect_ratio(size, shortest, longest)
    return height, width


def clip_size(size: Sequence[int], shortest: int) -> tuple[int, int]:
    """Height and width with the shorter side at `shortest`, the longer one cut down to whole pixels."""
    scaled = int(shortest * max(size) / min(size))
    return (shortest, scaled) if size[0] <= size[1] else (scaled, shortest)


def resize(frames: Frames, size: tuple[int, int], mode: str) -> Image:
    """As PIL resizes: across, then down, smoothed where it shrinks, and each time rounded to the levels of a byte."""
    images = frames.float()
    for between in ((frames.shape[-2], size[1]), size):
        if tuple(images.shape[-2:]) != between:
            images = (
                functional.interpolate(images, between, mode=mode, antialias=True).add(0.5 + TIE).floor().clamp(0, 255)
            )
    return images


def centre_crop(images: Image, height: int, width: int) -> Image:
    """The middle; of an odd rest, the one pixel more is cut at the bottom and right. Images must be large enough."""
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def resize_padded(frames: Frames, size: tuple[int, int]) -> Image:
    """As OWLv2 is published: filled to a square with black below and right, smoothed where it shrinks, interpolated."""
    height, width = frames.shape[-2:]
    side = max(height, width)
    square = functional.pad(frames.float(), (0, side - width, 0, side - height))
    return functional.interpolate(_smooth(square, max(0.0, (side / size[0] - 1) / 2)), size, mode="bilinear")


def _smooth(images: Image, sigma: float) -> Image:
    """A Gaussian of `sigma` pixels, cut at four sigma; images go on mirrored at their borders."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(images, (radius,) * 4, mode="reflect")
    return functional.conv2d(functional.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
