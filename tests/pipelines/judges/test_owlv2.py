"""OWLv2 as a judge, on a tiny random model of transformers' own class."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from numina.errors import InputError
from numina.prompts.targets import Target
from pipelines.judges import Case, Judge
from tests.pipelines.judges.conftest import CASES, a_video


@pytest.fixture(scope="module")
def judge(load: Callable[..., Judge]) -> Any:
    return load("owlv2")


def test_its_boxes_are_those_of_transformers_forward(judge: Any) -> None:
    """Text once per clip and all frames together: scores, nouns and boxes of forward and its post-processing."""
    case = CASES[0]
    frames = torch.from_numpy(case.video).permute(0, 3, 1, 2)
    texts = [f"a photo of a {target.noun}" for target in case.targets]
    pixels = judge.prepare(frames)
    with torch.inference_mode():
        text = judge.read([target.noun for target in case.targets])
        found = judge.propose(frames, [text] * len(frames))
        inputs = judge.processor(text=[texts] * len(frames), return_tensors="pt")
        output = judge.model(pixel_values=pixels, **inputs)
    kept = judge.processor.post_process_grounded_object_detection(
        output, threshold=0.0, target_sizes=[case.video.shape[1:3]] * len(frames)
    )
    for index, frame in enumerate(kept):
        np.testing.assert_allclose(found.scores[index], frame["scores"], atol=1e-5)
        np.testing.assert_array_equal(found.nouns[index], frame["labels"])
        np.testing.assert_allclose(found.boxes[index], frame["boxes"], atol=1e-3)


def test_half_precision_counts_the_same(judge: Any, load: Callable[..., Judge]) -> None:
    """Texts and heads stay in float32: of 151 boxes, many of them near the threshold, at most one decides otherwise."""
    half: Any = load("owlv2", dtype="float16")
    assert half.model.owlv2.vision_model.dtype == torch.float16
    both = zip(half.judge(CASES), judge.judge(CASES), strict=True)
    assert sum(np.abs(one.detected - other.detected).sum() for one, other in both) <= 1


@pytest.mark.parametrize("batch", [1, 32])
def test_a_pass_s_size_changes_nothing(batch: int, judge: Any, load: Callable[..., Judge]) -> None:
    """Cases with other numbers of nouns share passes, and a noun that isn't theirs counts nothing."""
    together = load("owlv2", batch=batch).judge(CASES)
    for case, judged in zip(CASES, together, strict=True):
        [alone] = judge.judge([case])
        np.testing.assert_array_equal(judged.detected, alone.detected)
    assert sum(judged.detected.sum() for judged in together) > 0


def test_its_one_threshold_decides(judge: Any, load: Callable[..., Judge]) -> None:
    """A box counts above box_threshold; there is no other."""
    counts = [
        load("owlv2", box_threshold=threshold, text_threshold=0.9).judge(CASES[:1])[0].detected.sum()
        for threshold in (0.1, 0.5, 1.0)
    ]
    assert counts[0] > counts[1] > counts[2] == 0
    assert "text_threshold" not in judge.settings


def test_a_noun_that_can_t_be_read_is_an_error(judge: Any) -> None:
    """Nothing to look for, nothing known of it, or more than the model reads."""
    for noun, message in (("", "has no word"), ("42", "has no word"), ("a" * 40, "is 51 tokens, but OWLv2 reads 32")):
        case = Case(video=a_video(1), prompt="it", targets=(Target("cats", 1), Target(noun, 1)))
        with pytest.raises(InputError, match=message):
            judge.judge([case])


def test_a_case_without_targets_is_an_error(judge: Any) -> None:
    """A share of no nouns is no score."""
    with pytest.raises(InputError, match="'a sunset' has no targets, but owlv2 counts nouns"):
        judge.judge([Case(video=a_video(1), prompt="a sunset", targets=())])
