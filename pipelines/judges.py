"""Judges: how many of each asked noun a finished video shows, frame by frame."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int

from numina.errors import InputError
from numina.prompts import Target
from pipelines.testbed import counter
from pipelines.video import Video


class Judge(Protocol):
    """Counts objects in videos; `name` is its folder in an output's `evaluations/`."""

    name: str

    def count(self, video: Video, prompt: str, targets: Sequence[Target]) -> Int[np.ndarray, "frames nouns"]: ...


class ExactCounter:
    """The exact counter of the embedded model's world: colour, connected components and shape."""

    name = "counter"

    def count(self, video: Video, prompt: str, targets: Sequence[Target]) -> Int[np.ndarray, "frames nouns"]:
        """Raises InputError for a noun that the embedded model's world doesn't have."""
        shown = {target.noun: (target.colour, target.shape) for target in counter.parse(prompt)}
        unknown = [target.noun for target in targets if target.noun not in shown]
        if unknown:
            raise InputError(
                f"the exact counter knows coloured shapes only, not {', '.join(unknown)} of {prompt!r};"
                " judge this dataset with a detector"
            )
        return counter.count(video, [shown[target.noun] for target in targets])


JUDGES: dict[str, type[Judge]] = {ExactCounter.name: ExactCounter}
