"""The exact counter under the judges' contract."""

from dataclasses import replace

import numpy as np
import pytest

from numina.errors import InputError
from numina.prompts.targets import Target
from pipelines.judges import Case, JudgeConfig, inspect_judge, load_judge
from pipelines.judges.counter import ExactCounter
from pipelines.testbed.world import clips


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Clips of the world, each with its true counts asked."""
    prompts, videos = clips(3, 0)
    return [
        Case(
            video=np.asarray(video),
            prompt=prompt.text,
            targets=tuple(Target(target.noun, target.count) for target in prompt.targets),
        )
        for prompt, video in zip(prompts, videos, strict=True)
    ]


def test_counts_and_unique_objects_are_the_scene_s(cases: list[Case]) -> None:
    """In every judged frame what the scene has, and over the clip as many objects as it draws, however they move."""
    judge = load_judge(JudgeConfig(kind="counter", name="counter", every=2, tracks=True))
    for case, judged in zip(cases, judge.judge(cases), strict=True):
        asked = tuple(target.count for target in case.targets)
        assert judged.detected is not None
        np.testing.assert_array_equal(judged.detected, np.tile(asked, (9, 1)))
        assert judged.unique == asked
        np.testing.assert_array_equal(judged.detected, ExactCounter().count(case.video, case.prompt, case.targets)[::2])


def test_settings_are_what_decides() -> None:
    """Frames and tracks; batch and device decide nothing."""
    config = JudgeConfig(kind="counter", name="other", every=3, batch=1, device="cpu")
    assert load_judge(config).settings == {"kind": "counter", "every": 3, "tracks": False}
    assert inspect_judge(config) == {"kind": "counter"}


def test_nothing_to_judge(cases: list[Case]) -> None:
    """No cases have no judgements; a clip without frames has no counts."""
    assert ExactCounter().judge([]) == []
    [judged] = ExactCounter().judge([replace(cases[0], video=cases[0].video[:0])])
    assert judged.detected is not None
    assert judged.detected.shape == (0, len(cases[0].targets))


def test_it_refuses_what_its_world_lacks(cases: list[Case]) -> None:
    """Before it counts anything."""
    cats = Case(video=cases[0].video, prompt="three cats", targets=(Target("cats", 3),))
    with pytest.raises(InputError, match="not cats of 'three cats'; use a detector as the judge"):
        ExactCounter().judge([*cases, cats])
