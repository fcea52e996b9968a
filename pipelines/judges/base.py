"""What a judge is asked and what it says: how many of each asked noun a finished video shows, and how it looks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Int

from numina.choices import check_choices
from numina.errors import ConfigError
from numina.prompts.targets import Target
from pipelines.judges.registry import JUDGES
from pipelines.video.mp4 import Video

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges, and how; `configs/judge/*.yaml` hold such. Plain types only, for `OmegaConf.structured`."""

    kind: str  # counter (the embedded model's) | grounding-dino | owlv2 | clip: see pipelines/judges/registry.py
    name: str  # its folder in an output's evaluations/
    path: str | None = None  # a folder in transformers' layout, or a hub id OWNER/NAME; None for the counter
    revision: str | None = None  # of a hub id: the commit, 40 hex digits
    box_threshold: float = 0.32  # score from which a box counts, in [0, 1] (published: .32)
    text_threshold: float = 0.25  # grounding-dino: score that a box's noun must reach, in [0, 1] (published: .25)
    every: int = 1  # every k-th frame is judged, the first always (published: 1)
    batch: int = 8  # frames of one forward pass
    duplicates: float | None = None  # IoU above which boxes of one noun are one object; None keeps all (published)
    tracks: bool = False  # link boxes over frames and count a clip's unique objects (ours)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: float16 on a GPU, float32 on a CPU
    device: str = "auto"  # auto (a GPU where there is one) | cpu | cuda | cuda:1 …

    def __post_init__(self) -> None:
        if self.kind not in JUDGES:
            raise ConfigError(f"judge.kind is {self.kind!r}; choose from {', '.join(JUDGES)}")
        check_choices("judge", self)
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"judge.name is {self.name!r}, but names a folder: use up to 64 letters, digits, dots, dashes and"
                " underscores, a letter or digit first"
            )
        for key, value in (("box_threshold", self.box_threshold), ("text_threshold", self.text_threshold)):
            if not 0 <= value <= 1:
                raise ConfigError(f"judge.{key} is {value}, but is a score: give one in [0, 1]")
        if self.duplicates is not None and not 0 < self.duplicates < 1:
            raise ConfigError(
                f"judge.duplicates is {self.duplicates}, but is an IoU between 0 and 1: give one such as 0.7, or null"
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
