"""A rank's part in generation: a batch is its clips, one bad request spoils nothing, parts of a batch go their ways."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.correct import correct_layout
from numina.errors import ConfigError, InputError, PromptError
from numina.layout import identify_layout
from numina.prompts.targets import Target
from pipelines.models.wan import WanModel
from pipelines.sampling.clip import Clip, Identified, Request
from pipelines.sampling.generate import ClipGenerator, generate
from pipelines.sampling.write import write_clips
from tests.pipelines.conftest import BATCH_TARGETS, GENERATION, NEGATIVES, PROMPTS, SEEDS
from tests.pipelines.sampling.test_denoise import some_plan

METHOD = MethodConfig(identify=IdentifyConfig(source="peaks", tokens="phrase", head="mean"))
REQUESTS = tuple(
    Request(str(number), *asked)
    for number, asked in enumerate(zip(PROMPTS, NEGATIVES, SEEDS, BATCH_TARGETS, strict=True))
)
CUT_OFF = Request("cut off", f"{'red ' * 30}circles", None, 5, (Target("circles", 3),))  # the encoder has 24 tokens


@pytest.fixture
def worker(tiny_model: WanModel) -> ClipGenerator:
    return ClipGenerator(tiny_model, GENERATION)


def assert_same_clips(found: Sequence[Clip] | None, expected: Sequence[Clip] | None) -> None:
    """Equal to the eye: float32 rounding may move a pixel by one grey level."""
    assert found is not None
    assert expected is not None
    for one, other in zip(found, expected, strict=True):
        assert one.video.shape == (GENERATION.num_frames, GENERATION.height, GENERATION.width, 3)
        assert np.abs(one.video.astype(int) - other.video).max() <= 1


def test_a_plain_batch_is_its_clips(worker: ClipGenerator) -> None:
    """Text, negative prompt, noise, video and mp4 of a clip don't depend on its batch."""
    together = worker.plain(REQUESTS)
    assert_same_clips(together, [clip for request in REQUESTS for clip in worker.plain([request]) or []])
    assert together is not None
    written = write_clips(together, GENERATION, keep_frames=False)
    assert len({clip.mp4 for clip in written}) == len(REQUESTS)
    assert all(len(clip.video) == 0 and clip.timings["write"] > 0 for clip in written)


def test_a_bad_request_has_its_error_in_its_place(worker: ClipGenerator) -> None:
    """A noun that the text encoder cuts off fails alone, wherever in the batch; the others get what they get alone."""
    expected = {request.key: worker.identify([request], METHOD)[0] for request in REQUESTS}
    for place in (0, 1, 3):
        batch = [*REQUESTS[:place], CUT_OFF, *REQUESTS[place:]]
        for request, answer in zip(batch, worker.identify(batch, METHOD), strict=True):
            if request is CUT_OFF:
                assert isinstance(answer, InputError)
                assert "circles" in str(answer)
                assert "cut off" in str(answer)
            else:
                assert isinstance(answer, Identified)
                assert answer.spans == expected[request.key].spans
                np.testing.assert_allclose(answer.capture.responses, expected[request.key].capture.responses, atol=1e-5)
    assert_same_clips(worker.finish(["2", "1"]), worker.plain([REQUESTS[2], REQUESTS[1]]))
    with pytest.raises(KeyError):
        worker.finish([CUT_OFF.key])  # never kept


def test_a_batch_of_bad_requests_runs_no_step(tiny_model: WanModel) -> None:
    """Nothing to identify: all errors come back, and the transformer isn't asked."""
    worker = ClipGenerator(tiny_model, GENERATION, progress=lambda *progress: pytest.fail("a step ran"))
    answers = worker.identify([CUT_OFF, replace(CUT_OFF, key="another")], METHOD)
    assert [type(answer) for answer in answers] == [PromptError, PromptError]


@pytest.mark.parametrize("anchor", [None, 1], ids=["free", "anchored"])
def test_parts_of_a_batch_go_their_ways(worker: ClipGenerator, anchor: int | None) -> None:
    """Clip 1 goes on while 0 and 2 are guided, in another order than they came: each ends as it does alone."""
    method = replace(METHOD, guide=GuideConfig(anchor=anchor))
    answers = worker.identify(REQUESTS, method)
    plans = [some_plan(seen.spans, method.guide, number) for number, seen in enumerate(answers)]
    finished, guided = worker.finish(["1"]), worker.guide(["2", "0"], [plans[2], plans[0]])
    for number, clip in zip((2, 0), guided, strict=True):
        worker.identify([REQUESTS[number]], method)
        assert_same_clips([clip], worker.guide([str(number)], [plans[number]]))
    assert_same_clips(finished, worker.plain(REQUESTS[1:2]))


def test_what_is_done_or_dropped_is_forgotten(worker: ClipGenerator) -> None:
    """A clip is held from `identify` to its end; dropping what isn't there is fine."""
    worker.identify(REQUESTS, METHOD)
    worker.finish(["0"])
    worker.drop(["1", "never held"])
    for key in ("0", "1"):
        with pytest.raises(KeyError):
            worker.finish([key])
    assert worker.finish(["2"]) is not None


def test_a_batchs_seconds_are_its_clips_in_equal_shares(worker: ClipGenerator) -> None:
    """A clip has the stages that it went through, and the clips' seconds together are no more than were spent."""
    worker.identify(REQUESTS, METHOD)
    began = time.perf_counter()
    clips = write_clips(worker.finish(["0", "1"]) or [], GENERATION)
    spent = time.perf_counter() - began
    assert list(clips[0].timings) == ["encode", "identify", "denoise", "decode", "write"]
    assert clips[0].timings["denoise"] == clips[1].timings["denoise"]
    assert sum(clip.timings[stage] for clip in clips for stage in ("denoise", "decode", "write")) <= spent


def test_one_prompt_in_one_process(tiny_model: WanModel) -> None:
    """`generate` corrects or leaves a clip, and raises what is wrong with its request."""
    clip = generate(
        tiny_model, PROMPTS[0], negative_prompt="", seed=1, generation=GENERATION, method=METHOD
    )  # targets are read from the prompt
    assert clip.correction is not None
    assert clip.correction.identified.labels.shape == (2, 5, 4, 4)
    assert ("guide" in clip.timings) == (clip.correction.plan is not None)
    plain = generate(tiny_model, PROMPTS[0], negative_prompt="", seed=1, generation=GENERATION, method=None)
    assert_same_clips([plain], ClipGenerator(tiny_model, GENERATION).plain(REQUESTS[:1]))
    with pytest.raises(PromptError, match="cut off"):
        generate(tiny_model, CUT_OFF.prompt, targets=CUT_OFF.targets, generation=GENERATION, method=METHOD)


def test_a_model_that_was_loaded_to_decode_otherwise_is_refused(tiny_model: WanModel) -> None:
    """No clip is decoded in another dtype than its key says."""
    ClipGenerator(tiny_model, replace(GENERATION, vae_dtype="float32"))
    with pytest.raises(ConfigError, match=r"vae_dtype is bfloat16, but .* float32; give load_model the same vae_dtype"):
        ClipGenerator(tiny_model, replace(GENERATION, vae_dtype="bfloat16"))


@pytest.mark.parametrize("sure", [False, True])
def test_a_clip_that_was_read_with_little_confidence_stays_the_plain_one(tiny_model: WanModel, sure: bool) -> None:
    """With the same wrong counts: below `guide.confidence` the clip is the plain one to the bit, above it is guided."""
    worker = ClipGenerator(tiny_model, GENERATION, keep_latents=True)
    method = replace(METHOD, guide=replace(METHOD.guide, confidence=0.5)).scaled_to(16)
    [request], targets = REQUESTS[:1], REQUESTS[0].targets
    [seen] = worker.identify([request], method) or []
    read = replace(
        identify_layout(seen.capture, method.identify), confidence=np.full(len(targets), 0.9 if sure else 0.4)
    )
    assert not read.matches(targets), "random weights don't know these counts"
    correction = correct_layout(read, targets, seen.spans, method, seen.capture.deviation)
    [plain] = worker.plain([request]) or []
    if sure:
        assert correction.plan is not None
        [made] = worker.guide([request.key], [correction.plan]) or []
        assert not np.array_equal(made.latents, plain.latents)
    else:
        assert correction.plan is None
        [made] = worker.finish([request.key]) or []
        assert np.array_equal(made.latents, plain.latents)
        assert "not guided, read with a confidence below 0.5" in replace(made, correction=correction).summary()
