"""The summary by columns equals the one clip by clip."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from cluster.dataset.store import Store
from cluster.evaluation.clips import read_clips
from cluster.evaluation.judged import read_judged
from cluster.evaluation.kept import kept_by, strategies_made
from cluster.evaluation.outcomes import outcomes
from cluster.evaluation.summary import summarize
from cluster.job.acceptance import Acceptance
from cluster.job.strategy import ACCEPTED, BEST, Strategy, strategy_record
from cluster.rows import python_rows
from numina.metrics import Interval
from tests.cluster.evaluation import oracle

NOUNS = ("cats", "dogs", "red 'cars'", 'a "b', "鸟")
STRATEGIES = (
    Strategy(name="baseline", base="baseline"),
    Strategy(name="numina", base="numina"),
    Strategy(name="numina+seed_search", base="numina", strengths=(1.0, 1.0, 1.0), select=BEST),
    Strategy(name="numina+verified", base="numina", strengths=(1.0, 1.5, 2.25), select=ACCEPTED),
)


def random_output(root: Path, seed: int) -> Store:
    """Clips of all strategies, of which some weren't judged, are missing, plain, or of an older form."""
    chance = np.random.default_rng(seed)
    store = Store(str(root), single_writer=True)
    info = {"strategies": list(map(strategy_record, STRATEGIES)), "verify": {"accept": 0.7}}
    store.open_run({}, info=info if seed % 3 else {})
    for number in range(int(chance.integers(3, 9))):
        nouns = chance.choice(NOUNS, size=int(chance.integers(0, 4)), replace=False).tolist()
        targets = [{"noun": noun, "count": int(chance.integers(1, 5))} for noun in nouns]
        prompt = f"{'three' if number % 2 else 'Drei'} {nouns} {number % 5}"
        for sample in range(int(chance.integers(1, 3))):
            for base, tries in (("baseline", ((0, 1.0),)), ("numina", ((0, 1.0), (1, 1.0), (2, 1.0), (1, 1.5)))):
                for attempt, strength in tries[: int(chance.integers(0, 5))]:
                    put(store, chance, number, prompt, targets, sample, base, attempt, strength)
    return store


def put(store: Store, chance: Any, number: int, prompt: str, targets: Any, sample: int, *made: Any) -> None:
    base, attempt, strength = made
    key = hashlib.blake2b(repr((number, prompt, sample, made)).encode(), digest_size=16).hexdigest()
    old = chance.random() < 0.1
    counts = [int(count) for count in chance.integers(0, 5, len(targets))]
    row: dict[str, Any] = {
        "key": key,
        "id": f"p{number}" if number % 3 else None,
        "file_name": f"videos/{key}.mp4",
        "video_sha256": "0" * 64,
        "prompt": prompt + (" rewritten" if number == 4 else ""),
        "original_prompt": prompt if number == 4 else None,
        "targets": targets,
        "strategy": base,
        "sample": None if old and sample == 0 else sample,
        "attempt": None if old and attempt == 0 else attempt,
        "strength": None if old and strength == 1 else strength,
        "chain": None if old else hashlib.blake2b(repr((number, sample, base)).encode(), digest_size=16).hexdigest(),
        "seed": number * 10 + sample,
        "model": ("one", "other", None)[number % 3],
        "timings": {"identify": chance.random(), "denoise": chance.random(), "layout": 3.0} if not old else None,
        "gpu_seconds": chance.random() if chance.random() < 0.5 else None,
        "ulysses": int(chance.integers(1, 3)),
        "guided": base != "baseline" and attempt > 0,
    }
    if base == "numina" and targets:
        row["identified"] = [
            {"noun": own["noun"], "frames": [3, 3], "count": count} for own, count in zip(targets, counts, strict=True)
        ]
        row["confidences"] = [chance.choice([0.0, 0.3, 0.5, 0.79, 0.8, 1.0]) for _ in targets]
    store.commit(row)
    for judge, every in (("counter", 1), ("sparse", 2)):
        if chance.random() < 0.85:
            store.put_evaluation(judge, key, a_verdict(chance, targets, every))
    if chance.random() < 0.5:
        store.put_evaluation("clip", key, {"clip_score": 30 * chance.random(), "temporal_consistency": 0.9})


def a_verdict(chance: Any, targets: Any, every: int) -> dict[str, Any]:
    settings = f'{{"every":{every}}}' if every > 1 else None
    if chance.random() < 0.1:
        problem = {"problem": "missing", "detected": None, "count_accuracy": 0.0 if targets else None}
        return problem | {"settings": settings}
    slips = [[int(slip) for slip in chance.choice([0, 0, 0, 1, -1], 5)[::every]] for _ in targets]
    detected = [
        {"noun": own["noun"], "frames": [own["count"] + slip for slip in slipped]}
        for own, slipped in zip(targets, slips, strict=True)
    ]
    right = [[count == own["count"] for count in noun["frames"]] for own, noun in zip(targets, detected, strict=True)]
    return {
        "settings": settings,
        "detected": detected if targets else None,
        "count_accuracy": float(np.mean(right)) if targets else None,
    }


def in_order(values: Any, *_: Any) -> Interval:
    """An interval that takes no time, and depends on every value and its place."""
    own = np.asarray(values, np.float64)
    return Interval(mean=float(own.mean()), low=float(own @ np.arange(len(own))), high=float(own[0]))


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_summary_clip_by_clip(tmp_path: Path, seed: int) -> None:
    """Every figure of every group, paired difference and band, of random outputs; also from segments."""
    store = random_output(tmp_path, seed)
    with patch("numina.metrics.bootstrap_interval", in_order):
        expected, found = asdict(oracle.summarize(store)), asdict(summarize(store))
        store.compact()
        assert asdict(summarize(store)) == found
    told, agreed = found.pop("agreement"), expected.pop("agreement")
    assert found == expected
    assert found["judges"][0]["strategies"], "there is something to compare"
    assert told == pytest.approx(agreed)  # a mean of clips in no order


def test_its_intervals_equal_those_clip_by_clip(tmp_path: Path) -> None:
    """With the real bootstrap, which depends on the order of prompts."""
    store = random_output(tmp_path, 9)
    with patch("numina.metrics.bootstrap_interval.__defaults__", (0.95, 100, 0)):
        assert asdict(summarize(store))["judges"] == asdict(oracle.summarize(store))["judges"]


@pytest.mark.parametrize("seed", range(4))
def test_clips_are_kept_as_outcomes_say(tmp_path: Path, seed: int) -> None:
    """The same clip, attempts, cost and decision of each sample, in the same order."""
    store = random_output(tmp_path, seed)
    rows, clips, rule = python_rows(store.rows()), read_clips(store), Acceptance.recorded(store)
    verdicts = {row["key"]: row for row in store.evaluations("counter").to_pylist()}
    own = read_judged(store, "counter", clips)
    for strategy in strategies_made(store, clips):
        kept = kept_by(strategy, clips, own.accuracy, own.failed, rule)
        made = outcomes(strategy, rows, verdicts, rule)
        assert clips.texts(kept.clip) == [outcome.kept["key"] for outcome in made]
        assert kept.cost.tolist() == [outcome.cost for outcome in made]
        assert kept.attempts.tolist() == [len(outcome.rows) for outcome in made]
        decided = [(outcome.accepted is True, outcome.accepted is False) for outcome in made]
        assert list(zip(kept.accepted.tolist(), kept.rejected.tolist(), strict=True)) == decided
