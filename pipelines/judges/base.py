"""What a judge is asked and what it says: how many of each asked noun a finished video shows, and how it looks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from numina.choices import check_choices
from numina.errors import ConfigError
from numina.prompts.targets import Target
from pipelines.judges.registry import JUDGES
from pipelines.video.mp4 import Video

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The judge of `verified`, `numina evaluate` and `numina compare`; presets are in `configs/judge/`.

    Plain types only, for `OmegaConf.structured`.
    """

    kind: str  # counter (the embedded model's), grounding-dino, owlv2 or clip
    name: str  # the folder of its verdicts in an output's evaluations/
    path: str | None = None  # a folder in transformers' layout, or a hub id OWNER/NAME; null for the counter
    revision: str | None = None  # the commit of a hub id, 40 hex digits; null: as for model.revision
    box_threshold: float = 0.32  # [score, 0 to 1] from which a box counts (published: 0.32)
    text_threshold: float = 0.25  # [score, 0 to 1] that a box's noun must reach; grounding-dino only (published: 0.25)
    every: int = 1  # [frames] judge every k-th frame, starting with the first (published: 1)
    batch: int = 8  # [frames] per forward pass
    # [IoU, 0 to 1] above which two boxes of one noun are one object; null: keep all boxes (published)
    duplicates: float | None = None
    tracks: bool = False  # link boxes over frames and count each object of the clip once (ours)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = (
        "auto"  # auto (float16 on GPUs, float32 on CPUs), float32, bfloat16 or float16
    )
    device: str = "auto"  # auto (a GPU if there is one), cpu, cuda, or one GPU such as cuda:1

    def __post_init__(self) -> None:
        if self.kind not in JUDGES:
            raise ConfigError(f"judge.kind is {self.kind!r}; choose from {', '.join(JUDGES)}")
        check_choices("judge", self)
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"judge.name is {self.name!r}, but it names a folder: use up to 64 letters, digits, dots, dashes and"
                " underscores, a letter or digit first"
            )
        for key, value in (("box_threshold", self.box_threshold), ("text_threshold", self.text_threshold)):
            if not 0 <= value <= 1:
                raise ConfigError(f"judge.{key} is {value}; a score must be in [0, 1]")
        if self.duplicates is not None and not 0 < self.duplicates < 1:
            raise ConfigError(
                f"judge.duplicates is {self.duplicates}; an IoU must be between 0 and 1: give one such as 0.7, or null"
                " to keep all boxes"
            )
        for key, number in (("every", self.every), ("batch", self.batch)):
            if number < 1:
                raise ConfigError(f"judge.{key} is {number}, but must be at least 1")
        if self.tracks and not self.counts:
            raise ConfigError(f"judge.tracks is true, but {self.kind} finds no boxes to link; leave it out")
        self._check_path()

    @property
    def counts(self) -> bool:
        """Whether the judge counts; else it gives scores alone."""
        return JUDGES[self.kind].counts

    def _check_path(self) -> None:
        weighted = JUDGES[self.kind].weights is not None
        if not weighted and (self.path or self.revision):
            raise ConfigError(f"judge.path is {self.path!r}, but the {self.kind} has no weights; leave it out")
        if weighted and not self.path:
            raise ConfigError(
                f"judge.path is {self.path!r}, but {self.kind} needs weights: give a local folder, or a hub id with"
                " judge.revision"
            )


@dataclass(frozen=True, kw_only=True)
class Case:
    """One video to judge."""

    video: Video  # uint8, all frames
    prompt: str  # what it was asked to show
    targets: tuple[Target, ...]  # nouns to count, at least one for a judge that counts


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge says of one case."""

    detected: Int[np.ndarray, "frames nouns"] | None  # of the judged frames; None for a judge that doesn't count
    unique: tuple[int, ...] | None = None  # objects of the whole clip per noun; None without `tracks`
    clip_score: float | None = None  # mean cosine of prompt and frames × 100
    temporal_consistency: float | None = None  # mean cosine of neighbouring judged frames
    embedding: Float[np.ndarray, " D"] | None = None  # of the whole clip, of length 1; None of a judge that embeds none


class Judge(Protocol):
    """Judges finished videos."""

    config: JudgeConfig

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its verdicts, for JSON: kind, thresholds, weights, arithmetic; not batch or device."""
        ...

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """A judgement per case, in order; frames of several cases share forward passes.

        Raises InputError for a noun that the judge can't know.
        """
        ...
