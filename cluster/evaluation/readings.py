"""How often identification read the count that a judge sees, by how sure it was.

The plain clip shows what was read: the clip of the same prompt and seed that wasn't guided, of any strategy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

BANDS = (0.0, 0.5, 0.8, 1.0)  # of confidence; the last one includes its end


@dataclass(frozen=True, kw_only=True)
class Band:
    """The nouns that were read with a confidence from `least` to below `most`."""

    least: float
    most: float
    nouns: int
    right: float  # share of them whose identified count is the commonest that the judge detected


def reading_bands(rows: Sequence[Row], verdicts: Mapping[str, Row]) -> list[Band]:
    """The bands that hold any noun whose plain clip is judged, in ascending order."""
    plain = {_clip(row): verdicts[row["key"]] for row in rows if row["key"] in verdicts and not row["guided"]}
    found: dict[int, list[bool]] = {}
    for row in rows:
        if row["confidences"] and (seen := plain.get(_clip(row))) and seen["detected"]:
            for identified, confidence, noun in zip(
                row["identified"], row["confidences"], seen["detected"], strict=True
            ):
                if noun["frames"]:
                    found.setdefault(_band(confidence), []).append(identified["count"] == _commonest(noun["frames"]))
    return [
        Band(least=BANDS[band], most=BANDS[band + 1], nouns=len(right), right=sum(right) / len(right))
        for band, right in sorted(found.items())
    ]


def _clip(row: Row) -> tuple[Any, ...]:
    targets = tuple((target["noun"], target["count"]) for target in row["targets"])
    return row["prompt"], row["negative_prompt"], row["seed"], targets


def _band(confidence: float) -> int:
    return max(band for band, least in enumerate(BANDS[:-1]) if confidence >= least)


def _commonest(frames: Iterable[int]) -> int:
    return Counter(frames).most_common(1)[0][0]
