"""Video files: uint8 frames to mp4 bytes and back, through PyAV."""

import io
import tempfile
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from numina.errors import InputError

Video = UInt8[np.ndarray, "frames height width 3"]

ENCODER_THREADS = "1"  # x264's output depends on the thread count; pinned, the same frames give the same bytes


def encode_mp4(video: Video, *, fps: int, crf: int) -> bytes:
    """H.264 in yuv420p, the index in front so that browsers start at once. Height and width must be even."""
    _, height, width, _ = video.shape
    with tempfile.TemporaryDirectory() as folder:  # moving the index to the front needs a file to read back
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            options = {"crf": str(crf), "preset": "medium", "threads": ENCODER_THREADS}
            stream = container.add_stream("libx264", rate=fps, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()


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
