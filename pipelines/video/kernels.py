"""Two sums of a Wan VAE's residual block, each in one pass over the memory on a GPU; written out in PyTorch elsewhere.

Values have their channels last in memory (`torch.channels_last_3d`). Names: B clips, C channels, f frames, H W rows and
columns, P pixels of a frame or of all.
"""

import torch
import torch.nn.functional as nnf
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of PyTorch for a CPU come without
    triton = None

EPS = 1e-12  # of torch.nn.functional.normalize
TILE = 4096  # values that a program of a kernel holds


def norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """SiLU(γ·√C·y/|y|), y = x + bias, of each pixel's channels, into `out`.

    Args:
        x, out: [B, C, f, H, W]; `out` may be frames, and rows, of a larger tensor.
        gamma, bias: [C]. Sums are made in float32 and rounded once.
    """
    if triton is None or not x.is_cuda:
        y = x.float() if bias is None else x.float() + _column(bias)
        out.copy_(nnf.silu(nnf.normalize(y, dim=1, eps=EPS) * x.shape[1] ** 0.5 * _column(gamma)))
        return
    (B, C, f), P = x.shape[:3], x[0, 0, 0].numel()
    width = triton.next_power_of_2(C)
    rows = max(1, TILE // width)
    x_pixel, out_pixel = _pixel_stride(x[:, :, :1]), _pixel_stride(out[:, :, :1])
    _norm_silu_kernel[(triton.cdiv(P, rows), f, B)](
        x, gamma, bias, out, P, x.stride(0), x.stride(2), x_pixel, out.stride(0), out.stride(2), out_pixel, C**0.5, EPS,
        C, width, rows, num_warps=8,
    )  # fmt: skip


def add_bias(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """x + bias + other of [B, C, f, H, W] and [C]. Sums are made in float32 and rounded once."""
    out = torch.empty_like(other)
    if triton is None or not x.is_cuda:
        return out.copy_(x.float() + _column(bias) + other.float())
    B, C, P = x.shape[0], x.shape[1], x[0, 0].numel()
    width = triton.next_power_of_2(C)
    rows = max(1, TILE // width)
    _add_bias_kernel[(triton.cdiv(P, rows), B)](
        x, bias, other, out, P, x.stride(0), _pixel_stride(x), other.stride(0), _pixel_stride(other), C, width, rows,
        num_warps=8,
    )  # fmt: skip
    return out


def _column(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)


def _pixel_stride(x: Tensor) -> int:
    """Values between one pixel and the next, all frames' in one row. A dimension of one has any stride."""
    _, C, _, H, W = x.shape
    pixel = next((x.stride(i) // step for i, step in ((4, 1), (3, W), (2, H * W)) if x.shape[i] > 1), C)
    for i, stride in ((1, 1), (4, pixel), (3, W * pixel), (2, H * W * pixel)):
        assert x.shape[i] == 1 or x.stride(i) == stride, (x.shape, x.stride())
    return pixel


if triton is not None:

    @triton.jit
    def _norm_silu_kernel(
        x, gamma, bias, out, P, x_clip, x_frame, x_pixel, out_clip, out_frame, out_pixel, scale, eps,
        C: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        pixel = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        frame = tl.program_id(1).to(tl.int64)
        clip = tl.program_id(2).to(tl.int64)
        channel = tl.arange(0, WIDTH)[None, :]
        inside = (pixel < P) & (channel < C)
        x_at = clip * x_clip + frame * x_frame + pixel * x_pixel + channel
        out_at = clip * out_clip + frame * out_frame + pixel * out_pixel + channel
        y = tl.load(x + x_at, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            y += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(y * y, axis=1)), eps)[:, None]
        y = y * (scale / length) * tl.load(gamma + channel, mask=channel < C, other=0.0).to(tl.float32)
        y = y * tl.sigmoid(y)
        tl.store(out + out_at, y.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _add_bias_kernel(
        x, bias, other, out, P, x_clip, x_pixel, other_clip, other_pixel,
        C: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        pixel = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        clip = tl.program_id(1).to(tl.int64)
        channel = tl.arange(0, WIDTH)[None, :]
        inside = (pixel < P) & (channel < C)
        at = clip * other_clip + pixel * other_pixel + channel
        total = tl.load(x + clip * x_clip + pixel * x_pixel + channel, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
        total += tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
