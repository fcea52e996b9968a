"""CLIP as a judge, on a tiny random model of transformers' own class."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from pipelines.judges import Judge
from tests.pipelines.judges.conftest import CASES


@pytest.fixture(scope="module")
def judge(load: Callable[..., Judge]) -> Any:
    return load("clip")


def test_scores_are_of_clip_s_own_embeddings(judge: Any) -> None:
    """The mean cosine × 100 is what CLIP's forward says, over its logit scale; consistency is over neighbours."""
    case = CASES[0]
    inputs = judge.processor(text=[case.prompt], images=list(case.video), return_tensors="pt")
    with torch.inference_mode():
        output = judge.model(**inputs)
    logits = output.logits_per_image / judge.model.logit_scale.exp().item()
    frames = output.image_embeds
    [judged] = judge.judge([case])
    assert judged.detected is None
    assert judged.clip_score == pytest.approx(100 * logits.mean().item(), abs=0.1)  # pixels: to a byte's level
    expected = cosine_similarity(frames[1:], frames[:-1]).mean().item()
    assert judged.temporal_consistency == pytest.approx(expected, abs=1e-3)


def test_passes_and_cases_change_nothing(judge: Any, load: Callable[..., Judge]) -> None:
    """Frames of several cases in one pass, and every second alone, score as each case by itself."""
    for together, case in zip(load("clip", batch=32).judge(CASES), CASES, strict=True):
        [alone] = judge.judge([case])
        assert together.clip_score == pytest.approx(alone.clip_score, abs=1e-4)
        assert together.temporal_consistency == pytest.approx(alone.temporal_consistency, abs=1e-6)
    [second] = load("clip", every=2).judge(CASES[:1])
    [thinned] = judge.judge([replace(CASES[0], video=CASES[0].video[::2])])
    assert second.clip_score == pytest.approx(thinned.clip_score, abs=1e-4)


def test_a_clip_that_stands_still_is_consistent(judge: Any) -> None:
    """Equal frames have cosine 1."""
    still = replace(CASES[0], video=CASES[0].video[:1].repeat(3, axis=0))
    [judged] = judge.judge([still])
    assert judged.temporal_consistency == pytest.approx(1.0, abs=1e-6)


def test_a_long_prompt_is_cut_at_77_tokens(judge: Any) -> None:
    """Its first 77 are scored, marks included."""
    short, long, longer = (" ".join("a" * length) for length in (74, 75, 300))  # a letter is a token here
    np.testing.assert_array_equal(judge.embed_text(long), judge.embed_text(longer))
    assert not np.array_equal(judge.embed_text(long), judge.embed_text(short))


def test_nothing_to_judge(judge: Any) -> None:
    """No cases have no judgements; a clip without frames has no scores."""
    assert judge.judge([]) == []
    [judged] = judge.judge([replace(CASES[0], video=CASES[0].video[:0])])
    assert judged.clip_score is judged.temporal_consistency is None
