"""The stages of a clip, by the names under which their times are recorded."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage of a clip. A row's `timings` and `spans` have their names, and so have logs, metrics and traces."""

    ENCODE = "encode"  # the prompt, by the text encoder
    IDENTIFY = "identify"  # denoising up to t*, where attention is captured
    LAYOUT = "layout"  # layout, refinement and guidance plan, on a CPU
    GUIDE = "guide"  # denoising again from the same noise, guided
    DENOISE = "denoise"  # plain denoising: the whole clip, or from t* on where the counts were right
    DECODE = "decode"  # latents to frames
    WRITE = "write"  # mp4 and commit, on a CPU
    JUDGE = "judge"  # of a verified clip


BESIDE_GANGS = (Stage.LAYOUT, Stage.WRITE)
"""Stages of tasks on CPUs: no gang computes them."""
