"""Attention kernels that a GPU could run and doesn't, each with what brings it."""

from collections.abc import Iterator
from importlib.util import find_spec

FLASH_3 = ("flash_attn_interface", "fa3_fwd_interface")  # modules, of which either is FlashAttention-3
HOPPER = 9  # compute capability that FlashAttention-3 is written for


def faster_kernels(engine: str, kernel: str) -> Iterator[str]:
    """Sentences, each with its remedy; none where the fastest that is known runs. On a machine with a GPU.

    `kernel` is the engine's name for the one that runs.
    """
    import torch

    if torch.cuda.get_device_capability()[0] != HOPPER or "flash_3" in kernel or "flash_4" in kernel:
        return
    if engine != "xfuser":  # diffusers knows the first module alone, which no package on PyPI brings
        if find_spec(FLASH_3[0]):
            yield f"FlashAttention-3 is installed, but attention runs by {kernel}; add parallel.attention=_flash_3"
    elif any(map(find_spec, FLASH_3)):
        yield f"FlashAttention-3 is installed, but attention runs by {kernel}; add parallel.attention=flash_3"
    else:
        yield (
            f"FlashAttention-3 isn't installed, and attention runs by {kernel}; `pip install numina-video[gpu]` (or"
            " `make install` on a machine with a GPU) brings it as fa3-fwd, for CUDA 13"
        )
