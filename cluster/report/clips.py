"""What the page tells of each clip: rows and verdicts in, prompts with their clips out, in the order of the page."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from cluster.dataset.store import Store
from cluster.evaluation.judged import Evidence
from cluster.evaluation.rows import rows_of, verdicts_of
from cluster.rows import python_rows

MISSING = "missing"  # a video's problem when its file isn't there


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge said of a clip."""

    accuracy: float | None  # CountAcc, in [0, 1]; None of a judge that doesn't count
    frames: Mapping[str, Sequence[int]]  # noun → detected count per frame; empty where the video couldn't be read
    unique: Mapping[str, int]  # noun → objects of the whole clip; empty where they weren't tracked
    evaluation: Mapping[str, Any]  # the judge's row

    def detected(self, noun: str) -> int | None:
        """The commonest count over the frames."""
        frames = self.frames.get(noun)
        return Counter(frames).most_common(1)[0][0] if frames else None


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """One video of the page."""

    row: Mapping[str, Any]
    problem: str | None  # "missing", "unreadable: …"; None when the video is there, and nobody failed to read it
    verdicts: Mapping[str, Verdict]  # by judge
    clip_score: float | None  # mean cosine of prompt and frames, times 100
    temporal_consistency: float | None  # mean cosine of neighbouring frames


@dataclass(frozen=True, kw_only=True)
class Group:
    """All clips of one prompt: its samples one after the other, in each the plain clips first, attempts in a row."""

    prompt: str  # as it was asked for
    id: str | None
    targets: Sequence[tuple[str, int]]  # noun, asked count
    clips: Sequence[ShownClip]


def shown_clips(store: Store, evidence: Evidence, places: Int[np.ndarray, " k"]) -> list[ShownClip]:
    """These clips of an output, in the order of the page."""
    clips = evidence.clips
    rows = python_rows(rows_of(store, clips, places).drop_columns(["spans"]))
    judged: dict[str, dict[str, Mapping[str, Any]]] = {}
    for own in evidence.judges:
        for key, evaluation in verdicts_of(store, own.judge, clips, places).items():
            judged.setdefault(key, {})[own.judge] = evaluation
    videos = _videos(store, [row["file_name"] for row in rows])
    shown = [_clip(row, judged.get(row["key"], {}), there=row["file_name"] in videos) for row in rows]
    return sorted(shown, key=_place)


def _videos(store: Store, names: Sequence[str]) -> set[str]:
    """Those of these files that are there."""

    def there(name: str) -> bool:
        try:
            store.files.stat(name)
        except FileNotFoundError:
            return False
        return True

    with ThreadPoolExecutor(store.files.readers) as readers:
        return {name for name, found in zip(names, readers.map(there, names), strict=True) if found}


def _clip(row: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]], there: bool) -> ShownClip:
    problems = [evaluation["problem"] for evaluation in evaluations.values()]
    return ShownClip(
        row=row,
        problem=next(filter(None, problems), None) if there else MISSING,
        verdicts={judge: _verdict(evaluation) for judge, evaluation in evaluations.items()},
        clip_score=_measured(evaluations, "clip_score"),
        temporal_consistency=_measured(evaluations, "temporal_consistency"),
    )


def _verdict(evaluation: Mapping[str, Any]) -> Verdict:
    return Verdict(
        accuracy=evaluation["count_accuracy"],
        frames={noun["noun"]: noun["frames"] for noun in evaluation["detected"] or [] if noun["frames"]},
        unique={noun["noun"]: noun["count"] for noun in evaluation["unique"] or []},
        evaluation=evaluation,
    )


def _measured(evaluations: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    """What the first judge that measured it says."""
    values = (evaluation[name] for evaluation in evaluations.values())
    return next((value for value in values if value is not None and math.isfinite(value)), None)


def groups_of(clips: Iterable[ShownClip]) -> list[Group]:
    """The prompts, each with its clips; in the clips' order."""
    gathered: dict[tuple[Any, ...], list[ShownClip]] = {}
    for clip in clips:
        gathered.setdefault(prompt_key(clip.row), []).append(clip)
    return [
        Group(prompt=prompt, id=id, targets=targets, clips=members)
        for (id, prompt, _, targets), members in gathered.items()
    ]


def asked_prompt(row: Mapping[str, Any]) -> str:
    """The prompt of the set, before a strategy rewrote it."""
    prompt: str = row["original_prompt"] or row["prompt"]
    return prompt


def targets_of(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Noun and asked count, in the order of the prompt."""
    return [(target["noun"], target["count"]) for target in row["targets"]]


def prompt_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What clips of one prompt share."""
    return row["id"], asked_prompt(row), row["negative_prompt"], tuple(targets_of(row))


def _place(clip: ShownClip) -> tuple[Any, ...]:
    """By id, as people count (a2 before a10), then prompt; within a prompt by sample, the baseline first."""
    row = clip.row
    id = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", row["id"] or "")]
    strategy = row["strategy"] != "baseline", row["strategy"], row["chain"] or ""
    return (
        *(row["id"] is None, id, asked_prompt(row), row["negative_prompt"] or "", targets_of(row)),
        *(row["sample"] or 0, *strategy, row["attempt"] or 0, row["seed"], row["key"]),
    )
