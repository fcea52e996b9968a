"""The embedded model on a real GPU: the same path as on a CPU, in bfloat16 and float32.

Run on a machine with a CUDA device: `python -m pytest tests/gpu`.
"""

import numpy as np
import pytest
import torch

from cluster.job import load_job
from numina.correct import correct
from numina.prompts import Target
from pipelines.generate import ClipGenerator, generate
from pipelines.registry import load_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]

PROMPT = "four red circles and two blue squares moving on a grey background"
TARGETS = (Target("circles", 4), Target("squares", 2))


@pytest.mark.parametrize("preset", ["paper", "closed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_clip_is_corrected_on_a_gpu(preset: str, dtype: str) -> None:
    """Identify, lay out, guide and decode run on the device, whatever its arithmetic."""
    job = load_job("testbed", [f"method.preset={preset}"])
    model = load_model("testbed", dtype=dtype, device="cuda")
    clip = generate(model, PROMPT, targets=TARGETS, seed=3, generation=job.generation, method=job.method)
    assert clip.video.shape == (17, 128, 128, 3)
    assert clip.video.std() > 1
    assert clip.correction is not None


def test_going_on_is_bit_equal_to_plain_on_a_gpu() -> None:
    """Capture disturbs nothing in the GPU's kernels either."""
    job = load_job("testbed")
    worker = ClipGenerator(load_model("testbed", device="cuda"), job.generation)
    plain = worker.plain(PROMPT, None, 3)
    worker.identify("clip", PROMPT, None, TARGETS, 3, job.method)
    finished = worker.finish("clip")
    assert plain is not None
    assert finished is not None
    assert np.array_equal(plain.video, finished.video)


def test_gpu_and_cpu_read_the_same_layout() -> None:
    """In float32 both devices identify the same instances from the same noise, up to tokens at a threshold."""
    job = load_job("testbed")
    labels = {}
    for device in ("cpu", "cuda"):
        worker = ClipGenerator(load_model("testbed", dtype="float32", device=device), job.generation)
        seen = worker.identify("clip", PROMPT, None, TARGETS, 3, job.method)
        labels[device] = correct(seen.capture, TARGETS, seen.spans, job.method).identified.labels > 0
    assert (labels["cpu"] != labels["cuda"]).mean() < 0.01
