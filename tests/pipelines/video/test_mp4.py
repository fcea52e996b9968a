"""Video files: what goes in comes out, the same bytes every time."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

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


COLOURS = [
    *((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)),
    *((255, 255, 255), (0, 0, 0), (128, 128, 128), (12, 200, 90), (220, 40, 40), (3, 3, 3)),
]


def bars(height: int = 64) -> np.ndarray:
    """COLOURS side by side, 16 pixels each."""
    return np.broadcast_to(np.repeat(np.array(COLOURS, np.uint8), 16, 0), (5, height, 16 * len(COLOURS), 3)).copy()


@pytest.mark.parametrize(("crf", "most"), [(0, 2), (18, 4)])
@pytest.mark.parametrize("height", [64, 720])
def test_colours_come_back(crf: int, most: int, height: int) -> None:
    """Saturated, dull and grey, within a few levels of 255 in the middle of each bar, whatever the size."""
    decoded = decode_mp4(encode_mp4(bars(height), fps=8, crf=crf))
    middle = decoded[:, height // 2, 8::16].astype(int)
    assert np.abs(middle - np.array(COLOURS)).max() <= most


def test_the_stream_says_whose_colours_it_has() -> None:
    """Primaries, transfer, matrix and range: in the stream, in its frames, and in the file's own box."""
    mp4 = encode_mp4(bars(), fps=8, crf=18)
    with av.open(io.BytesIO(mp4)) as container:
        frame = next(container.decode(video=0))
        for told in (container.streams.video[0].codec_context, frame):
            assert told.color_primaries == ColorPrimaries.BT709
            assert told.color_trc == ColorTrc.BT709
            assert told.colorspace == Colorspace.ITU709
            assert told.color_range == ColorRange.MPEG
    assert b"colrnclx" + bytes([0, 1, 0, 1, 0, 1, 0]) in mp4


def untagged(video: np.ndarray) -> bytes:
    """An mp4 as versions before 0.2 wrote them: BT.601, and not a word of it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("height", [64, 720])
def test_files_without_tags_are_read_as_before(height: int) -> None:
    """As BT.601, whatever their size; the same bars by BT.709 would be some 40 levels off."""
    mp4 = untagged(bars(height))
    middle = decode_mp4(mp4)[:, height // 2, 8::16].astype(int)
    assert np.abs(middle - np.array(COLOURS)).max() <= 2
    with av.open(io.BytesIO(mp4)) as container:
        frame = next(container.decode(video=0))
        wrong = frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU709).to_ndarray()
    assert np.abs(wrong[height // 2, 8::16].astype(int) - np.array(COLOURS)).max() > 30


def test_older_outputs_are_read_as_before() -> None:
    """The videos of a released form aren't tagged, and are BT.601."""
    [file, *_] = sorted((Path(__file__).parents[2] / "outputs" / "0.1.0" / "videos").rglob("*.mp4"))
    with av.open(str(file)) as container:
        frames = list(container.decode(video=0))
    assert frames[0].color_primaries == ColorPrimaries.UNSPECIFIED
    expected = [frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU601).to_ndarray() for frame in frames]
    assert np.array_equal(decode_mp4(file), np.stack(expected))


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
