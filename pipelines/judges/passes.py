"""Forward passes of a judge: frames of several cases share them, and what they found is copied while the next one runs.

Legend: b frames of one pass, H W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from numina.errors import ConfigError
from pipelines.judges.base import Case, JudgeConfig

Frames = UInt8[Tensor, "b 3 H W"]


@dataclass(frozen=True)
class FrameOf:
    """One judged frame."""

    case: int  # index into the cases
    frame: int  # of the video


def passes(cases: Sequence[Case], config: JudgeConfig) -> Iterator[list[FrameOf]]:
    """Every `every`-th frame of all cases, in passes of at most `batch` frames of one size; a case's own in order."""
    by_size: dict[tuple[int, ...], list[FrameOf]] = {}
    for index, case in enumerate(cases):
        judged = (FrameOf(index, frame) for frame in range(0, len(case.video), config.every))
        by_size.setdefault(case.video.shape[1:3], []).extend(judged)
    for frames in by_size.values():
        for start in range(0, len(frames), config.batch):
            yield frames[start : start + config.batch]


def run_passes(
    cases: Sequence[Case],
    config: JudgeConfig,
    device: torch.device,
    forward: Callable[[Frames, list[FrameOf]], Sequence[Tensor]],
) -> Iterator[tuple[list[FrameOf], list[np.ndarray]]]:
    """Each pass with what `forward` made of its frames, on the host; the next pass is under way by then.

    Of all cases' frames two passes are on the device at most, and two passes' results on the host.
    """
    before: tuple[list[FrameOf], _Landing] | None = None
    for batch in passes(cases, config):
        with torch.inference_mode():
            landing = _Landing(forward(_load(cases, batch, device), batch))
        if before:
            yield before[0], before[1].arrays()
        before = batch, landing
    if before:
        yield before[0], before[1].arrays()


class _Landing:
    """Tensors on their way to the host: waited for when read, not when sent."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self.event = None
        if any(tensor.is_cuda for tensor in tensors):
            self.event = torch.cuda.Event()
            self.event.record()

    def arrays(self) -> list[np.ndarray]:
        if self.event:
            self.event.synchronize()
        return [tensor.numpy() for tensor in self.tensors]


def _load(cases: Sequence[Case], batch: Sequence[FrameOf], device: torch.device) -> Frames:
    frames = torch.from_numpy(np.stack([cases[place.case].video[place.frame] for place in batch]))
    if device.type == "cuda":
        frames = frames.pin_memory()
    return frames.to(device, non_blocking=True).permute(0, 3, 1, 2)


def device_of(config: JudgeConfig) -> torch.device:
    """`auto` is the GPU where there is one. Raises ConfigError where a GPU is asked for and there is none."""
    cuda = torch.cuda.is_available()
    try:
        device = torch.device("cuda" if cuda else "cpu") if config.device == "auto" else torch.device(config.device)
    except RuntimeError as error:
        raise ConfigError(f"judge.device is {config.device!r}; choose auto, cpu, cuda or such as cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if cuda else 0):
        raise ConfigError(
            f"judge.device is {config.device!r}, but torch sees {torch.cuda.device_count() if cuda else 0} GPUs here;"
            " use judge.device=cpu or auto"
        )
    return device


def dtype_of(config: JudgeConfig, device: torch.device) -> torch.dtype:
    """`auto` is float16 on a GPU, whose ten bits hold a box's place better than bfloat16's seven, float32 on a CPU."""
    name = config.dtype if config.dtype != "auto" else "float16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
