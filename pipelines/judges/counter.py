"""The exact counter of the embedded models' worlds: colour, connected components and shape."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from numina.errors import InputError
from numina.prompts.targets import Target
from pipelines.judges.base import Case, JudgeConfig, Judgement
from pipelines.judges.boxes import FrameBoxes
from pipelines.judges.links import unique_objects
from pipelines.testbed import counter
from pipelines.video.mp4 import Video

Phrase = tuple[str, str]  # colour, shape


class ExactCounter:
    """Counts what the embedded models draw."""

    def __init__(self, config: JudgeConfig | None = None) -> None:
        self.config = config or JudgeConfig(kind="counter", name="counter")

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": "counter", "every": self.config.every, "tracks": self.config.tracks}

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """Raises InputError for a noun that the embedded models' worlds don't have."""
        asked = [phrases_of(case.prompt, case.targets) for case in cases]  # all errors before the first count
        return [self._judge(case, phrases) for case, phrases in zip(cases, asked, strict=True)]

    def count(self, video: Video, prompt: str, targets: Sequence[Target]) -> Int[np.ndarray, "frames nouns"]:
        """Of every frame. Raises InputError for a noun that the embedded models' worlds don't have."""
        return counter.count(video, phrases_of(prompt, targets))

    def _judge(self, case: Case, phrases: Sequence[Phrase]) -> Judgement:
        frames = [_boxes(frame, phrases) for frame in case.video[:: self.config.every]]
        return Judgement(
            detected=np.array([frame.counts(len(phrases)) for frame in frames], np.int64).reshape(-1, len(phrases)),
            unique=unique_objects(frames, len(phrases)) if self.config.tracks else None,
        )


def phrases_of(prompt: str, targets: Sequence[Target]) -> list[Phrase]:
    """Colour and shape of each target. Raises InputError for one that the embedded models' worlds don't have."""
    shown = {target.noun: (target.colour, target.shape) for target in counter.parse(prompt)}
    unknown = [target.noun for target in targets if target.noun not in shown]
    if unknown:
        raise InputError(
            f"the exact counter knows coloured shapes and creatures only, not {', '.join(unknown)} of {prompt!r};"
            " use a detector as the judge"
        )
    return [shown[target.noun] for target in targets]


def _boxes(frame: np.ndarray, phrases: Sequence[Phrase]) -> FrameBoxes:
    # A phrase that is asked for twice, under two nouns, counts for both, as in `count`.
    found = [
        (noun, seen)
        for seen in counter.detect(frame)
        for noun, phrase in enumerate(phrases)
        if (seen.colour, seen.shape) == phrase
    ]
    return FrameBoxes(
        boxes=np.array([seen.box for _, seen in found], dtype=np.float64).reshape(-1, 4),
        scores=np.array([seen.overlap for _, seen in found], dtype=np.float64),
        nouns=np.array([noun for noun, _ in found], dtype=np.int64),
    )
