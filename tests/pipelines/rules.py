"""Guidance's rules written out: one row, noun and token at a time (arXiv 2604.08546 §3.4, and the closed form's)."""

import torch
from torch import Tensor

from numina.guidance import GuidancePlan
from numina.regions import Region


def ruled(plain: Tensor, plan: GuidancePlan, delta: float) -> Tensor:
    """Scores [N, n, T] of a clip's rows on text tokens, under a plan; `plain` are those without, q·k/√D."""
    scores, config = plain.clone(), plan.config
    regions = plan.regions.reshape(len(plan.regions), -1)
    per_frame = regions.shape[1] // plan.regions.shape[1]
    added = (regions == Region.ADD_COPY) | (regions == Region.ADD_DISC)
    for noun, tokens in enumerate(plan.tokens):
        for row, region in enumerate(regions[noun]):
            first = row // per_frame * per_frame
            reference = [r for r in range(first, first + per_frame) if regions[noun, r] == Region.REFERENCE]
            strength = {
                Region.NONE: -config.elsewhere,
                Region.KEEP: config.keep,
                Region.REFERENCE: config.keep,
                Region.REMOVE: -config.remove,
                Region.ADD_DISC: config.add,
                Region.ADD_COPY: config.add,
            }[Region(int(region))]
            if added[1 - noun, row] and not added[noun, row]:
                strength -= config.other
            for token in tokens:
                if region == Region.ADD_COPY and config.overwrite == "head":
                    mean = plain[:, reference, token].mean(dim=1)
                    strengthened = torch.where(mean >= 0, mean * delta, mean / delta)
                    scores[:, row, token] = torch.maximum(plain[:, row, token], strengthened)
                elif region == Region.ADD_COPY and config.overwrite == "global":
                    mean = plain[:, reference][:, :, list(tokens)].mean()
                    scores[:, row, token] += delta * mean - plain[:, row, token].mean()
                else:
                    scores[:, row, token] += strength * delta
    return scores
