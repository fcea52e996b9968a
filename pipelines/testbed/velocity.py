"""What a world's transformer says of noisy latents, and Euler's way through noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipelines.testbed.evaluate import GUIDANCE_SCALE


def velocity(
    transformer: Any, x: Tensor, sigma: Tensor, text: Tensor, away: Tensor | None = None, scale: float = GUIDANCE_SCALE
) -> Tensor:
    """At noise levels `sigma` [n] of latents [n, C, F, h, w]; with `away` [1, T, width], under guidance against it."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        if away is None:
            return transformer(x, sigma * 1000, text, return_dict=False)[0].float()
        both = torch.cat([text, away.expand_as(text)])
        seen, without = transformer(x.repeat(2, 1, 1, 1, 1), sigma.repeat(2) * 1000, both, return_dict=False)[0].chunk(
            2
        )
    return without.float() + scale * (seen.float() - without.float())


@torch.no_grad()
def follow(transformer: Any, x: Tensor, sigmas: Sequence[float], text: Tensor, away: Tensor | None = None) -> Tensor:
    """Euler steps from the first noise level to the last."""
    for sigma, after in pairwise(sigmas):
        x = x + (after - sigma) * velocity(transformer, x, x.new_full((len(x),), sigma), text, away)
    return x
