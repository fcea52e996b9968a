"""Video files: uint8 frames to mp4 bytes and back, through PyAV."""

import io
import os
import tempfile
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import UInt8

from numina.errors import InputError, MachineError

Video = UInt8[np.ndarray, "frames height width 3"]

# The same frames give the same bytes: x264's output depends on the thread count, and on what its AVX-512 code finds in
# memory. Without that, where a CPU has it, bytes are also those of CPUs that don't.
ENCODER_THREADS = "1"
CPU_FLAGS = Path("/proc/cpuinfo")


@cache
def encoder_options() -> dict[str, str]:
    """What x264 is told beside crf."""
    flags = CPU_FLAGS.read_text() if CPU_FLAGS.is_file() else ""
    return {"preset": "medium", "threads": ENCODER_THREADS} | ({"x264-params": "asm=AVX2"} if "avx512" in flags else {})


def temporary_folder() -> str:
    """Where files of a moment go. Raises MachineError where there is no such folder that can be written."""
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise MachineError(
            f"TMPDIR is {os.environ.get('TMPDIR')!r}, and no folder for temporary files can be written ({error})",
            "free some space, or set TMPDIR to a folder that can be written",
        ) from error


def encode_mp4(video: Video, *, fps: int, crf: int) -> bytes:
    """H.264 in yuv420p, the index in front so that browsers start at once. Height and width must be even.

    Colours are those of BT.709 in limited range, and the stream says so: untagged, a player takes a small video for
    BT.601 and one of 720 lines or more for BT.709.
    """
    _, height, width, _ = video.shape
    # Moving the index to the front needs a file to read back.
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            options = {"crf": str(crf), **encoder_options()}
            stream = container.add_stream("libx264", rate=fps, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            tags = stream.codec_context
            tags.color_primaries, tags.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            tags.colorspace, tags.color_range = Colorspace.ITU709, ColorRange.MPEG
            for frame in video:
                pixels = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(
                    stream.encode(
                        pixels.reformat(
                            format="yuv420p",
                            src_color_range=ColorRange.JPEG,
                            dst_colorspace=Colorspace.ITU709,
                            dst_color_range=ColorRange.MPEG,
                        )
                    )
                )
            container.mux(stream.encode())
        return path.read_bytes()


def decode_mp4(source: bytes | str | Path) -> Video:
    """All frames of a video file. Raises InputError when there is none to be read.

    Colours are converted by the stream's own tags; a file without them, as older versions wrote, is BT.601.
    """
    name = "the video" if isinstance(source, bytes) else str(source)
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise InputError(f"{name} can't be decoded: {error}; generate it again") from error
    if not frames:
        raise InputError(f"{name} has no frames; generate it again")
    return np.stack(frames)
