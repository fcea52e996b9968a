"""Video files: what goes in comes out, the same bytes every time."""

import numpy as np
import pytest

from numina.errors import InputError
from pipelines.video.mp4 import decode_mp4, encode_mp4


def moving_square() -> np.ndarray:
    video = np.full((17, 64, 96, 3), 128, dtype=np.uint8)
    for frame in range(17):
        video[frame, 20:40, 10 + frame : 30 + frame] = (220, 40, 40)
    return video


def test_frames_survive_encoding() -> None:
    """Every frame comes back, at its size, within a few grey levels on average."""
    video = moving_square()
    decoded = decode_mp4(encode_mp4(video, fps=8, crf=18))
    assert decoded.shape == video.shape
    assert np.abs(decoded.astype(int) - video).mean() < 4


def test_equal_frames_give_equal_bytes() -> None:
    """A repeated generation makes the same file, so the same name."""
    assert encode_mp4(moving_square(), fps=8, crf=18) == encode_mp4(moving_square(), fps=8, crf=18)


def test_bytes_do_not_depend_on_what_lies_in_memory() -> None:
    """Dark squares, encoded again and again while memory is taken and given back, which x264's AVX-512 code notices."""
    random = np.random.default_rng(0)
    video = (np.kron(random.random((17, 8, 8, 3)), np.ones((1, 8, 8, 1))) * 40).astype(np.uint8)
    seen = set()
    for _ in range(20):
        rubbish = [np.full(random.integers(10, 200_000), 7, dtype=np.uint8) for _ in range(20)]
        seen.add(encode_mp4(video, fps=8, crf=18))
        del rubbish
    assert len(seen) == 1


def test_what_is_no_video_is_an_input_error() -> None:
    """Torn and foreign files are told from videos."""
    whole = encode_mp4(moving_square(), fps=8, crf=18)
    for broken in (b"", b"not a video", whole[: len(whole) // 3]):
        with pytest.raises(InputError):
            decode_mp4(broken)
