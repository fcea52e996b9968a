"""A Wan VAE's layers as they run fastest: diffusers' sums, without what it copies, casts and fills between them.

Names: B clips, C channels, f frames at once, H W rows and columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as nnf
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanDecoder3d,
    WanResidualBlock,
    WanUpsample,
)
from torch import Tensor

from pipelines.private.diffusers import padding_of

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions
ALIGNED = 8  # output channels whose multiples tensor cores take as they are


@contextmanager
def fast_layers(decoder: Any, on_gpu: bool | None = None) -> Iterator[None]:
    """Within it a decoder's layers run so. By default `on_gpu` is where its weights are.

    Everywhere causal convolutions leave padding in height and width to the convolution itself (diffusers' copy their
    input into a padded one first, 14 % of what Wan2.2's decoder holds at its most: tests/benchmarks/decode_held.py),
    and upsampling, which only repeats values, isn't done in float32: both change no bit. On a GPU weights and values
    are kept with channels last, as tensor cores want them; a convolution's few output channels are filled up to a
    multiple of 8; a norm and the activation after it are one kernel. That changes how sums are rounded.
    """
    if on_gpu is None:
        on_gpu = next(decoder.parameters()).is_cuda
    changed: list[tuple[Any, Callable[..., Tensor]]] = []
    for layer in decoder.modules():
        if type(layer) is WanCausalConv3d:
            changed.append((layer, _aligned_convolution if on_gpu else _convolution))
        elif type(layer) is WanUpsample:
            changed.append((layer, _upsampled))
        elif on_gpu and type(layer) in (WanResidualBlock, WanDecoder3d) and type(layer.nonlinearity) is torch.nn.SiLU:
            norms = [layer.norm1, layer.norm2] if type(layer) is WanResidualBlock else [layer.norm_out]
            changed += [*((norm, _normed_and_activated) for norm in norms), (layer.nonlinearity, _unchanged)]
    if on_gpu:
        for weight in decoder.parameters():
            if order := CHANNELS_LAST.get(weight.dim()):
                weight.data = weight.data.contiguous(memory_format=order)
    for layer, forward in changed:
        layer.forward = MethodType(forward, layer)
    try:
        yield
    finally:
        for layer, _ in changed:
            del layer.forward


def _convolution(layer: Any, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """`WanCausalConv3d.forward`: `cache_x` are frames before x, zeros stand for those before the first."""
    return _convolve(layer, layer.weight, layer.bias, x, cache_x)


def _aligned_convolution(layer: Any, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """The same with channels last. Pixels have 3 channels, for which cuDNN has no kernel on tensor cores."""
    x = x.contiguous(memory_format=torch.channels_last_3d)
    if not (missing := -layer.out_channels % ALIGNED):
        return _convolution(layer, x, cache_x)
    weight = nnf.pad(layer.weight, (0, 0, 0, 0, 0, 0, 0, 0, 0, missing))
    weight = weight.contiguous(memory_format=torch.channels_last_3d)
    return _convolve(layer, weight, nnf.pad(layer.bias, (0, missing)), x, cache_x)[:, : layer.out_channels]


def _convolve(layer: Any, weight: Tensor, bias: Tensor, x: Tensor, cache_x: Tensor | None) -> Tensor:
    left, _, top, _, before, _ = padding_of(layer)
    missing = before if cache_x is None else max(0, before - cache_x.shape[2])

    def convolved(frames: Tensor) -> Tensor:
        return nnf.conv3d(frames, weight, bias, layer.stride, (0, top, left))

    if not before:
        return convolved(x)
    head = x[:, :, :before]  # the frames that reach back; a copy of x as a whole would be half as much again
    if cache_x is not None:
        head = torch.cat([cache_x.to(x.device), head], dim=2)
    first = convolved(nnf.pad(head, (0, 0, 0, 0, missing, 0)) if missing else head)
    del head
    return first if x.shape[2] <= before else torch.cat([first, convolved(x)], dim=2)


def _upsampled(layer: Any, x: Tensor) -> Tensor:
    """`WanUpsample.forward` of [B·f, C, H, W], in x's own dtype."""
    if x.is_cuda:
        x = x.contiguous(memory_format=torch.channels_last)
    return nnf.interpolate(x, scale_factor=layer.scale_factor, mode=layer.mode)


def _normed_and_activated(norm: Any, x: Tensor) -> Tensor:
    """`WanRMS_norm.forward` of [B, C, f, H, W] and SiLU."""
    return _norm_silu(x, norm.gamma, norm.scale)


@torch.compile(dynamic=True)
def _norm_silu(x: Tensor, gamma: Tensor, scale: float) -> Tensor:
    normalised = nnf.normalize(x.float(), dim=1).to(x.dtype)
    return nnf.silu(normalised * scale * gamma)


def _unchanged(layer: Any, x: Tensor) -> Tensor:
    """In the place of an activation that its norm has done."""
    return x
