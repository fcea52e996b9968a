"""Video files: uint8 frames to mp4 bytes and back, through PyAV."""

import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from numina.errors import InputError
from pipelines.base import GenerationConfig
from pipelines.clip import Clip

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


def encode_mp4(video: Video, *, fps: int, crf: int) -> bytes:
    """H.264 in yuv420p, the index in front so that browsers start at once. Height and width must be even."""
    _, height, width, _ = video.shape
    with tempfile.TemporaryDirectory() as folder:  # moving the index to the front needs a file to read back
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            options = {"crf": str(crf), **encoder_options()}
            stream = container.add_stream("libx264", rate=fps, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()


def write_clips(clips: Sequence[Clip], generation: GenerationConfig, *, keep_frames: bool = True) -> list[Clip]:
    """The clips with their mp4; on any CPU, while the gang is at the next ones.

    Without `keep_frames` the frames stay behind: those of a 480p clip are 97 MB.
    """
    written = []
    for clip in clips:
        began = time.perf_counter()
        mp4 = encode_mp4(clip.video, fps=generation.fps, crf=generation.crf)
        timings = clip.timings | {"write": time.perf_counter() - began}
        written.append(replace(clip, video=clip.video if keep_frames else clip.video[:0], mp4=mp4, timings=timings))
    return written


def decode_mp4(source: bytes | str | Path) -> Video:
    """All frames of a video file. Raises InputError when there is none to be read."""
    name = "the video" if isinstance(source, bytes) else str(source)
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise InputError(f"{name} can't be decoded: {error}; generate it again") from error
    if not frames:
        raise InputError(f"{name} has no frames; generate it again")
    return np.stack(frames)
