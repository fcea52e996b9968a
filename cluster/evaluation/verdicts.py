"""Verdicts: what a judge says of rows' videos, as it is kept in `evaluations/{judge}/`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numina.errors import InputError, OutputError
from pipelines.judges import Judge, JudgeConfig

if TYPE_CHECKING:
    from cluster.dataset.store import Store
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cluster.dataset.store import Store
from cluster.keys import canonical_json
from numina.metrics import count_accuracy
from numina.prompts.targets import Target
from pipelines.judges import Case, Judgement
from pipelines.judges.thumbnail import thumbnail
from pipelines.models.registry import place_free
from pipelines.video.mp4 import decode_mp4

if TYPE_CHECKING:
    from cluster.dataset.store import Store

COPIED = ("chain", "attempt", "strength")  # columns of the row that its verdict has too

Row = Mapping[str, Any]


def verdicts_of(store: Store, judge: Judge, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A judge's verdicts on rows, in order. A video that is missing or can't be read scores 0, and is named; a row that
    asks for no count has no CountAcc.

    Raises InputError for a noun that the judge can't know, naming the row.
    """
    began = time.perf_counter()
    cases, problems, seen = dict[int, Case](), dict[int, str](), dict[int, np.ndarray]()
    for place, row in enumerate(rows):
        try:
            video = decode_mp4(store.read(row["file_name"]))
        except FileNotFoundError:
            problems[place] = "missing"
        except InputError as error:
            problems[place] = f"unreadable: {error}"
        else:
            targets = tuple(Target(**target) for target in row["targets"])
            seen[place] = thumbnail(video)
            if judge.config.counts and not targets:
                continue  # there is nothing to count
            cases[place] = Case(video=video, prompt=row["original_prompt"] or row["prompt"], targets=targets)
    judgements = dict(zip(cases, judge.judge(list(cases.values())), strict=True)) if cases else {}
    seconds = (time.perf_counter() - began) / max(1, len(rows))
    settings = canonical_json(judge.settings)
    return [
        {
            "key": row["key"],
            "judge": judge.config.name,
            "settings": settings,
            "seconds": seconds,
            **{name: row[name] for name in COPIED},
            **(
                _failed(judge, row, problems[place])
                if place in problems
                else _judged(row, judgements.get(place, _NOTHING_ASKED), seen[place])
            ),
        }
        for place, row in enumerate(rows)
    ]


def check_settings(store: Store, judge: Judge, kept: Sequence[Row]) -> None:
    """Raises OutputError where an output has verdicts of a judge of this name, but of other settings."""
    settings = canonical_json(judge.settings)
    if other := next((row["settings"] for row in kept if row["settings"] not in (None, settings)), None):
        raise OutputError(
            f"{store.root}/evaluations/{judge.config.name} was judged with {other}, but now it is {settings}:"
            " use the same settings again, or another name with name=…"
        )


_NOTHING_ASKED = Judgement(detected=None)


def _failed(judge: Judge, row: Row, problem: str) -> dict[str, Any]:
    counts = judge.config.counts
    looks = None if counts else 0.0
    return {
        "problem": problem,
        "detected": None,
        "count_accuracy": 0.0 if counts and row["targets"] else None,
        "clip_score": looks,
        "temporal_consistency": looks,
    }


def _judged(row: Row, judgement: Judgement, seen: np.ndarray) -> dict[str, Any]:
    nouns = [target["noun"] for target in row["targets"]]
    asked = [target["count"] for target in row["targets"]]
    detected, unique = judgement.detected, judgement.unique
    return {
        "problem": None,
        "detected": None
        if detected is None
        else [
            {"noun": noun, "frames": frames.tolist()}
            for noun, frames in zip(nouns, np.asarray(detected).T, strict=True)
        ],
        "count_accuracy": None if detected is None else count_accuracy(detected, asked),
        "unique": None
        if unique is None
        else [{"noun": noun, "count": int(count)} for noun, count in zip(nouns, unique, strict=True)],
        "clip_score": judgement.clip_score,
        "temporal_consistency": judgement.temporal_consistency,
        "embedding": list((seen if judgement.embedding is None else judgement.embedding).astype(np.float16)),
    }


def placed(config: JudgeConfig, gpus: float) -> JudgeConfig:
    """The judge as another process finds its weights, on the device that is reserved for it."""
    path = config.path and place_free(config.path)
    return replace(config, path=path, device="cuda" if gpus else "cpu")


def judge_rows(store: Store, judge: Judge, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A judge's verdicts on rows, kept in the output."""
    verdicts = verdicts_of(store, judge, rows)
    for verdict in verdicts:
        store.put_evaluation(judge.config.name, verdict["key"], verdict)
    return verdicts
