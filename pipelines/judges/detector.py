"""What detectors share: a case's nouns become text, passes of frames become boxes, boxes become counts.

Legend: b frames of a pass, q boxes that a model proposes per frame.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from numina.errors import InputError
from pipelines.judges.base import Case, JudgeConfig, Judgement
from pipelines.judges.boxes import FrameBoxes, without_duplicates
from pipelines.judges.links import unique_objects
from pipelines.judges.passes import FrameOf, Frames, run_passes
from pipelines.judges.weighted import WeightedJudge

Text = TypeVar("Text")


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """What a model proposes for a pass of frames, on its device."""

    boxes: Float[Tensor, "b q 4"]  # x0 y0 x1 y1, pixels of the video
    scores: Float[Tensor, "b q"]  # of a box with any of its text, in [0, 1]
    noun_scores: Float[Tensor, "b q"]  # with the noun it fits best, in [0, 1]
    nouns: Int[Tensor, "b q"]  # that noun


class Detector(WeightedJudge, ABC, Generic[Text]):
    """A judge that finds boxes; `Text` is what it makes of a case's nouns, once for all frames."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        self.tokenizer = self.processor.tokenizer

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {
            "box_threshold": self.config.box_threshold,
            "duplicates": self.config.duplicates,
            "tracks": self.config.tracks,
        }

    @abstractmethod
    def read(self, nouns: Sequence[str]) -> Text:
        """A case's nouns as the model takes them. Raises InputError for a noun that its words can't spell."""

    @abstractmethod
    def propose(self, frames: Frames, texts: Sequence[Text]) -> Proposals:
        """Boxes for a pass of frames, each with its case's text."""

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """A judgement per case, in order.

        Raises InputError for a case without targets, and for a noun that the model's words can't spell.
        """
        for case in cases:
            if not case.targets:
                raise InputError(f"{case.prompt!r} has no targets, but {self.config.kind} counts nouns: leave it out")
        with torch.inference_mode():
            texts = [self.read([target.noun for target in case.targets]) for case in cases]

        def forward(frames: Frames, batch: list[FrameOf]) -> Sequence[Tensor]:
            found = self.propose(frames, [texts[place.case] for place in batch])
            return found.boxes.float(), found.scores.float(), found.noun_scores.float(), found.nouns

        seen: list[list[FrameBoxes]] = [[] for _ in cases]
        for batch, arrays in run_passes(cases, self.config, self.device, forward):
            for place, *arrays_of_frame in zip(batch, *arrays, strict=True):
                seen[place.case].append(self._select(*arrays_of_frame))
        return [self._judgement(case, frames) for case, frames in zip(cases, seen, strict=True)]

    def _select(self, boxes: np.ndarray, scores: np.ndarray, noun_scores: np.ndarray, nouns: np.ndarray) -> FrameBoxes:
        """Of one frame's proposals, those that count."""
        keep = (scores > self.config.box_threshold) & (noun_scores > self.least_noun_score)
        found = FrameBoxes(boxes=boxes[keep], scores=noun_scores[keep], nouns=nouns[keep])
        return found if self.config.duplicates is None else without_duplicates(found, self.config.duplicates)

    @property
    def least_noun_score(self) -> float:
        """What a box's score with its noun must be above."""
        return self.config.box_threshold

    def _judgement(self, case: Case, frames: Sequence[FrameBoxes]) -> Judgement:
        nouns = len(case.targets)
        return Judgement(
            detected=np.array([frame.counts(nouns) for frame in frames], dtype=np.int64).reshape(-1, nouns),
            unique=unique_objects(frames, nouns) if self.config.tracks else None,
        )

    def check_noun(self, noun: str, tokens: Sequence[int]) -> None:
        """Raises InputError for a noun that its tokens say nothing of."""
        if all(token == self.tokenizer.unk_token_id for token in tokens):
            raise InputError(
                f"{noun!r} has no word that {self.config.kind} of {self.config.path!r} knows, so it can't be counted;"
                " name the target in the model's language, or judge with another detector"
            )
