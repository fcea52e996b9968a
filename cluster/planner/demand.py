"""How much is asked of a plan, what a clip leaves on disk, and what all of it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, isfinite, log

from cluster.job.checked import CheckedJob
from cluster.planner.memory import Sizes
from numina.errors import InputError

GB = 1e9  # bytes, as disks are sold
LATENT_BYTES = 4  # of a number: latents are kept as float32
# Bits a pixel of an mp4 by crf: the mean of pans and zooms over two photographs (tests/benchmarks/video_size.py,
# 2026-11-28). Generated clips differ by a factor of 2 either way.
VIDEO_BITS = {12: 0.322, 18: 0.154, 24: 0.074, 30: 0.039}


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is asked of a plan beside the job's settings."""

    videos: int | None = None  # samples times strategies; None: a plan for one clip
    accuracy: float | None = None  # [share, above 0 to 1] of attempts that the judge of verified strategies accepts
    price: float | None = None  # of a GPU-hour, in any currency

    def __post_init__(self) -> None:
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise InputError(
                f"--accuracy is {self.accuracy:g}; give the share of clips that the judge accepts, above 0 to 1"
            )
        if self.videos is not None and self.videos < 1:
            raise InputError(f"--clips is {self.videos}; give at least 1")
        if self.price is not None and not (self.price >= 0 and isfinite(self.price)):
            raise InputError(f"--price is {self.price:g}; give the price of a GPU-hour, a finite number from 0 on")

    def attempts(self, most: int) -> tuple[float, float]:
        """The clips made for a sample of at most so many attempts, at least and at most.

        With an accuracy p both are the expected number, (1 − (1 − p)^most) / p: attempts of a sample are taken for
        independent, and where a prompt is hard they aren't, so that the number is a little higher.
        """
        if self.accuracy is None:
            return 1.0, float(most)
        expected = (1 - (1 - self.accuracy) ** most) / self.accuracy
        return expected, expected

    def accepted(self, most: int) -> float | None:
        """The share of samples of which some attempt is accepted."""
        return None if self.accuracy is None else 1 - (1 - self.accuracy) ** most


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number of which the least and the most are known."""

    least: float
    most: float

    def __mul__(self, factor: float) -> Range:
        return replace(self, least=self.least * factor, most=self.most * factor)

    def shown(self, digits: str, unit: str = "") -> str:
        """As `12.3` or `12.3 to 14.5`, with a unit."""
        low, high = f"{self.least:{digits}}", f"{self.most:{digits}}"
        return (low if low == high else f"{low} to {high}") + unit


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What so many videos take on a cluster, from counts right at once to a second pass, and every attempt, for all."""

    hours: Range | None  # None: no forward of this model was measured on this GPU; so the two below
    gpu_hours: Range | None
    price: Range | None  # None, too, where no price of a GPU-hour was given
    disk_gb: Range  # of the output


class DiskModel:
    """Bytes that a job's videos leave in its output, and that its checkpoint takes on every node."""

    def __init__(self, checked: CheckedJob, sizes: Sizes):
        self.job, self.sizes = checked.job, sizes
        self.tokens = checked.model.grid(checked.job.generation).tokens

    @property
    def video(self) -> float:
        """Bytes of an mp4; an estimate."""
        own = self.job.generation
        return own.height * own.width * own.num_frames * _bits(own.crf) / 8

    @property
    def latents(self) -> float:
        """Bytes of a clip's kept latents; 0 where they aren't."""
        return self.tokens * self.sizes.latent_numbers * LATENT_BYTES if self.job.latents else 0.0

    @property
    def checkpoint(self) -> float:
        """Bytes of the weights as they are stored."""
        return float(sum(part.bytes for part in (self.sizes.transformer, self.sizes.text_encoder, self.sizes.vae)))


def _bits(crf: int) -> float:
    """Bits a pixel: between two measured values, and beyond them, by a constant factor per step of crf."""
    known = sorted(VIDEO_BITS)
    high = next((own for own in known[1:] if crf <= own), known[-1])
    low = known[known.index(high) - 1]
    share = (crf - low) / (high - low)
    return exp(log(VIDEO_BITS[low]) * (1 - share) + log(VIDEO_BITS[high]) * share)
