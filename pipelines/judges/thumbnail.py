"""A clip as a few numbers that show how it looks: coarse colours of some frames, where no model embeds it."""

import numpy as np
from jaxtyping import Float

from pipelines.video.mp4 import Video

FRAMES, SIDE = 3, 4  # the first, middle and last frame, as 4 × 4 patches of mean colour


def thumbnail(video: Video) -> Float[np.ndarray, " D"]:
    """Length 1 (0 for a clip of one colour), without the clip's mean colour; D = 3 frames × 4 × 4 patches × 3.

    The cosine of two of them is near 1 where clips have the same things in the same places.
    """
    chosen = np.asarray(video)[np.linspace(0, len(video) - 1, FRAMES).round().astype(int)].astype(np.float32)
    rows, columns = (np.linspace(0, size, SIDE + 1).astype(int) for size in chosen.shape[1:3])
    areas = np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None]
    patches = np.add.reduceat(np.add.reduceat(chosen, rows[:-1], axis=1), columns[:-1], axis=2) / areas
    flat = (patches - patches.mean(axis=(0, 1, 2))).reshape(-1)
    return np.asarray(flat / max(float(np.linalg.norm(flat)), 1e-6))
