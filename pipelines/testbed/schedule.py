"""What all stages of training share: the log, schedules that run by the clock, optimizers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.testbed.muon import Muon

Log = Callable[..., None]


def open_log(file: Path) -> Log:
    """A log that writes JSON lines to the file and to the terminal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()

    def log(stage: str, **values: Any) -> None:
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        line = json.dumps({"seconds": round(time.monotonic() - begun, 1), "stage": stage, **rounded})
        with file.open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)

    return log


class Clock:
    """Share of a stage's time that is used, by which its schedules run."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.begun = time.monotonic()

    def restart(self) -> None:
        """Forgets what has passed: compilation is not training."""
        self.begun = time.monotonic()

    @property
    def progress(self) -> float:
        return (time.monotonic() - self.begun) / self.seconds


def optimizers_for(matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for matrices, AdamW for everything else, each at its own full rate."""
    fused = others[0].is_cuda
    return [
        Muon(matrices, lr=0.01),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=fused),
    ]


def take_step(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """Steps all optimizers at this share of their full rates."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("full_lr", group["lr"]) * scale
        optimizer.step()


def ramp(step: int, progress: float, decay_from: float) -> float:
    """Learning rate relative to its full value: 50 steps up, then level, then straight down to nothing.

    With `decay_from` 1 it stays up, for a stage that goes on in another sitting.
    """
    left = max(0.0, 1 - progress)
    return min((step + 1) / 50, 1.0) * (min(1.0, left / (1 - decay_from)) if decay_from < 1 else 1.0)
