"""The embedded model on a real GPU: the same path as on a CPU, in bfloat16 and float32, in batches, and compiled.

Run on a machine with a CUDA device: `python -m pytest tests/gpu`.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cluster.job.config import load_job
from numina.correct import correct
from numina.guidance import GuidancePlan
from numina.layout import Layout, identify_layout
from numina.prompts.targets import Target, parse_targets
from pipelines.base import GenerationConfig, VideoModel
from pipelines.judges.counter import ExactCounter
from pipelines.models.registry import load_model
from pipelines.parallel.shard import Shard
from pipelines.sampling import denoise
from pipelines.sampling.clip import Identified, Request
from pipelines.sampling.generate import ClipGenerator, generate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]

DEVICE = "cuda"
PROMPTS = (
    "four red circles and two blue squares moving on a grey background",
    "five green triangles drifting on a white background",
    "three yellow squares and three magenta circles floating over a black background",
    "two cyan crosses drifting on a grey background",
)
REQUESTS = [
    Request(str(seed), prompt, None, seed, tuple(parse_targets(prompt))) for seed, prompt in enumerate(PROMPTS, 3)
]
METHOD = load_job("testbed").method


def identified(worker: ClipGenerator, requests: Sequence[Request]) -> list[Identified]:
    """What a batch's attention shows, under the preset closed."""
    answers = worker.identify(requests, METHOD)
    worker.drop([request.key for request in requests])
    sound = [answer for answer in answers if isinstance(answer, Identified)]
    assert len(sound) == len(requests)
    return sound


def layouts(worker: ClipGenerator, requests: Sequence[Request]) -> list[Layout]:
    return [identify_layout(seen.capture, METHOD.identify) for seen in identified(worker, requests)]


@pytest.mark.parametrize("preset", ["paper", "closed", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_clip_is_corrected_on_a_gpu(preset: str, dtype: str) -> None:
    """Identify, lay out, guide and decode run on the device, whatever its arithmetic."""
    job = load_job("testbed", [f"method.preset={preset}"])
    model = load_model("testbed", dtype=dtype, device=DEVICE)
    clip = generate(model, PROMPTS[0], seed=3, generation=job.generation, method=job.method)
    assert clip.video.shape == (17, 128, 128, 3)
    assert clip.video.std() > 1
    assert clip.correction is not None


def test_going_on_is_bit_equal_to_plain_on_a_gpu() -> None:
    """Capture disturbs nothing in the GPU's kernels either."""
    job = load_job("testbed")
    worker = ClipGenerator(load_model("testbed", device=DEVICE), job.generation)
    [plain] = worker.plain(REQUESTS[:1]) or []
    worker.identify(REQUESTS[:1], job.method)
    [finished] = worker.finish([REQUESTS[0].key]) or []
    assert np.array_equal(plain.video, finished.video)


def test_gpu_and_cpu_read_the_same_layout() -> None:
    """In float32 both devices identify the same instances from the same noise, up to tokens at a threshold."""
    labels = {}
    for device in ("cpu", DEVICE):
        model = load_model("testbed", dtype="float32", device=device)
        [layout] = layouts(ClipGenerator(model, load_job("testbed").generation), REQUESTS[:1])
        labels[device] = layout.labels > 0
    assert (labels["cpu"] != labels[DEVICE]).mean() < 0.01


@pytest.mark.parametrize(("dtype", "tokens"), [("float32", 0.002), ("bfloat16", 0.02)])
def test_a_batch_reads_what_its_clips_read_alone(dtype: str, tokens: float) -> None:
    """Four clips in one forward have the counts of four forwards, and their layouts but for tokens at a threshold."""
    model = load_model("testbed", dtype=dtype, device=DEVICE)
    worker = ClipGenerator(model, load_job("testbed").generation)
    together = layouts(worker, REQUESTS)
    for request, batched in zip(REQUESTS, together, strict=True):
        [alone] = layouts(worker, [request])
        np.testing.assert_array_equal(batched.clip_counts(), alone.clip_counts(), err_msg=request.prompt)
        assert ((batched.labels > 0) != (alone.labels > 0)).mean() < tokens, request.prompt


def a_plan(model: VideoModel, request: Request, generation: GenerationConfig) -> GuidancePlan:
    """A plan for the clip: one that asks for more where its counts are right already."""
    [seen] = identified(ClipGenerator(model, generation), [request])
    more = [Target(target.noun, target.count + 1) for target in request.targets]
    plans = [correct(seen.capture, targets, seen.spans, METHOD).plan for targets in (request.targets, more)]
    return next(plan for plan in plans if plan is not None)


def guided_counts(model: VideoModel, request: Request, plan: GuidancePlan, generation: GenerationConfig) -> np.ndarray:
    """What the guided video shows of each noun in most of its frames."""
    texts = model.encode([request.prompt], [""], generation)
    latents = denoise.guide(model, Shard(), texts, [plan], [request.seed], generation)
    [video] = model.decode(latents).pixels.numpy()
    return np.median(ExactCounter().count(video, request.prompt, request.targets), axis=0)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_guidance_counts_alike_and_serves_the_next_prompt() -> None:
    """Whole blocks compiled: guided videos show what they show uncompiled, and a second prompt compiles nothing."""
    generation = load_job("testbed").generation
    model = load_model("testbed", device=DEVICE)
    requests = REQUESTS[:2]  # two nouns, then one
    plans = [a_plan(model, request, generation) for request in requests]
    expected = [guided_counts(model, *asked, generation) for asked in zip(requests, plans, strict=True)]
    model.transformer.compile_repeated_blocks(fullgraph=True)
    for number, stance in enumerate(("default", "fail_on_recompile")):
        with torch.compiler.set_stance(stance):
            found = guided_counts(model, requests[number], plans[number], generation)
        np.testing.assert_array_equal(found, expected[number], err_msg=requests[number].prompt)
