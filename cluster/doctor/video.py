"""mp4 files by PyAV."""

import numpy as np

from cluster.doctor.check import Finding, fails, ok
from cluster.doctor.needs import Needs

FRAMES = 5


def mp4(needs: Needs) -> Finding:
    """A few frames are written as a job writes them, and read back."""
    import av

    from pipelines.video.mp4 import decode_mp4, encode_mp4

    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    video = np.broadcast_to(ramp[None, None, :, None], (FRAMES, 64, 64, 3))
    read = decode_mp4(encode_mp4(np.ascontiguousarray(video), fps=8, crf=18))
    if read.shape != video.shape or np.abs(read.astype(int) - video).mean() > 8:
        return fails("a video that was written is read back otherwise", "install PyAV from its wheel: pip install av")
    return ok(f"{FRAMES} frames written and read, PyAV {av.__version__}")
