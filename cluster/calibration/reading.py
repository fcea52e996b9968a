"""How far the layout's reading agrees with the judge on plain clips: if it doesn't, no correction can work."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LEAST = 0.5  # agreement below which correction can hardly work

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Read:
    """One noun of one plain clip: what was identified in its attention, and what the judge detected in its frames."""

    noun: str
    asked: int
    identified: int
    detected: int  # the commonest count over the frames

    @property
    def agrees(self) -> bool:
        return self.identified == self.detected


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of the nouns of a kind, the share whose identified count is the detected one."""

    of: str
    nouns: int
    share: float


def reads_of(row: Row, verdict: Row | None) -> list[Read]:
    """The nouns of a clip's row, by the verdict on the plain clip of the same prompt and seed; none without a video."""
    if not row["identified"] or verdict is None or not verdict["detected"]:
        return []
    return [
        Read(
            noun=target["noun"],
            asked=target["count"],
            identified=identified["count"],
            detected=Counter(detected["frames"]).most_common(1)[0][0],
        )
        for target, identified, detected in zip(row["targets"], row["identified"], verdict["detected"], strict=True)
        if detected["frames"]
    ]


def agreements(reads: Iterable[Read]) -> list[Agreement]:
    """Of all nouns, then by the asked count, then by the noun."""
    every = list(reads)
    groups: dict[str, list[Read]] = {"all nouns": every} if every else {}
    for count in sorted({read.asked for read in every}):
        groups[f"asked for {count}"] = [read for read in every if read.asked == count]
    for noun in sorted({read.noun for read in every}):
        groups[noun] = [read for read in every if read.noun == noun]
    return [
        Agreement(of=name, nouns=len(some), share=sum(read.agrees for read in some) / len(some))
        for name, some in groups.items()
    ]
