"""Evaluation: a judge counts every video of a dataset; its verdicts lie beside the rows, never in them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.store import Store
from numina.errors import InputError
from numina.metrics import count_accuracy
from numina.prompts import Target
from pipelines.judges import Judge
from pipelines.video import decode_mp4


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One video's asked, identified and detected counts, by noun in the order of the prompt."""

    key: str
    prompt: str
    strategy: str
    sample: int
    guided: bool
    nouns: tuple[str, ...]
    asked: tuple[int, ...]
    identified: tuple[int, ...] | None  # None where nothing was identified (plain generation)
    detected: tuple[tuple[int, ...], ...] | None  # per noun and frame; None for a missing or unreadable video
    count_accuracy: float


def evaluate(
    store: Store, judge: Judge, report: Callable[[int, int], None] = lambda done, total: None
) -> list[Verdict]:
    """Judges the rows that have no verdict yet and returns the verdicts of all, in the order of the prompts.

    A video that is missing or can't be read scores 0, and its verdict has no detected counts.
    """
    rows = store.rows().to_pylist()
    known = {verdict["key"]: verdict for verdict in store.evaluations(judge.name).to_pylist()}
    for done, row in enumerate(rows):
        report(done, len(rows))
        if row["key"] not in known:
            known[row["key"]] = _judge(store, judge, row)
            store.put_evaluation(judge.name, row["key"], known[row["key"]])
    report(len(rows), len(rows))
    rows.sort(key=lambda row: (row["prompt"], row["sample"], row["strategy"]))
    return [_verdict(row, known[row["key"]]) for row in rows]


def _judge(store: Store, judge: Judge, row: dict[str, Any]) -> dict[str, Any]:
    targets = [Target(**target) for target in row["targets"]]
    try:
        video = decode_mp4(store.read(row["file_name"]))
    except (FileNotFoundError, InputError):
        return {"key": row["key"], "judge": judge.name, "detected": None, "count_accuracy": 0.0}
    detected = judge.count(video, row["prompt"], targets)
    return {
        "key": row["key"],
        "judge": judge.name,
        "detected": [
            {"noun": target.noun, "frames": counts.tolist()}
            for target, counts in zip(targets, np.asarray(detected).T, strict=True)
        ],
        "count_accuracy": count_accuracy(detected, [target.count for target in targets]),
    }


def _verdict(row: dict[str, Any], judged: dict[str, Any]) -> Verdict:
    identified, detected = row["identified"], judged["detected"]
    return Verdict(
        key=row["key"],
        prompt=row["prompt"],
        strategy=row["strategy"],
        sample=row["sample"],
        guided=bool(row["guided"]),
        nouns=tuple(target["noun"] for target in row["targets"]),
        asked=tuple(target["count"] for target in row["targets"]),
        identified=tuple(noun["count"] for noun in identified) if identified else None,
        detected=tuple(tuple(noun["frames"]) for noun in detected) if detected else None,
        count_accuracy=judged["count_accuracy"],
    )


def accuracy_by_strategy(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Mean CountAcc per strategy, in [0, 1]."""
    scores: dict[str, list[float]] = {}
    for verdict in verdicts:
        scores.setdefault(verdict.strategy, []).append(verdict.count_accuracy)
    return {strategy: sum(values) / len(values) for strategy, values in sorted(scores.items())}


def shown_count(frames: Sequence[int]) -> str:
    """A noun's detected counts in few characters: `3` in all frames, else the commonest with the share it holds."""
    commonest, times = Counter(frames).most_common(1)[0]
    return str(commonest) if times == len(frames) else f"{commonest} ({times}/{len(frames)})"
