"""A Wan VAE's layers as they run fastest: diffusers' sums, without what it copies, casts and fills between them.

Names: B clips, C channels, f frames at once, H W rows and columns; of a band, where it is decoded by one rank of many.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanDecoder3d,
    WanResidualBlock,
    WanUpsample,
)
from torch import Tensor

from pipelines.private.diffusers import padding_of
from pipelines.video.bands import HALO, Band
from pipelines.video.kernels import add_bias, norm_silu

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions
ALIGNED = 8  # output channels whose multiples tensor cores take as they are
WIDE = 128  # output channels for which cuDNN's kernels are quickest in half precision: 96 take longer on an H200


@contextmanager
def fast_layers(decoder: Any, *, on_gpu: bool = False, band: Band | None = None) -> Iterator[None]:
    """Within it a decoder's layers run so.

    Causal convolutions leave padding in height and width to the convolution itself (diffusers' copy their input into a
    padded one first, 14 % of what Wan2.2's decoder holds at its most: tests/benchmarks/decode_held.py), and upsampling,
    which only repeats values, isn't done in float32: both change no bit.

    With `on_gpu` weights and values are kept with channels last, as tensor cores want them; a convolution's few output
    channels are filled up to a multiple of 8; a residual block reads and writes its values as seldom as it can. Sums
    are then rounded otherwise, no worse. 0.64 of diffusers' time in float32, 0.45 in bfloat16
    (tests/benchmarks/decode_layers.py).

    With a band the decoder takes `band.cut` of the latents and gives this rank's rows of the frames. The layer before a
    convolution (an activation, upsampling) hands it a row of each neighbour, too, and the convolution doesn't pad in
    height; so these rows are kept with the frames before, and cross the wire once. Attention gathers keys and values of
    all rows; all other layers work on pixels apart. For each latent frame ranks exchange once per convolution of rows
    but the first, and once for attention: 33 times, in Wan2.1's decoder as in Wan2.2's.
    """
    changed: list[Any] = []

    def put(layer: Any, forward: Callable[..., Tensor]) -> None:
        layer.forward = partial(forward, layer, band=band)
        changed.append(layer)

    if on_gpu:
        for weight in decoder.parameters():
            if order := CHANNELS_LAST.get(weight.dim()):
                weight.data = weight.data.contiguous(memory_format=order)
    try:
        for layer in decoder.modules():
            kind = type(layer)
            fused = on_gpu and type(getattr(layer, "nonlinearity", None)) is torch.nn.SiLU
            if kind is WanCausalConv3d:
                put(layer, _aligned_convolution if on_gpu else _convolution)
            elif kind is WanUpsample:
                put(layer, _repeated if on_gpu else _upsampled)
            elif kind is WanResidualBlock and fused:
                put(layer, _residual_block)
            elif kind is WanDecoder3d and fused:
                put(layer.norm_out, _normed_and_activated)
                put(layer.nonlinearity, _unchanged)
            elif band is not None and kind in (WanResidualBlock, WanDecoder3d):
                put(layer.nonlinearity, _activated)
            elif band is not None and kind is WanAttentionBlock:
                put(layer, _attention)
            elif band is not None and kind is torch.nn.Conv2d and layer.kernel_size[0] > 1:
                put(layer, _convolution_of_frames)
        yield
    finally:
        for layer in changed:
            del layer.forward


def _convolution(layer: Any, x: Tensor, cache_x: Tensor | None = None, *, band: Band | None) -> Tensor:
    """`WanCausalConv3d.forward`: `cache_x` are frames before x, zeros stand for those before the first."""
    return _convolve(layer, layer.weight, layer.bias, x, cache_x, band)


def _aligned_convolution(layer: Any, x: Tensor, cache_x: Tensor | None = None, *, band: Band | None) -> Tensor:
    """The same with channels last. Pixels have 3 channels, for which cuDNN has no kernel on tensor cores."""
    x = _last(x)
    if layer.kernel_size == (1, 1, 1) and layer.stride == (1, 1, 1):  # cuDNN would give its channels first
        return nnf.linear(x.movedim(1, -1), layer.weight.flatten(1), layer.bias).movedim(-1, 1)
    if not (missing := -layer.out_channels % ALIGNED):
        return _convolution(layer, x, cache_x, band=band)
    bias = nnf.pad(layer.bias, (0, missing))
    return _convolve(layer, _filled(layer.weight, missing), bias, x, cache_x, band)[:, : layer.out_channels]


def _filled(weight: Tensor, missing: int) -> Tensor:
    """With so many more output channels, of zeros."""
    return _last(nnf.pad(weight, (0, 0, 0, 0, 0, 0, 0, 0, 0, missing)))


def _convolve(layer: Any, weight: Tensor, bias: Tensor, x: Tensor, cache_x: Tensor | None, band: Band | None) -> Tensor:
    left, _, top, _, before, _ = padding_of(layer)
    if band is not None:
        top = 0  # x has these rows
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


def _convolution_of_frames(layer: Any, x: Tensor, *, band: Band) -> Tensor:
    """`Conv2d.forward` of [B·f, C, H + 2, W]: its padding in height is in x."""
    return nnf.conv2d(x, layer.weight, layer.bias, layer.stride, (0, layer.padding[1]))


def _upsampled(layer: Any, x: Tensor, *, band: Band | None) -> Tensor:
    """`WanUpsample.forward` of [B·f, C, H, W], in x's own dtype."""
    x = nnf.interpolate(x, scale_factor=layer.scale_factor, mode=layer.mode)
    return x if band is None else band.with_neighbours(x)


def _repeated(layer: Any, x: Tensor, *, band: Band | None) -> Tensor:
    """The same with channels last, as one copy: PyTorch's kernel for this order takes several times as long."""
    N, C, H, W = x.shape
    high, wide = (int(scale) for scale in layer.scale_factor)
    frames, own = _room(x, (N,), high * H, wide * W, band)
    own.permute(0, 2, 3, 1).view(N, H, high, W, wide, C).copy_(x.permute(0, 2, 3, 1)[:, :, None, :, None])
    return _complete(frames, band)


def _room(x: Tensor, leading: tuple[int, ...], height: int, width: int, band: Band | None) -> tuple[Tensor, Tensor]:
    """Values to be written, with x's channels, these last in memory: with a row for each neighbour, and without."""
    halo = 0 if band is None else HALO
    room = x.new_empty((*leading, height + 2 * halo, width, x.shape[1])).movedim(-1, 1)
    return room, room.narrow(-2, halo, height)


def _complete(frames: Tensor, band: Band | None) -> Tensor:
    """With the neighbours' rows, whose places are there already."""
    if band is not None:
        band.fill(frames)
    return frames


def _activated(layer: Any, x: Tensor, *, band: Band) -> Tensor:
    """An activation, and a row of each neighbour."""
    return band.with_neighbours(type(layer).forward(layer, x))


def _attention(block: Any, x: Tensor, *, band: Band) -> Tensor:
    """`WanAttentionBlock.forward` of [B, C, f, H, W]: a rank's pixels look at those of all."""
    B, C, f, H, W = x.shape
    pixels = block.to_qkv(block.norm(x.transpose(1, 2).flatten(0, 1))).permute(0, 2, 3, 1).contiguous()
    every = band.gathered(pixels[..., C:].contiguous(), dim=1)
    q, k, v = (own.flatten(1, 2)[:, None] for own in (pixels[..., :C], *every.chunk(2, dim=-1)))
    found = nnf.scaled_dot_product_attention(q, k, v).reshape(B * f, H, W, C).permute(0, 3, 1, 2)
    return block.proj(found).unflatten(0, (B, f)).transpose(1, 2) + x


def _residual_block(
    block: Any,
    x: Tensor,
    feat_cache: list[Any] | None = None,
    feat_idx: list[int] | None = None,
    *,
    band: Band | None,
) -> Tensor:
    """`WanResidualBlock.forward` of [B, C, f, H, W]."""
    x = _last(x)
    shortcut = _last(block.conv_shortcut(x))
    x = _normed_convolution(block.norm1, None, block.conv1, x, feat_cache, feat_idx, band)
    x = _normed_convolution(block.norm2, block.conv1.bias, block.conv2, x, feat_cache, feat_idx, band)
    return add_bias(x, block.conv2.bias, shortcut)


def _normed_convolution(
    norm: Any,
    bias: Tensor | None,
    layer: Any,
    x: Tensor,
    feat_cache: list[Any] | None,
    feat_idx: list[int] | None,
    band: Band | None,
) -> Tensor:
    """A causal convolution, without its bias, of x + `bias`, normed and activated.

    The norm is written behind the frames before, where the convolution reads both. In half precision, what it keeps
    for the next frames is a view of them: quicker, and there is room for it where float32 decodes, too.
    """
    left, _, top, _, before, _ = padding_of(layer)
    B, _, f, H, W = x.shape
    frames, own = _room(x, (B, before + f), H, W, band)
    kept = None if feat_cache is None or feat_idx is None else feat_cache[feat_idx[0]]
    if kept is None:
        frames[:, :, :before].zero_()
    else:
        frames[:, :, :before].copy_(kept)
    norm_silu(x, norm.gamma.view(-1), bias, out=own[:, :, before:])
    _complete(frames[:, :, before:], band)
    if feat_cache is not None and feat_idx is not None:
        last = frames[:, :, f:]
        feat_cache[feat_idx[0]] = last if x.itemsize == 2 else last.clone()  # a view holds all frames
        feat_idx[0] += 1
    weight, channels = layer.weight, layer.out_channels
    if WIDE // 2 < channels < WIDE and x.itemsize == 2:
        weight = _filled(weight, WIDE - channels)
    padding = (0, top if band is None else 0, left)
    return _last(nnf.conv3d(frames, weight, None, layer.stride, padding))[:, :channels]


def _normed_and_activated(norm: Any, x: Tensor, *, band: Band | None) -> Tensor:
    """`WanRMS_norm.forward` of [B, C, f, H, W] and SiLU, and a row of each neighbour."""
    B, _, f, H, W = x.shape
    frames, own = _room(x, (B, f), H, W, band)
    norm_silu(_last(x), norm.gamma.view(-1), out=own)
    return _complete(frames, band)


def _last(x: Tensor) -> Tensor:
    """With channels last; as it is, where it has them already."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def _unchanged(layer: Any, x: Tensor, *, band: Band | None) -> Tensor:
    """In the place of an activation that its norm has done."""
    return x
