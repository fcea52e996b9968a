"""What generation hands on: an identified clip on its way to the layout, a finished one on its way to storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from numina.stage import Stage

if TYPE_CHECKING:
    import numpy as np

    from numina.correct import Correction
    from numina.layout import Capture
    from numina.prompts.targets import Target
    from numina.prompts.tokens import TokenSpans
    from pipelines.video.mp4 import Video

Timings = dict[Stage, float]  # seconds


@dataclass(frozen=True)
class Request:
    """One clip that is asked for; `targets` are not looked at by plain generation."""

    key: str
    prompt: str
    negative_prompt: str | None  # None: the generation config's
    seed: int
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Identified:
    """What leaves the gang after identification: some hundred kB, whatever the model's size."""

    capture: Capture
    spans: tuple[TokenSpans, ...]
    timings: Timings


@dataclass(frozen=True)
class Ran:
    """What a clip ran on, as the rank that answers for it knows it."""

    gpu_name: str | None  # None on a CPU
    torch_version: str
    attention_kernel: str  # of self-attention, by its engine's name for it


@dataclass(frozen=True)
class Clip:
    """A finished clip: uint8 frames [num_frames, height, width, 3] (none where only the mp4 travels), and its cost."""

    video: Video
    mp4: bytes
    timings: Timings
    correction: Correction | None = None  # None for plain generation
    peak_memory_bytes: int | None = None  # of this rank's GPU since the process began; None on a CPU
    latents: np.ndarray | None = None  # [C, F, h, w] float32 that were decoded; None where they aren't kept
    ran: Ran | None = None

    def save(self, path: str | Path) -> None:
        """Writes the mp4; makes its folder."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(self.mp4)

    def summary(self) -> str:
        """What happened, in one line."""
        if self.correction is None:
            return "generated without NUMINA"
        counts = ", ".join(map(str, self.correction.identified.clip_counts()))
        done = "guided" if self.correction.plan else "right, no second run"
        if self.correction.left_alone:
            done = f"not guided, {self.correction.left_alone}"
        return f"identified counts {counts}: {done}"
