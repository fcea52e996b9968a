"""The guided processor against the method written out in float64 from the model's own projections."""

import numpy as np
import pytest
import torch

from numina.config import GuideConfig
from numina.guidance import GuidancePlan
from numina.refine import Region
from pipelines.attention import guided, project
from pipelines.parallel import Shard
from pipelines.wan import WanModel

F, H, W, T = 3, 4, 4, 10


def plan_with(config: GuideConfig) -> GuidancePlan:
    regions = np.zeros((2, F, H, W), dtype=np.int8)
    regions[0, :, 0, :2] = Region.REFERENCE
    regions[0, :, 2, 1:3] = Region.ADD_COPY
    regions[0, 1, 3, 3] = Region.KEEP
    regions[1, :, 1, 2] = Region.REMOVE
    regions[1, 2, 3, 0] = Region.ADD_DISC
    return GuidancePlan(regions, ((2, 3), (6,)), config)


def by_the_book(attn: torch.nn.Module, hidden: torch.Tensor, text: torch.Tensor, plan: GuidancePlan, delta: float):
    """Every rule of arXiv 2604.08546 §3.4 (and the closed form's), one row, noun and token at a time, in float64."""
    query, key, value = (x[0].double().transpose(0, 1) for x in project(attn, hidden, text, None))
    scores = query @ key.mT / query.shape[-1] ** 0.5  # [N, n, T]
    plain, config = scores.clone(), plan.config
    regions = plan.regions.reshape(2, -1)
    added = (regions == Region.ADD_COPY) | (regions == Region.ADD_DISC)
    for noun, tokens in enumerate(plan.tokens):
        for row, region in enumerate(regions[noun]):
            frame = slice(row // (H * W) * H * W, (row // (H * W) + 1) * H * W)
            reference = [r for r in range(frame.start, frame.stop) if regions[noun, r] == Region.REFERENCE]
            for token in tokens:
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
                if region == Region.ADD_COPY and config.overwrite:
                    mean = plain[:, reference, token].mean(dim=1)
                    scores[:, row, token] = torch.where(mean >= 0, mean * delta, mean / delta)
                else:
                    scores[:, row, token] += strength * delta
    output = (scores.softmax(dim=-1) @ value).transpose(0, 1).flatten(1)
    return torch.nn.functional.linear(output, attn.to_out[0].weight.double(), attn.to_out[0].bias.double())


@pytest.mark.parametrize(
    "config",
    [
        GuideConfig(),
        GuideConfig(overwrite="none", add=6, keep=2, elsewhere=6, other=4),
        GuideConfig(overwrite=True, keep=1, elsewhere=2, other=3),
    ],
    ids=["paper", "closed", "overwrite and closed"],
)
@pytest.mark.parametrize("delta", [1.75, 0.25])
def test_the_processor_computes_the_rules(tiny_model: WanModel, config: GuideConfig, delta: float) -> None:
    """Guided cross-attention equals the rules written out, to float32 rounding."""
    generator = torch.Generator().manual_seed(0)
    attn = tiny_model.cross_attention(1)
    width = attn.to_q.in_features
    hidden = torch.randn(1, F * H * W, width, generator=generator)
    text = torch.randn(1, T, width, generator=generator)
    plan = plan_with(config)
    expected = by_the_book(attn, hidden, text, plan, delta)
    with torch.inference_mode(), guided(tiny_model, Shard(), plan, delta, T):
        found = attn(hidden, text)
    torch.testing.assert_close(found[0].double(), expected, atol=2e-5, rtol=2e-5)
    with torch.inference_mode():
        assert not torch.allclose(attn(hidden, text), found, atol=1e-3)  # after the block, the plain processor again


def test_projection_is_the_wrapped_processors_own(tiny_model: WanModel) -> None:
    """Queries, keys and values with rotary embedding are those of diffusers' processor, so its output follows."""
    generator = torch.Generator().manual_seed(1)
    attn = tiny_model.self_attention(0)
    latents = torch.zeros(1, 4, F, 2 * H, 2 * W)
    rotary = tiny_model.transformer.rope(latents)
    hidden = torch.randn(1, F * H * W, attn.to_q.in_features, generator=generator)
    with torch.inference_mode():
        query, key, value = (x.transpose(1, 2) for x in project(attn, hidden, None, rotary))
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attn.to_out[0](output), attn(hidden, None, None, rotary), atol=1e-6, rtol=1e-6)
