"""Evaluation: verdicts beside the rows, a missing video scores 0, nothing is judged twice."""

from pathlib import Path

import numpy as np
import pytest

from cluster.evaluate import Verdict, accuracy_by_strategy, evaluate, shown_count
from cluster.rows import row_key
from cluster.store import Store
from numina.errors import InputError
from numina.prompts import Target
from pipelines.judges import ExactCounter
from pipelines.testbed.world import clips
from pipelines.video import encode_mp4


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    """Three rows of the world's own videos: as asked, one object too many asked, and a video that is gone."""
    store = Store(str(tmp_path / "out"))
    store.open_run({})
    prompts, videos = clips(3, 0)
    for index, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        targets = [Target(target.noun, target.count + (index == 1)) for target in prompt.targets]
        key = row_key(
            prompt=prompt.text,
            negative_prompt=None,
            targets=targets,
            seed=index,
            config={},
            model_revision="",
            algorithm_version=1,
        )
        name, digest = store.put_video(key, encode_mp4(video, fps=8, crf=18))
        store.commit(
            {
                "key": key,
                "file_name": name,
                "video_sha256": digest,
                "prompt": prompt.text,
                "targets": targets,
                "strategy": ["right", "wrong", "gone"][index],
                "seed": index,
                "sample": 0,
            }
        )
        if index == 2:
            (tmp_path / "out" / name).unlink()
    return store


class CountingJudge(ExactCounter):
    """Counts how often it is asked."""

    calls = 0

    def count(self, video, prompt, targets):
        self.calls += 1
        return super().count(video, prompt, targets)


def test_verdicts_are_true_and_kept(dataset: Store) -> None:
    """The committed mp4 counts as its scene does; a missing video scores 0; a second run asks no judge."""
    judge = CountingJudge()
    verdicts = evaluate(dataset, judge)
    assert accuracy_by_strategy(verdicts) == {"right": 1.0, "wrong": 0.0, "gone": 0.0}
    by_strategy = {verdict.strategy: verdict for verdict in verdicts}
    right = by_strategy["right"]
    assert right.detected == tuple((count,) * 17 for count in right.asked)
    assert by_strategy["gone"].detected is None
    assert judge.calls == 2
    assert evaluate(dataset, judge) == verdicts
    assert judge.calls == 2


def test_the_counter_refuses_what_its_world_lacks() -> None:
    """Cats aren't counted as shapes."""
    with pytest.raises(InputError, match="judge this dataset with a detector"):
        ExactCounter().count(np.zeros((1, 8, 8, 3), np.uint8), "three cats", [Target("cats", 3)])


def test_shown_counts_say_when_frames_disagree() -> None:
    """One number where all frames agree, else the commonest and its share."""
    assert shown_count([3, 3, 3]) == "3"
    assert shown_count([3, 2, 3]) == "3 (2/3)"


def test_accuracy_is_a_mean_per_strategy() -> None:
    """Strategies are compared side by side."""

    def verdict(strategy: str, accuracy: float) -> Verdict:
        return Verdict(
            key="",
            prompt="",
            strategy=strategy,
            sample=0,
            guided=False,
            nouns=(),
            asked=(),
            identified=None,
            detected=None,
            count_accuracy=accuracy,
        )

    verdicts = [verdict("numina", 1.0), verdict("baseline", 0.0), verdict("numina", 0.5)]
    assert accuracy_by_strategy(verdicts) == {"baseline": 0.0, "numina": 0.75}
