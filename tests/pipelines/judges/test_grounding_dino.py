"""GroundingDINO as a judge, on a tiny random model of transformers' own class."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GroundingDinoForObjectDetection

from numina.errors import InputError
from numina.prompts.targets import Target
from pipelines.judges import Case, Judge
from pipelines.judges.boxes import FrameBoxes
from tests.pipelines.judges.conftest import CASES, THRESHOLDS, a_video

BOX, TEXT = THRESHOLDS["grounding-dino"].values()


@pytest.fixture(scope="module")
def judge(load: Callable[..., Judge]) -> Any:
    return load("grounding-dino")


def theirs(judge: Any, case: Case) -> list[dict[str, Any]]:
    """What transformers makes of each frame alone: its processor, its model's forward, its post-processing."""
    caption = " . ".join(target.noun for target in case.targets) + " ."
    model = GroundingDinoForObjectDetection.from_pretrained(judge.config.path)
    found = []
    for frame in case.video:
        inputs = judge.processor(images=Image.fromarray(frame), text=caption, return_tensors="pt")
        with torch.inference_mode():
            output = model(**inputs)
        [kept] = judge.processor.post_process_grounded_object_detection(
            output, inputs["input_ids"], BOX, TEXT, target_sizes=[frame.shape[:2]]
        )
        logits = output.logits[0]
        kept["logits"] = logits[logits.sigmoid().amax(dim=-1) > BOX]
        found.append(kept)
    return found


def ours(judge: Any, case: Case) -> list[FrameBoxes]:
    """What the judge keeps of each frame, all frames together."""
    kept: list[FrameBoxes] = []
    select = judge._select
    judge._select = lambda *proposals: kept.append(select(*proposals)) or kept[-1]
    judge.judge([case])
    del judge._select
    return kept


def test_it_keeps_the_boxes_that_transformers_keeps(judge: Any) -> None:
    """The same boxes in the same pixels, each for the noun whose tokens score highest, if above text_threshold."""
    case = CASES[0]
    tokens = {0: [1], 1: [3, 4]}  # of "[CLS] cats . teddy bear . [SEP]"
    kept = 0
    for mine, frame in zip(ours(judge, case), theirs(judge, case), strict=True):
        by_noun = torch.stack([frame["logits"][:, tokens[noun]].amax(dim=-1) for noun in tokens], dim=-1)
        best, nouns = by_noun.sigmoid().amax(dim=-1), by_noun.argmax(dim=-1)
        counted = best > TEXT
        np.testing.assert_allclose(mine.boxes, frame["boxes"][counted], atol=0.05)
        np.testing.assert_array_equal(mine.nouns, nouns[counted])
        np.testing.assert_allclose(mine.scores, best[counted], atol=1e-3)
        kept += len(mine.boxes)
    assert 0 < kept < 30 * len(case.video)


def test_thresholds_decide(load: Callable[..., Judge]) -> None:
    """A higher one counts fewer boxes; one of 1 none; without the text's threshold every kept box has its noun."""

    def counted(**changes: Any) -> int:
        [judged] = load("grounding-dino", **changes).judge(CASES[:1])
        assert judged.detected is not None
        return int(judged.detected.sum())

    assert counted() > counted(box_threshold=0.7) > counted(box_threshold=1.0) == 0
    assert counted(text_threshold=0.0) >= counted() > counted(text_threshold=0.6) > 0


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_a_pass_s_size_changes_nothing(batch: int, judge: Any, load: Callable[..., Judge]) -> None:
    """Frames of several cases, captions and sizes share passes, and are judged as each case alone, frame by frame."""
    together = load("grounding-dino", batch=batch).judge(CASES)
    for case, judged in zip(CASES, together, strict=True):
        [alone] = judge.judge([case])
        np.testing.assert_array_equal(judged.detected, alone.detected)
        assert judged.detected is not None
        assert judged.detected.shape == (len(case.video), len(case.targets))


def test_a_caption_is_encoded_once(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many frames and passes it has; and captions of other lengths beside it don't change what is read."""
    asked: list[int] = []
    forward = judge.texts.backbone.forward

    def counting(tokens: torch.Tensor, *more: Any, **options: Any) -> Any:
        asked.append(len(tokens))
        return forward(tokens, *more, **options)

    monkeypatch.setattr(judge.texts.backbone, "forward", counting)
    judge.texts.known.clear()
    judge.judge(CASES)
    assert sum(asked) == len(CASES)


def test_every_kth_frame_is_judged(judge: Any, load: Callable[..., Judge]) -> None:
    """The first, and each k-th after it; as when all are."""
    for every in (2, 4, 99):
        for all_frames, some in zip(judge.judge(CASES), load("grounding-dino", every=every).judge(CASES), strict=True):
            np.testing.assert_array_equal(some.detected, all_frames.detected[::every])


def test_duplicates_and_tracks(judge: Any, load: Callable[..., Judge]) -> None:
    """Overlapping boxes of a noun are one object; a clip that stands still has the objects of its frames."""
    still = replace(CASES[0], video=CASES[0].video[:1].repeat(4, axis=0))
    [plain], [once] = (judge.judge([still]), load("grounding-dino", duplicates=0.3, tracks=True).judge([still]))
    assert plain.unique is None
    assert once.detected.sum() < plain.detected.sum()
    assert once.unique == tuple(once.detected[0])


def test_half_precision_counts_alike(judge: Any, load: Callable[..., Judge]) -> None:
    """Of the boxes, few are so near a threshold that float16 decides otherwise."""
    for full, half in zip(judge.judge(CASES), load("grounding-dino", dtype="float16").judge(CASES), strict=True):
        assert np.abs(full.detected - half.detected).sum() <= 0.05 * full.detected.sum()


@pytest.mark.parametrize("noun", ["zebra", "", ".", "?!", "猫"])
def test_a_noun_without_a_known_word_is_an_error(noun: str, judge: Any) -> None:
    """Not zero objects: the judge can't know. Nothing is judged before all nouns are read."""
    unknown = Case(video=a_video(1), prompt="it", targets=(Target("cats", 1), Target(noun, 1)))
    with pytest.raises(InputError, match=r"has no word that grounding-dino of .* knows.*judge with another detector"):
        judge.judge([*CASES, unknown])


def test_a_dot_in_a_noun_tears_nothing(judge: Any) -> None:
    """The model reads a dot as the end of a phrase."""
    assert judge.read(["Teddy.Bear", "cats"]) == judge.read(["teddy bear", "cats"])


def test_nouns_beyond_the_model_s_text_are_an_error(judge: Any) -> None:
    """A caption that is cut would count nothing of the last nouns."""
    with pytest.raises(InputError, match="tokens, but GroundingDINO reads 256; ask for fewer targets"):
        judge.read(["teddy bear"] * 100)


@pytest.mark.parametrize("cases", [(), (replace(CASES[0], video=a_video(0)),)])
def test_nothing_to_judge(cases: Sequence[Case], judge: Any) -> None:
    """No cases have no judgements; a clip without frames has no counts."""
    judged = judge.judge(cases)
    assert [found.detected.shape for found in judged] == [(0, 2)] * len(cases)


def test_settings_are_what_decides(judge: Any, load: Callable[..., Judge]) -> None:
    """Weights, thresholds, frames and arithmetic; batch decides nothing."""
    assert load("grounding-dino", batch=7).settings == judge.settings
    assert set(judge.settings) == {
        "kind",
        "weights",
        "dtype",
        "box_threshold",
        "text_threshold",
        "every",
        "duplicates",
        "tracks",
    }
    assert load("grounding-dino", every=2).settings["every"] == 2
