"""How often identification read the count that a judge sees, by how sure it was.

The plain clip shows what was read: the clip of the same prompt and seed that wasn't guided, of any strategy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.evaluation.clips import Clips
from cluster.evaluation.judged import Judged

BANDS = (0.0, 0.5, 0.8, 1.0)  # of confidence; the last one includes its end


@dataclass(frozen=True, kw_only=True)
class Band:
    """The nouns that were read with a confidence from `least` to below `most`."""

    least: float
    most: float
    nouns: int
    right: float  # share of them whose identified count is the commonest that the judge detected


def reading_bands(clips: Clips, judged: Judged) -> list[Band]:
    """The bands that hold any noun whose plain clip is judged, in ascending order."""
    plain = np.full(int(clips.twin.max(initial=-1)) + 1, -1)
    candidates = np.flatnonzero(judged.judged & ~clips.guided)
    plain[clips.twin[candidates]] = candidates  # of several the last one by key
    target = np.flatnonzero(~np.isnan(clips.confidence))
    clip = np.repeat(np.arange(len(clips)), clips.targets)[target]
    twin = plain[clips.twin[clip]]
    target, clip, twin = (column[twin >= 0] for column in (target, clip, twin))
    shown = judged.commonest[clips.starts[twin] + target - clips.starts[clip]]
    confidence, right = clips.confidence[target], clips.identified[target] == shown
    band = np.searchsorted(BANDS[1:-1], confidence, side="right")
    found = []
    for number in range(len(BANDS) - 1):
        own = right[(band == number) & (shown >= 0)]
        if len(own):
            share = int(own.sum()) / len(own)
            found.append(Band(least=BANDS[number], most=BANDS[number + 1], nouns=len(own), right=share))
    return found
