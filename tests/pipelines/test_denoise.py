"""Two-phase generation: looking on changes nothing, going on repeats nothing, guidance starts from the same noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.guidance import GuidancePlan
from numina.refine import Region
from numina.tokens import locate_tokens
from pipelines import denoise
from pipelines.base import Text
from pipelines.parallel import Shard
from pipelines.wan import WanModel
from tests.pipelines.conftest import GENERATION, PROMPT, TARGETS

CLUSTERS = MethodConfig(identify=IdentifyConfig(source="clusters"))
COMPONENTS = MethodConfig(identify=IdentifyConfig(source="components", tokens="phrase", head="mean"))


@pytest.fixture(scope="module")
def text(tiny_model: WanModel) -> Text:
    return tiny_model.encode(PROMPT, "", GENERATION)


@pytest.fixture(scope="module")
def plain(tiny_model: WanModel, text: Text) -> torch.Tensor:
    return denoise.finish(tiny_model, denoise.start(tiny_model, 1, GENERATION), text, GENERATION)


@pytest.mark.parametrize("method", [CLUSTERS, COMPONENTS], ids=["clusters", "components"])
def test_going_on_after_identification_is_bit_equal_to_plain(
    tiny_model: WanModel, text: Text, plain: torch.Tensor, method: MethodConfig
) -> None:
    """Capture disturbs nothing and no step runs twice: the clip is the plain clip, bit for bit."""
    spans = locate_tokens(text.prompt, TARGETS, text.offsets)
    state, capture = denoise.identify(tiny_model, Shard(), text, spans, 1, GENERATION, method)
    assert state.step == method.identify.capture_step(GENERATION.steps) + 1
    assert capture.responses.shape == (2, 5, 4, 4)
    assert (capture.components is not None) == (method is CLUSTERS)
    assert torch.equal(denoise.finish(tiny_model, state, text, GENERATION), plain)


def test_processors_are_put_back(tiny_model: WanModel, text: Text) -> None:
    """After capture and guidance the model has the processors that it came with."""
    before = dict(tiny_model.transformer.attn_processors)
    spans = locate_tokens(text.prompt, TARGETS, text.offsets)
    denoise.identify(tiny_model, Shard(), text, spans, 1, GENERATION, CLUSTERS)
    denoise.guide(tiny_model, Shard(), text, some_plan(spans, GuideConfig()), 1, GENERATION)
    assert dict(tiny_model.transformer.attn_processors) == before


def some_plan(spans: tuple, config: GuideConfig) -> GuidancePlan:
    """A reference and a copy of it, a disc and a removal, in every frame."""
    regions = np.zeros((2, 5, 4, 4), dtype=np.int8)
    regions[0, :, 0, 0] = Region.REFERENCE
    regions[0, :, 2:, 1] = Region.ADD_COPY
    regions[1, :, 1, 2] = Region.REMOVE
    regions[1, :, 3, 3] = Region.ADD_DISC
    return GuidancePlan(regions, tuple(span.noun for span in spans), config)


def test_a_plan_without_strength_changes_nothing(tiny_model: WanModel, text: Text, plain: torch.Tensor) -> None:
    """Zero bias through the guided processor is the unguided model, to float32 rounding."""
    spans = locate_tokens(text.prompt, TARGETS, text.offsets)
    nothing = some_plan(spans, GuideConfig(remove=0, add=0, overwrite="none"))
    guided = denoise.guide(tiny_model, Shard(), text, nothing, 1, GENERATION)
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [GuideConfig(), GuideConfig(overwrite="none")], ids=["overwrite", "add"])
def test_guidance_changes_the_clip_from_the_same_noise(
    tiny_model: WanModel, text: Text, plain: torch.Tensor, config: GuideConfig
) -> None:
    """Guidance is deterministic and reaches the latents."""
    spans = locate_tokens(text.prompt, TARGETS, text.offsets)
    plan = some_plan(spans, config)
    once, twice = (denoise.guide(tiny_model, Shard(), text, plan, 1, GENERATION) for _ in range(2))
    assert torch.equal(once, twice)
    assert not torch.allclose(once, plain, atol=1e-4)


def test_guidance_leaves_the_unconditional_pass_alone(tiny_model: WanModel, text: Text) -> None:
    """At guidance scale 0 the clip is the unconditional pass alone, and no plan can reach it."""
    unconditional_only = replace(GENERATION, guidance_scale=0.0)
    spans = locate_tokens(text.prompt, TARGETS, text.offsets)
    guided = denoise.guide(tiny_model, Shard(), text, some_plan(spans, GuideConfig()), 1, unconditional_only)
    start = denoise.start(tiny_model, 1, unconditional_only)
    assert torch.equal(guided, denoise.finish(tiny_model, start, text, unconditional_only))


def test_until_ends_guidance(tiny_model: WanModel, text: Text) -> None:
    """Steps past `until` run unguided: the two runs differ only if those steps were guided."""
    spans = locate_tokens(text.prompt, TARGETS, text.offsets)
    seen: list[int] = []
    constant = GuideConfig(schedule="constant", until=0.5, overwrite="none")
    cross = tiny_model.cross_attention(0)
    original = cross.processor

    def watch(stage: str, done: int, total: int) -> None:
        assert cross.processor is original  # between steps nothing is installed
        seen.append(done)

    half = denoise.guide(tiny_model, Shard(), text, some_plan(spans, constant), 1, GENERATION, watch)
    full_config = GuideConfig(schedule="constant", until=1.0, overwrite="none")
    full = denoise.guide(tiny_model, Shard(), text, some_plan(spans, full_config), 1, GENERATION)
    assert seen == list(range(1, GENERATION.steps + 1))
    assert not torch.equal(half, full)


def test_noise_depends_on_the_seed_alone(tiny_model: WanModel) -> None:
    """The same seed gives the same noise whatever torch's global state; another seed another."""
    torch.manual_seed(5)
    first = tiny_model.noise(3, GENERATION)
    torch.manual_seed(6)
    assert torch.equal(first, tiny_model.noise(3, GENERATION))
    assert not torch.equal(first, tiny_model.noise(4, GENERATION))
