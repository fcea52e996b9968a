"""How often identification read the count that a judge sees, by its confidence."""

from typing import Any

from cluster.evaluation.readings import Band, reading_bands


def a_row(key: str, seed: int, counts: list[int], confidences: list[float] | None, *, guided: bool) -> dict[str, Any]:
    nouns = ("cats", "dogs")
    return {
        "key": key,
        "prompt": "two cats and a dog",
        "negative_prompt": None,
        "seed": seed,
        "targets": [{"noun": "cats", "count": 2}, {"noun": "dogs", "count": 1}],
        "guided": guided,
        "identified": [{"noun": noun, "count": count} for noun, count in zip(nouns, counts, strict=True)],
        "confidences": confidences,
    }


def a_verdict(cats: list[int], dogs: list[int]) -> dict[str, Any]:
    return {"detected": [{"noun": "cats", "frames": cats}, {"noun": "dogs", "frames": dogs}]}


def test_a_reading_is_compared_with_its_plain_clip() -> None:
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
    assert reading_bands(rows, verdicts) == [
        Band(least=0.0, most=0.5, nouns=1, right=1.0),  # 3 cats
        Band(least=0.5, most=0.8, nouns=1, right=1.0),
        Band(least=0.8, most=1.0, nouns=2, right=0.5),  # 1 dog of 2, and the one of the clip that was right
    ]


def test_where_no_confidence_is_told_there_are_no_bands() -> None:
    """Nor where nobody could read the video."""
    row = a_row("right", 2, [2, 1], None, guided=False)
    assert reading_bands([row], {"right": a_verdict([2], [1])}) == []
    assert reading_bands([row | {"confidences": [0.5, 0.5]}], {"right": {"detected": None}}) == []
