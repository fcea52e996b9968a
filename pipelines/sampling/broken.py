"""Clips that came out broken: what no latents and no pixels of a real clip can be.

The gang's first rank alone looks, after all ranks have done their part: no other rank does anything else for it.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from numina.errors import ClipError
from numina.layout import Capture
from numina.stage import Stage
from pipelines.video.mp4 import Video

LARGEST_LATENT = 1000.0
"""Latents are scaled to a standard deviation near 1, and those of real clips stay within some tens."""

FLAT_LEVELS = 1
"""How far apart, in 8-bit levels, the pixels of one flat colour may be: it may lie between two of them."""

REMEDY = "lower generation.guidance_scale or method.guide.*, or give model.dtype=bfloat16 or float32"


def broken_latents(latents: Tensor, stage: Stage) -> list[ClipError | None]:
    """For each clip of [B, C, F, h, w] what is wrong with its latents after a stage, if anything is."""
    largest = latents.detach().abs().flatten(1).amax(1).float().tolist()  # NaN where one is NaN
    return [None if value <= LARGEST_LATENT else _latents_error(value, stage) for value in largest]


def broken_capture(capture: Capture) -> ClipError | None:
    """What is wrong with the attention maps that identification has read, if anything is."""
    read = (
        ("cross-attention", capture.responses),
        ("cross-attention", capture.peaks),
        ("self-attention", capture.components),
        ("self-attention", capture.coordinates),
        ("scores", capture.deviation),
    )
    for name, values in read:
        if values is not None and not np.isfinite(values).all():
            return ClipError(f"the {name} read at t* has values that aren't finite numbers; {REMEDY}", Stage.IDENTIFY)
    return None


def broken_pixels(video: Video, finite: bool) -> ClipError | None:
    """What is wrong with a decoded clip, if anything is; `finite` says whether its decoder gave numbers alone.

    A clip is flat if every frame is one colour, the same one or others: a dark scene, or a clip that begins black,
    has frames in which some pixel differs.
    """
    if not finite:
        return ClipError(f"the decoded clip has pixels that aren't finite numbers; {REMEDY}", Stage.DECODE)
    if any(_spread(frame) > FLAT_LEVELS for frame in video):
        return None
    colours = np.unique(video[:, 0, 0], axis=0).tolist()
    shown = f"RGB {tuple(colours[0])}" if len(colours) == 1 else f"{len(colours)} colours, one at a time"
    return ClipError(f"the decoded clip shows one flat colour in each of its frames ({shown}); {REMEDY}", Stage.DECODE)


def first_of(*found: Sequence[ClipError | None]) -> list[ClipError | None]:
    """Of several looks at the same clips, for each clip the first thing found."""
    return [next(filter(None, errors), None) for errors in zip(*found, strict=True)]


def _spread(frame: Video) -> int:
    """The farthest that any channel's pixels are apart, in levels."""
    return int((frame.max((0, 1)).astype(int) - frame.min((0, 1))).max())


def _latents_error(largest: float, stage: Stage) -> ClipError:
    if not np.isfinite(largest):
        return ClipError(f"the latents have values that aren't finite numbers; {REMEDY}", stage)
    return ClipError(
        f"the latents reach {largest:.3g}, but those of a real clip stay below {LARGEST_LATENT:g}; {REMEDY}", stage
    )
