"""A synthetic clip, read as a model's clip is: the same functions in the same order."""

import torch

from numina.affinity import chosen_coordinates, clip_coordinates
from numina.config import IdentifyConfig
from numina.fused.responses import normalised
from numina.layout import Capture, Layout, combine_blocks, identify_layout
from tests.numina.fused.troubles import FRAMES, HEIGHT, WIDTH, Clip


def captured(clip: Clip) -> Capture:
    frame = torch.arange(FRAMES).repeat_interleave(HEIGHT * WIDTH)
    q, k = torch.from_numpy(clip.q), torch.from_numpy(clip.k)
    found = clip_coordinates(q, k, frame, (FRAMES, HEIGHT * WIDTH), add=lambda sums: sums)
    tokens = found.unflatten(1, (FRAMES, HEIGHT, WIDTH))
    shares, peaks = normalised(torch.from_numpy(clip.blocks))
    kept, _, _ = chosen_coordinates(tokens, shares)
    return Capture(shares.half().numpy(), None, kept.half().numpy(), peaks.numpy())


def read(clip: Clip, config: IdentifyConfig) -> Layout:
    """By both kinds of attention where the config says so, else by cross-attention alone."""
    if config.source == "fused":
        return identify_layout(captured(clip), config)
    return identify_layout(Capture(combine_blocks(clip.blocks, "mean"), None), config)
