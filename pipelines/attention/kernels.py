"""Which kernel computes self-attention, chosen here and never by what a library happens to find.

FlashAttention-3 (package `fa3-fwd`, in the extra `gpu`) on NVIDIA's Hopper cards in half precision, where it can be
imported; else cuDNN's, which PyTorch picks there by itself. Both are exact attention. The same kernel on 8-bit floats
is for models in float8. tests/benchmarks/RESULTS.md has their times and errors.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.base import Project

FLASH_3, FLASH_3_FP8 = "flash_3", "flash_3_fp8"  # as xDiT calls them
FLASH = (FLASH_3, FLASH_3_FP8)
HOPPER = 9  # major compute capability: H100, H200, GH200
HALF = (torch.bfloat16, torch.float16)
PACKAGE = "fa3_fwd_interface"


def flash3_lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlashAttention-3 can't run on a device with such numbers; None where it can."""
    if device.type != "cuda":
        return "FlashAttention-3 runs on NVIDIA GPUs alone"
    if torch.cuda.get_device_capability(device)[0] != HOPPER:
        return f"FlashAttention-3 needs a Hopper GPU, and this is {torch.cuda.get_device_name(device)}"
    if dtype not in HALF:
        return f"FlashAttention-3 computes in half precision, and the model is in {str(dtype).removeprefix('torch.')}"
    try:
        importlib.import_module(PACKAGE)
    except (ImportError, OSError) as error:
        return f"fa3-fwd can't be imported ({error}); install numina-video[gpu]"
    return None


def faster_kernel(device: torch.device, dtype: torch.dtype, kernel: str) -> str | None:
    """What would make self-attention faster than a kernel does, with its remedy; None where nothing is known to."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != HOPPER or kernel in FLASH:
        return None
    lacking = flash3_lacks(device, dtype)
    return lacking and f"attention runs by {kernel}, and FlashAttention-3 would take a tenth off each step: {lacking}"


def flash3() -> Any:
    """The package: `flash_attn_func` for clips of one length, `flash_attn_varlen_func` for keys of several."""
    return importlib.import_module(PACKAGE)


def eight_bits(part: Tensor) -> tuple[Tensor, Tensor]:
    """[B, n, N, D] in 8-bit floats (e4m3), and the scales [B, N], one of each clip's head, that bring it back."""
    scales = part.abs().amax(dim=(1, 3)).float().clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (part / scales[:, None, :, None].to(part.dtype)).to(torch.float8_e4m3fn), scales


class FlashSelfAttention:
    """A whole sequence's self-attention by FlashAttention-3: [B, n, N, D] as it is projected, nothing is transposed.

    One graph under torch.compile: the package registers its kernel as an operator. `flash_3_fp8` rounds queries, keys
    and values to 8 bits and gives bfloat16.
    """

    def __init__(self, project: Project, name: str = FLASH_3):
        self.project = project
        self.name = name
        self.kernel: Callable[..., Tensor] = flash3().flash_attn_func

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        query, key, value = self.project(attn, hidden_states, None, rotary_emb)
        output = self._attention(query, key, value.type_as(query)).flatten(2)
        return attn.to_out[1](attn.to_out[0](output.type_as(hidden_states)))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.name == FLASH_3:
            return self.kernel(query, key, value)
        (query, q), (key, k), (value, v) = map(eight_bits, (query, key, value))
        return self.kernel(query, key, value, q_descale=q, k_descale=k, v_descale=v)
