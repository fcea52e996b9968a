"""How often identification read the count that a judge sees, by its confidence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.dataset.store import Store
from cluster.evaluation.clips import read_clips
from cluster.evaluation.judged import read_judged
from cluster.evaluation.readings import Band, reading_bands


def bands(root: Path, rows: Sequence[Mapping[str, Any]], verdicts: Mapping[str, Mapping[str, Any]]) -> list[Band]:
    """Those of an output; keys are names."""
    store = Store(str(root))
    store.open_run({})
    names = sorted({row["key"] for row in rows} | verdicts.keys())
    keys = {name: f"{place:032x}" for place, name in enumerate(names)}
    files = {"file_name": "videos/one.mp4", "video_sha256": "0" * 64, "strategy": "numina"}
    for row in rows:
        store.commit({**row, **files, "key": keys[row["key"]]})
    for name, verdict in verdicts.items():
        store.put_evaluation("counter", keys[name], verdict)
    clips = read_clips(store)
    return reading_bands(clips, read_judged(store, "counter", clips))


def a_row(key: str, seed: int, counts: list[int], confidences: list[float] | None, *, guided: bool) -> dict[str, Any]:
    nouns = ("cats", "dogs")
    return {
        "key": key,
        "prompt": "two cats and a dog",
        "negative_prompt": None,
        "seed": seed,
        "targets": [{"noun": "cats", "count": 2}, {"noun": "dogs", "count": 1}],
        "guided": guided,
        "identified": [
            {"noun": noun, "frames": [count], "count": count} for noun, count in zip(nouns, counts, strict=True)
        ],
        "confidences": confidences,
    }


def a_verdict(cats: list[int], dogs: list[int]) -> dict[str, Any]:
    return {"detected": [{"noun": "cats", "frames": cats}, {"noun": "dogs", "frames": dogs}]}


def test_a_reading_is_compared_with_its_plain_clip(tmp_path: Path) -> None:
    """A guided clip with the baseline's of the same seed, one that went on with itself; never with guided counts."""
    rows = [
        a_row("plain", 1, [0, 0], None, guided=False) | {"identified": None},
        a_row("guided", 1, [3, 1], [0.4, 0.9], guided=True),
        a_row("right", 2, [2, 1], [0.6, 1.0], guided=False),
        a_row("alone", 3, [3, 1], [0.1, 0.9], guided=True),  # nobody made its plain clip
    ]
    verdicts = {
        "plain": a_verdict([3, 3, 2], [2, 2, 2]),
        "guided": a_verdict([2, 2, 2], [1, 1, 1]),
        "right": a_verdict([2, 2, 2], [1, 1, 1]),
        "alone": a_verdict([3, 3, 3], [1, 1, 1]),
    }
    assert bands(tmp_path, rows, verdicts) == [
        Band(least=0.0, most=0.5, nouns=1, right=1.0),  # 3 cats
        Band(least=0.5, most=0.8, nouns=1, right=1.0),
        Band(least=0.8, most=1.0, nouns=2, right=0.5),  # 1 dog of 2, and the one of the clip that was right
    ]


def test_where_no_confidence_is_told_there_are_no_bands(tmp_path: Path) -> None:
    """Nor where nobody could read the video."""
    row = a_row("right", 2, [2, 1], None, guided=False)
    assert bands(tmp_path / "one", [row], {"right": a_verdict([2], [1])}) == []
    assert bands(tmp_path / "other", [row | {"confidences": [0.5, 0.5]}], {"right": {"detected": None}}) == []
