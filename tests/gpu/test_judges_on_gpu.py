"""Judges on a real GPU: the counts of a CPU, in half precision few others, and nothing of a long clip left behind.

Run on a machine with a CUDA device: `python -m pytest tests/gpu`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from numina.prompts.targets import Target
from pipelines.judges import Case, JudgeConfig, load_judge
from pipelines.judges.dino_layers import attend
from tests.pipelines.judges import tiny
from tests.pipelines.judges.conftest import BUILD, CASES, THRESHOLDS, a_video

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A tiny judge by its kind."""
    folders = {kind: build(tmp_path_factory.mktemp("judge") / kind) for kind, build in BUILD.items()}

    def loaded(kind: str, **changes: Any) -> Any:
        path = str(folders[kind])
        return load_judge(JudgeConfig(kind=kind, name=kind, path=path, **THRESHOLDS[kind] | {"batch": 3} | changes))

    return loaded


@pytest.mark.parametrize("kind", ["grounding-dino", "owlv2"])
@pytest.mark.parametrize(("dtype", "apart"), [("float32", 0.02), ("auto", 0.05)])
def test_a_gpu_counts_as_a_cpu(kind: str, dtype: str, apart: float, load: Callable[..., Any]) -> None:
    """Of the boxes, a small share is so near a threshold that other kernels or float16 decide otherwise."""
    gpu, cpu = load(kind, dtype=dtype, device="cuda"), load(kind, device="cpu")
    assert gpu.dtype == (torch.float16 if dtype == "auto" else torch.float32)
    for one, other in zip(gpu.judge(CASES), cpu.judge(CASES), strict=True):
        assert np.abs(one.detected - other.detected).sum() <= max(1, apart * other.detected.sum())


def test_clip_scores_as_on_a_cpu(load: Callable[..., Any]) -> None:
    """In half precision, to a fraction of a point."""
    for one, other in zip(load("clip").judge(CASES), load("clip", device="cpu").judge(CASES), strict=True):
        assert one.clip_score == pytest.approx(other.clip_score, abs=0.3)
        assert one.temporal_consistency == pytest.approx(other.temporal_consistency, abs=3e-3)


@pytest.mark.parametrize("kind", ["grounding-dino", "owlv2", "clip"])
def test_frames_are_prepared_as_on_a_cpu(kind: str, load: Callable[..., Any]) -> None:
    """Resizing's sums round in another order: a few pixels fall to the level beside."""
    frames = torch.from_numpy(a_video(2, (96, 160))).permute(0, 3, 1, 2)
    gpu, cpu = (
        load(kind, dtype="float32", device=device).prepare(frames.to(device)).cpu() for device in ("cuda", "cpu")
    )
    apart = (gpu - cpu).abs()
    assert apart.max() < 1.01 / 255 / 0.225
    assert (apart > 1e-4).float().mean() < 0.01


@pytest.mark.parametrize(("at", "d", "places"), [(2, 32, 4), (4, 32, 4), (4, 24, 3)])
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_deformable_attention_is_one_kernel(at: int, d: int, places: int, dtype: torch.dtype, apart: float) -> None:
    """It sums as PyTorch's operators do, over maps of any size, within them and far outside."""
    generator = torch.Generator().manual_seed(0)
    sizes, b, q, n = [(7, 11), (4, 6), (1, 2)], 2, 50, 4
    value = torch.randn(b, sum(h * w for h, w in sizes), n, d, generator=generator)
    offsets = 3 * torch.randn(b, q, n, len(sizes), places, 2, generator=generator)
    offsets[0, 0], offsets[0, 1] = 6e4, -6e4
    logits = 3 * torch.randn(b, q, n, len(sizes), places, generator=generator)
    reference = torch.rand(b, q, len(sizes), at, generator=generator)
    value, offsets, logits = (tensor.to(dtype) for tensor in (value, offsets, logits))
    exact = attend(value.double(), offsets, logits, reference, sizes)
    found = attend(value.cuda(), offsets.cuda(), logits.cuda(), reference.cuda(), sizes)
    torch.testing.assert_close(found.cpu().double(), exact, atol=apart, rtol=apart)


def test_a_long_clip_needs_no_more_memory(load: Callable[..., Any]) -> None:
    """Passes are bounded, whatever the clip's length."""
    judge, peaks = load("grounding-dino", batch=4), []
    for frames in (16, 16, 160):
        torch.cuda.reset_peak_memory_stats()
        judge.judge([Case(video=a_video(frames), prompt="cats", targets=(Target("cats", 1),))])
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[2] <= 1.05 * peaks[1]


def test_a_published_shape_runs_in_half_precision(tmp_path: Path) -> None:
    """GroundingDINO Swin-T at 769×1333: finite scores, and the float32 model's boxes to a few pixels."""
    folder = str(tiny.published("grounding-dino", tmp_path / "dino"))
    frames = torch.from_numpy(a_video(2, (480, 832))).permute(0, 3, 1, 2).cuda()
    found = {}
    for dtype in ("float32", "float16"):
        judge: Any = load_judge(JudgeConfig(kind="grounding-dino", name="it", path=folder, dtype=dtype))
        with torch.inference_mode():
            found[dtype] = judge.propose(frames, [judge.read(["cats", "teddy bear"])] * 2)
        assert all(value.isfinite().all() for value in (found[dtype].boxes, found[dtype].scores))
    best = [proposals.scores.float().sort(dim=1, descending=True).values for proposals in found.values()]
    torch.testing.assert_close(best[0], best[1], atol=0.05, rtol=0)
