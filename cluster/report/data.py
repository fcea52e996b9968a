"""The page's data as scripts: an index that it searches, and chunks of prompts that it loads when they are shown.

Scripts, because from file:// a page may run a script beside it, but not read any other file. They hold JSON and
nothing else, which is why no text of a prompt set can become code.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category
from urllib.parse import quote

from cluster.evaluation.outcomes import rank_seconds
from cluster.report.clips import Group, ShownClip, targets_of
from cluster.report.failures import Reason
from cluster.report.strategies import Results
from cluster.rows import ROW_SCHEMA

CHUNK_CLIPS = 16  # that a chunk holds, about; a prompt's clips are never parted
_THOUSANDTHS = 1000
_LONGEST = 400  # characters of a prompt set's own value


def script(function: str, *arguments: Any) -> bytes:
    """A call of one of the page's functions with JSON arguments, all in ASCII, and nowhere a `<`."""
    texts = [json.dumps(value, separators=(",", ":"), allow_nan=False) for value in arguments]
    return f"numina.{function}({','.join(texts)});\n".replace("<", "\\u003c").encode("ascii")


def chunks_of(groups: Sequence[Group]) -> Iterator[Sequence[Group]]:
    """The groups in order, cut where a chunk is full."""
    chunk: list[Group] = []
    for group in groups:
        chunk.append(group)
        if sum(len(member.clips) for member in chunk) >= CHUNK_CLIPS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def index_of(groups: Sequence[Group], results: Mapping[str, Results]) -> dict[str, Any]:
    """Columns over groups and over clips: what search and filters need. `results` by judge, "" where there is none."""
    strategies = list(dict.fromkeys(name for by_strategy in results.values() for name in by_strategy))
    nouns = list(dict.fromkeys(noun for group in groups for noun, _ in group.targets))
    numbers = {noun: number for number, noun in enumerate(nouns)}
    clips = [clip for group in groups for clip in group.clips]
    return {
        "strategies": strategies,
        "nouns": nouns,
        "prompts": [group.prompt for group in groups],
        "ids": [group.id for group in groups],
        "targets": [[value for noun, count in group.targets for value in (numbers[noun], count)] for group in groups],
        "clips": [len(group.clips) for group in groups],
        "samples": [clip.row["sample"] or 0 for clip in clips],
        "missing": [int(clip.problem is not None) for clip in clips],
        "judges": {judge: _judged(clips, judge, by_strategy) for judge, by_strategy in results.items()},
    }


def _judged(clips: Sequence[ShownClip], judge: str, results: Results) -> dict[str, Any]:
    """A judge's columns over clips: accuracy in thousandths (-1: not judged), detected counts by noun (null: not
    counted), and the strategies that keep the clip."""
    kept: dict[str, list[int]] = {clip.row["key"]: [] for clip in clips}
    for number, members in enumerate(results.values()):
        for result in members:
            kept[result.clip.row["key"]].append(number)
    verdicts = [clip.verdicts.get(judge) for clip in clips]
    return {
        "accuracy": [_thousandths(verdict.accuracy if verdict else None) for verdict in verdicts],
        "detected": [
            [verdict.detected(noun) for noun, _ in targets_of(clip.row)] if verdict and verdict.frames else None
            for clip, verdict in zip(clips, verdicts, strict=True)
        ],
        "kept": list(kept.values()),
    }


def _thousandths(accuracy: float | None) -> int:
    """Rounded down, so that 1000 is exact; -1 for None."""
    return -1 if accuracy is None else math.floor(accuracy * _THOUSANDTHS)


def group_data(group: Group, layouts: Iterable[Mapping[str, Any] | None], place: "Place") -> dict[str, Any]:
    """All that the page shows of a prompt; `layouts` are those of its clips."""
    return {
        "title": coloured(group.prompt, [noun for noun, _ in group.targets]),
        "clips": [_clip_data(clip, layout, place, group) for clip, layout in zip(group.clips, layouts, strict=True)],
    }


class Place:
    """Where the page lies, seen from where the videos lie."""

    def __init__(self, output: Path, page_folder: Path) -> None:
        self.prefix = os.path.relpath(output, page_folder)

    def href(self, file_name: str) -> str:
        """A video's address relative to the page."""
        return quote(os.path.normpath(os.path.join(self.prefix, file_name)))


def _clip_data(clip: ShownClip, layout: Mapping[str, Any] | None, place: Place, group: Group) -> dict[str, Any]:
    row = clip.row
    identified = {noun["noun"]: noun for noun in row["identified"] or []}
    nouns = [noun for noun, _ in group.targets]
    return {
        **{name: row[name] for name in ("key", "strategy", "model", "width", "height", "fps", "retries")},
        **{name: row[name] for name in ("chain", "attempt", "strength", "guided", "steps", "layout_file")},
        "sample": row["sample"] or 0,
        "seed": str(row["seed"]),  # more digits than JavaScript's numbers hold
        "frames": row["num_frames"],
        "prompt": row["prompt"] if row["prompt"] != group.prompt else None,
        "file": row["file_name"],
        "video": None if clip.problem == "missing" else place.href(row["file_name"]),
        "problem": clip.problem,
        "timings": {stage: seconds for stage, seconds in (row["timings"] or {}).items() if seconds is not None},
        "cost": rank_seconds(row),
        "shortfall": sum(row["shortfall"] or []),
        "identified": [identified[noun]["count"] if noun in identified else None for noun in nouns],
        "confidences": row["confidences"],
        "left_alone": row["left_alone"],
        "verdicts": {
            judge: {
                "accuracy": verdict.accuracy,
                "frames": [list(verdict.frames.get(noun, [])) for noun in nouns],
                "unique": [verdict.unique.get(noun) for noun in nouns] if verdict.unique else None,
            }
            for judge, verdict in clip.verdicts.items()
        },
        "clip_score": clip.clip_score,
        "temporal_consistency": clip.temporal_consistency,
        "layout": layout,
        "own": _own_columns(row),
    }


def coloured(prompt: str, nouns: Sequence[str]) -> list[tuple[str, int | None]]:
    """The prompt cut at its nouns, each with its number."""
    numbers = {noun.lower(): number for number, noun in enumerate(nouns)}
    longest_first = "|".join(_whole(noun) for noun in sorted(numbers, key=len, reverse=True))
    pieces = re.split(rf"(?i)({longest_first})", prompt) if longest_first else [prompt]
    return [(piece, numbers.get(piece.lower())) for piece in pieces if piece]


def _whole(noun: str) -> str:
    """A pattern of the noun as a whole word; scripts such as Chinese don't part words."""
    before, after = ("" if category(end) == "Lo" else r"\b" for end in (noun[0], noun[-1]))
    return f"{before}{re.escape(noun)}{after}"


def _own_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """The prompt set's own columns as text."""
    own = {name: value for name, value in row.items() if name not in ROW_SCHEMA.names and value is not None}
    return {name: _text(value) for name, value in own.items()}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def failure_data(reasons: Sequence[Reason]) -> list[list[list[Any]]]:
    """By reason: prompt, error, tries and key of each failure."""
    return [[[f.prompt, f.error, f.tries, f.key] for f in reason.failures] for reason in reasons]
