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
from pipelines.video.kernels import add_bias, norm_silu

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions
ALIGNED = 8  # output channels whose multiples tensor cores take as they are
WIDE = 128  # output channels for which cuDNN's kernels are quickest in half precision: 96 take longer on an H200


@contextmanager
def fast_layers(decoder: Any, *, on_gpu: bool = False) -> Iterator[None]:
    """Within it a decoder's layers run so.

    Causal convolutions leave padding in height and width to the convolution itself (diffusers' copy their input into a
    padded one first, 14 % of what Wan2.2's decoder holds at its most: tests/benchmarks/decode_held.py), and upsampling,
    which only repeats values, isn't done in float32: both change no bit.

    With `on_gpu` weights and values are kept with channels last, as tensor cores want them; a convolution's few output
    channels are filled up to a multiple of 8; a residual block reads and writes its values as seldom as it can. Sums
    are then rounded otherwise, no worse. 0.64 of diffusers' time in float32, 0.45 in bfloat16
    (tests/benchmarks/decode_layers.py).
    """
    changed: list[tuple[Any, Callable[..., Tensor]]] = []
    for layer in decoder.modules():
        if type(layer) is WanCausalConv3d:
            changed.append((layer, _aligned_convolution if on_gpu else _convolution))
        elif type(layer) is WanUpsample:
            changed.append((layer, _repeated if on_gpu else _upsampled))
        elif on_gpu and type(layer) is WanResidualBlock and type(layer.nonlinearity) is torch.nn.SiLU:
            changed.append((layer, _residual_block))
        elif on_gpu and type(layer) is WanDecoder3d and type(layer.nonlinearity) is torch.nn.SiLU:
            changed += [(layer.norm_out, _normed_and_activated), (layer.nonlinearity, _unchanged)]
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
    x = _last(x)
    if layer.kernel_size == (1, 1, 1) and layer.stride == (1, 1, 1):  # cuDNN would give its channels first
        return nnf.linear(x.movedim(1, -1), layer.weight.flatten(1), layer.bias).movedim(-1, 1)
    if not (missing := -layer.out_channels % ALIGNED):
        return _convolution(layer, x, cache_x)
    bias = nnf.pad(layer.bias, (0, missing))
    return _convolve(layer, _filled(layer.weight, missing), bias, x, cache_x)[:, : layer.out_channels]


def _filled(weight: Tensor, missing: int) -> Tensor:
    """With so many more output channels, of zeros."""
    return _last(nnf.pad(weight, (0, 0, 0, 0, 0, 0, 0, 0, 0, missing)))


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
    return nnf.interpolate(x, scale_factor=layer.scale_factor, mode=layer.mode)


def _repeated(layer: Any, x: Tensor) -> Tensor:
    """The same with channels last, as one copy: PyTorch's kernel for this order takes several times as long."""
    N, C, H, W = x.shape
    times = tuple(int(scale) for scale in layer.scale_factor)
    rows = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(N, H, times[0], W, times[1], C)
    return rows.reshape(N, H * times[0], W * times[1], C).permute(0, 3, 1, 2)


def _residual_block(
    block: Any, x: Tensor, feat_cache: list[Any] | None = None, feat_idx: list[int] | None = None
) -> Tensor:
    """`WanResidualBlock.forward` of [B, C, f, H, W]."""
    x = _last(x)
    shortcut = _last(block.conv_shortcut(x))
    x = _normed_convolution(block.norm1, None, block.conv1, x, feat_cache, feat_idx)
    x = _normed_convolution(block.norm2, block.conv1.bias, block.conv2, x, feat_cache, feat_idx)
    return add_bias(x, block.conv2.bias, shortcut)


def _normed_convolution(
    norm: Any, bias: Tensor | None, layer: Any, x: Tensor, feat_cache: list[Any] | None, feat_idx: list[int] | None
) -> Tensor:
    """A causal convolution, without its bias, of x + `bias`, normed and activated.

    The norm is written behind the frames before, where the convolution reads both. In half precision, what it keeps
    for the next frames is a view of them: quicker, and there is room for it where float32 decodes, too.
    """
    left, _, top, _, before, _ = padding_of(layer)
    B, C, f, H, W = x.shape
    frames = x.new_empty((B, before + f, H, W, C)).permute(0, 4, 1, 2, 3)
    kept = None if feat_cache is None or feat_idx is None else feat_cache[feat_idx[0]]
    if kept is None:
        frames[:, :, :before].zero_()
    else:
        frames[:, :, :before].copy_(kept)
    norm_silu(x, norm.gamma.view(-1), bias, out=frames[:, :, before:])
    if feat_cache is not None and feat_idx is not None:
        last = frames[:, :, f:]
        feat_cache[feat_idx[0]] = last if x.itemsize == 2 else last.clone()  # a view holds all frames
        feat_idx[0] += 1
    weight, channels = layer.weight, layer.out_channels
    if WIDE // 2 < channels < WIDE and x.itemsize == 2:
        weight = _filled(weight, WIDE - channels)
    return _last(nnf.conv3d(frames, weight, None, layer.stride, (0, top, left)))[:, :channels]


def _normed_and_activated(norm: Any, x: Tensor) -> Tensor:
    """`WanRMS_norm.forward` of [B, C, f, H, W] and SiLU."""
    x = _last(x)
    out = torch.empty_like(x)
    norm_silu(x, norm.gamma.view(-1), out=out)
    return out


def _last(x: Tensor) -> Tensor:
    """With channels last; as it is, where it has them already."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def _unchanged(layer: Any, x: Tensor) -> Tensor:
    """In the place of an activation that its norm has done."""
    return x
