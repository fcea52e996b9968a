from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from numina.errors import ConfigError
from pipelines.judges import Case, JudgeConfig
from pipelines.judges.passes import FrameOf, Frames, device_of, dtype_of, passes, run_passes

CPU = torch.device("cpu")


def config(**changes: object) -> JudgeConfig:
    return JudgeConfig(**{"kind": "clip", "name": "it", "path": "here"} | changes)  # type: ignore[arg-type]


def case(frames: int, height: int, first: int = 0) -> Case:
    """Frame i is filled with first + i."""
    levels = np.arange(first, first + frames, dtype=np.uint8)[:, None, None, None]
    return Case(video=np.broadcast_to(levels, (frames, height, 8, 3)), prompt="", targets=())


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([8, 16])), max_size=5),
    st.integers(1, 4),
    st.integers(1, 7),
)
def test_every_judged_frame_is_in_one_pass(shapes: list[tuple[int, int]], every: int, batch: int) -> None:
    """Each once, a case's in order, no pass too large or of two sizes, and none of a size is smaller but the last."""
    cases = [case(frames, height) for frames, height in shapes]
    made = list(passes(cases, config(every=every, batch=batch)))
    for index, one in enumerate(cases):
        mine = [place.frame for places in made for place in places if place.case == index]
        assert mine == list(range(0, len(one.video), every))
    heights = [{cases[place.case].video.shape[1] for place in places} for places in made]
    assert all(len(height) == 1 for height in heights)
    for height in (8, 16):
        sizes = [len(places) for places, has in zip(made, heights, strict=True) if has == {height}]
        assert all(size == batch for size in sizes[:-1])
        assert all(0 < size <= batch for size in sizes)


def test_results_come_back_with_their_frames() -> None:
    """In the order of passes, as what the forward made of just these pixels; and the next pass starts before."""
    started: list[int] = []

    def forward(frames: Frames, batch: list[FrameOf]) -> Sequence[torch.Tensor]:
        started.append(len(batch))
        return [frames.float().mean(dim=(1, 2, 3))]

    cases = [case(3, 8), case(4, 8, first=100)]
    seen = []
    for batch, [levels] in run_passes(cases, config(batch=2), CPU, forward):
        seen += [(place.case, place.frame, level) for place, level in zip(batch, levels, strict=True)]
        assert sum(started) >= min(len(seen) + 1, 7)
    assert seen == [(0, i, i) for i in range(3)] + [(1, i, 100 + i) for i in range(4)]
    assert list(run_passes([], config(), CPU, forward)) == []


def test_devices_and_their_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto: half precision on a GPU, which has its ten bits; float32 on a CPU. What isn't there is an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(config()) == CPU
    assert dtype_of(config(), CPU) == torch.float32
    assert dtype_of(config(), torch.device("cuda")) == torch.float16
    assert dtype_of(config(dtype="bfloat16"), CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match=r"judge.device is 'cuda:1', but torch sees 0 GPUs here"):
        device_of(config(device="cuda:1"))
    with pytest.raises(ConfigError, match=r"judge.device is 'gpu'; choose auto"):
        device_of(config(device="gpu"))
