"""The guided processor against the method written out in float64 from the model's own projections."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch._dynamo.testing import CompileCounterWithBackend

from numina.bias import ShardGuidance
from numina.config import GuideConfig
from numina.guidance import GuidancePlan
from numina.regions import Region
from pipelines.attention.cross import GuidedCrossAttention, Onlooker, guided, processors, project
from pipelines.base import Attention, Processor
from pipelines.models.wan import WanModel
from pipelines.parallel.shard import Shard
from tests.pipelines.rules import ruled

F, H, W, T = 3, 4, 4, 24
PAPER = GuideConfig()
CLOSED = GuideConfig(overwrite="none", add=6, keep=2, elsewhere=6, other=4)
CONFIGS = {
    "paper": PAPER,
    "closed": CLOSED,
    "released": GuideConfig(overwrite="global"),
    "overwrite and closed": GuideConfig(keep=1, elsewhere=2, other=3),
    "few rows": GuideConfig(overwrite="none"),
}


def plan_with(config: GuideConfig, variant: int = 0) -> GuidancePlan:
    """A plan with every region; another variant has other rows, and more of them."""
    regions = np.zeros((2, F, H, W), dtype=np.int8)
    regions[0, :, 0, :2] = Region.REFERENCE
    regions[0, :, 2, 1 : 2 + variant] = Region.ADD_COPY
    regions[0, 1, 3, 3] = Region.KEEP
    regions[1, :, 1, 2 - variant] = Region.REMOVE
    regions[1, 2, 3, 0] = Region.ADD_DISC
    return GuidancePlan(regions, ((2, 3 + variant), (6,)), config)


def by_the_book(attn: torch.nn.Module, hidden: torch.Tensor, text: torch.Tensor, plan: GuidancePlan, delta: float):
    """Every rule of arXiv 2604.08546 §3.4 (and the closed form's), one row, noun and token at a time, in float64."""
    query, key, value = (x[0].double().transpose(0, 1) for x in project(attn, hidden, text, None))
    plain = query @ key.mT / query.shape[-1] ** 0.5  # [N, n, T]
    scores = ruled(plain, plan, delta)
    output = (scores.softmax(dim=-1) @ value).transpose(0, 1).flatten(1)
    return torch.nn.functional.linear(output, attn.to_out[0].weight.double(), attn.to_out[0].bias.double())


def states(attn: torch.nn.Module, clips: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random hidden states and text states of a block."""
    generator = torch.Generator().manual_seed(0)
    width = attn.to_q.in_features
    hidden = torch.randn(clips, F * H * W, width, generator=generator)
    return hidden, torch.randn(clips, T, width, generator=generator)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("delta", [1.75, 0.25])
def test_the_processor_computes_the_rules(tiny_model: WanModel, config: GuideConfig, delta: float) -> None:
    """Guided cross-attention of a batch equals the rules written out clip by clip, to float32 rounding."""
    attn = tiny_model.cross_attention(1)
    hidden, text = states(attn, clips=3)
    plans = [plan_with(config, variant) for variant in (0, 1, 0)]
    guidance = ShardGuidance.prepare(plans, slice(0, F * H * W), T)
    clips = zip(hidden.split(1), text.split(1), plans, strict=True)
    expected = torch.stack([by_the_book(attn, *clip, delta) for clip in clips])
    with torch.inference_mode(), guided(tiny_model, Shard(), guidance, delta):
        found = attn(hidden, text)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
    with torch.inference_mode():
        assert not torch.allclose(attn(hidden, text), found, atol=1e-3)  # after the block, the plain processor again


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bf16_stays_as_close_as_plain_attention(tiny_model: WanModel, config: GuideConfig) -> None:
    """In bfloat16 the guided output is off float64 by no more than twice what plain attention is."""
    attn = tiny_model.cross_attention(1)
    hidden, text = (x.bfloat16().float() for x in states(attn))
    plan, nothing = plan_with(config), GuideConfig(remove=0, add=0, overwrite="none")
    guidance = ShardGuidance.prepare([plan], slice(0, F * H * W), T, dtype=torch.bfloat16)
    expected = by_the_book(attn, hidden, text, plan, 1.75)
    plain = by_the_book(attn, hidden, text, replace(plan, config=nothing), 1.75)
    weights = {name: value.clone() for name, value in attn.state_dict().items()}  # rounding is for this test alone
    attn.bfloat16()
    try:
        with torch.inference_mode():
            error = (attn(hidden.bfloat16(), text.bfloat16())[0].double() - plain).abs()
            with guided(tiny_model, Shard(), guidance, 1.75):
                guided_error = (attn(hidden.bfloat16(), text.bfloat16())[0].double() - expected).abs()
    finally:
        attn.float().load_state_dict(weights)
    assert guided_error.mean() <= 2 * error.mean()
    assert guided_error.max() <= 2 * error.max()


def padded_states(attn: torch.nn.Module, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random hidden states, and texts padded to 512 tokens by one vector, as a text embedder makes of zeros."""
    hidden, _ = states(attn, len(lengths))
    text = torch.randn(len(lengths), 512, hidden.shape[2], generator=torch.Generator().manual_seed(1))
    for own, length in zip(text, lengths, strict=True):
        own[length:] = text[0, -1]
    return hidden, text


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_has_fewer_columns(tiny_model: WanModel, config: GuideConfig) -> None:
    """Where a mask is over all rows, 512 tokens are 256 columns; the rules over all 512 hold to float32 rounding."""
    attn, lengths = tiny_model.cross_attention(1), [30, 9]
    hidden, text = padded_states(attn, lengths)
    plans = [plan_with(config, variant) for variant in (0, 1)]
    guidance = ShardGuidance.prepare(plans, slice(0, F * H * W), 512, lengths=lengths)
    assert guidance.order.shape[1] == (512 if guidance.bias is None else 256)
    clips = zip(hidden.split(1), text.split(1), plans, strict=True)
    expected = torch.stack([by_the_book(attn, *clip, 1.75) for clip in clips])
    with torch.inference_mode(), guided(tiny_model, Shard(), guidance, 1.75):
        found = attn(hidden, text)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


def test_fewer_columns_round_no_worse_in_bf16(tiny_model: WanModel) -> None:
    """Off float64 by no more than a tenth more than all columns, though log P is no number of bfloat16."""
    attn, plan = tiny_model.cross_attention(1), plan_with(CLOSED)
    hidden, text = (x.bfloat16().float() for x in padded_states(attn, [30]))
    expected, errors = by_the_book(attn, hidden, text, plan, 1.75), []
    weights = {name: value.clone() for name, value in attn.state_dict().items()}
    attn.bfloat16()
    try:
        for lengths in ([30], None):
            guidance = ShardGuidance.prepare([plan], slice(0, F * H * W), 512, dtype=torch.bfloat16, lengths=lengths)
            with torch.inference_mode(), guided(tiny_model, Shard(), guidance, 1.75):
                errors.append((attn(hidden.bfloat16(), text.bfloat16())[0].double() - expected).square().mean())
    finally:
        attn.float().load_state_dict(weights)
    assert errors[0] <= 1.1 * errors[1]


def test_texts_that_leave_no_room_keep_their_columns(tiny_model: WanModel) -> None:
    """A long text of a batch, or a short text length, keeps all columns for all."""
    rows, plans = slice(0, F * H * W), [plan_with(CLOSED)] * 2
    for text, lengths in ((512, [30, 241]), (256, [30, 30])):
        guidance = ShardGuidance.prepare(plans, rows, text, lengths=lengths)
        assert (guidance.order.shape[1], guidance.padding) == (text, None)
    assert ShardGuidance.prepare(plans, rows, 512, lengths=[30, 226]).order.shape[1] == 256


def test_without_intensity_nothing_is_installed(tiny_model: WanModel) -> None:
    """δ = 0 is the model as it came."""
    guidance = ShardGuidance.prepare([plan_with(PAPER)], slice(0, F * H * W), T)
    before = dict(tiny_model.transformer.attn_processors)
    with guided(tiny_model, Shard(), guidance, 0.0):
        assert dict(tiny_model.transformer.attn_processors) == before


@dataclass
class Transformer:
    """As much of a video model as guidance asks for."""

    transformer: WanTransformer3DModel

    def guided(self, guidance: ShardGuidance, shard: Shard) -> Mapping[Attention, Processor]:
        return {block.attn2: GuidedCrossAttention(guidance, shard) for block in self.transformer.blocks}

    def predict(self, latents: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.transformer(latents, torch.full((len(latents),), 500.0), text, return_dict=False)[0]


@pytest.fixture
def compiled() -> Iterator[tuple[Transformer, Transformer, CompileCounterWithBackend]]:
    """A small transformer, plain and compiled as the pipeline does it, and what counts graphs."""
    torch.manual_seed(0)
    options = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16}
    build = {**options, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 64}
    plain, model = (WanTransformer3DModel(**build).eval() for _ in range(2))
    model.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model.compile_repeated_blocks(fullgraph=True, backend=counter)
    yield Transformer(plain), Transformer(model), counter
    torch._dynamo.reset()


def sparse_plan(config: GuideConfig, variant: int) -> GuidancePlan:
    """Prompts that differ in nouns, tokens, and how many of 768 rows are copies (0 to 144) or removed (3 to 48)."""
    regions = np.zeros((1 + variant % 3, 3, 16, 16), dtype=np.int8)
    regions[0, :, 0:2, : 1 + 4 * variant] = Region.REFERENCE
    regions[0, :, 8:10, : 8 * variant] = Region.ADD_COPY
    regions[-1, :, 14, : 1 + 5 * variant] = Region.REMOVE
    return GuidancePlan(regions, ((2, 3), (5 + variant,), (9, 10, 11))[: len(regions)], config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_one_graph_serves_all_prompts_and_steps(compiled, config: GuideConfig) -> None:
    """Compiled whole: one graph for plain blocks, one for guided ones; no other block, prompt, δ or step adds one."""
    plain, model, counter = compiled
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 4, 3, 32, 32, generator=generator), torch.randn(1, T, 16, generator=generator)
    torch.testing.assert_close(model.predict(latents, text), plain.predict(latents, text), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    lengths, stance = set(), "default"
    for variant in (1, 2, 3, 0):
        guidance = ShardGuidance.prepare([sparse_plan(config, variant)], slice(0, 768), T)
        lists = (guidance.rows, guidance.copies and guidance.copies.rows)
        lengths.add(tuple(None if rows is None else rows.shape for rows in lists))
        for delta in (1.75, 0.5):
            with torch.compiler.set_stance(stance), guided(model, Shard(), guidance, delta):
                found = model.predict(latents, text)
            stance = "fail_on_recompile"
            with guided(plain, Shard(), guidance, delta):
                torch.testing.assert_close(found, plain.predict(latents, text), atol=1e-5, rtol=1e-5)
        with torch.compiler.set_stance(stance):
            model.predict(latents, text)  # the unconditional pass between them
    assert len(lengths) > 1 or config.elsewhere  # shapes did differ, where rows are chosen
    assert counter.frame_count == 2


def test_fewer_columns_are_one_graph(compiled) -> None:
    """For every length of text that fits; a text that doesn't has one of its own, and then both stay."""
    plain, model, counter = compiled
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 4, 3, 32, 32, generator=generator), torch.randn(1, 512, 16, generator=generator)
    for number, length in enumerate((20, 100, 180, 400, 30, 500)):
        own = text.clone()
        own[:, length:] = 0
        guidance = ShardGuidance.prepare([sparse_plan(CLOSED, number % 4)], slice(0, 768), 512, lengths=[length])
        stance = "default" if length in (20, 400) else "fail_on_recompile"
        with torch.compiler.set_stance(stance), guided(model, Shard(), guidance, 1.5 - number / 10):
            found = model.predict(latents, own)
        assert guidance.order.shape[1] == (256 if length < 240 else 512)
        whole = ShardGuidance.prepare([sparse_plan(CLOSED, number % 4)], slice(0, 768), 512)
        with guided(plain, Shard(), whole, 1.5 - number / 10):
            torch.testing.assert_close(found, plain.predict(latents, own), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2


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


@pytest.mark.parametrize("fused", [False, True])
def test_looking_on_sees_what_the_processor_used(tiny_model: WanModel, fused: bool) -> None:
    """Queries and keys are the projected, normalised, rotated ones; output as ever, nothing projected twice or left."""
    generator = torch.Generator().manual_seed(1)
    rotary = tiny_model.transformer.rope(torch.zeros(1, 4, F, 2 * H, 2 * W))
    for attn, turned in ((tiny_model.self_attention(0), rotary), (tiny_model.cross_attention(0), None)):
        hidden = torch.randn(1, F * H * W, attn.to_q.in_features, generator=generator)
        text = None if turned else torch.randn(1, T, attn.to_q.in_features, generator=generator)
        seen, calls = [], []
        with torch.inference_mode():
            plain, (query, key, _) = attn(hidden, text, None, turned), project(attn, hidden, text, turned)
        if fused:
            attn.fuse_projections()
        counting = (attn.to_q if not fused else attn.to_qkv if turned else attn.to_q).register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        onlooker = Onlooker(attn.processor, lambda *pair, seen=seen: seen.append(pair))
        try:
            with torch.inference_mode(), processors({attn: onlooker}):
                torch.testing.assert_close(attn(hidden, text, None, turned), plain)
        finally:
            counting.remove()
            attn.unfuse_projections()
        torch.testing.assert_close(seen, [(query, key)])
        assert len(calls) == 1
        assert not attn.norm_q._forward_hooks
        assert not attn.norm_k._forward_hooks


def test_a_processor_that_does_not_normalise_is_refused(tiny_model: WanModel) -> None:
    """No guess at what another processor's queries are; an error inside it leaves nothing installed."""
    attn = tiny_model.cross_attention(0)
    hidden, text = states(attn)

    def other(attn, hidden_states, *rest, **options):
        attn.norm_q(hidden_states)
        return hidden_states

    with pytest.raises(RuntimeError, match="norm_q and norm_k 1 and 0 times"):
        Onlooker(other, lambda query, key: None)(attn, hidden, text)
    with pytest.raises(ZeroDivisionError):
        Onlooker(lambda *given: 1 // 0, lambda query, key: None)(attn, hidden, text)
    assert not attn.norm_q._forward_hooks
    assert not attn.norm_k._forward_hooks


@pytest.mark.parametrize("whole", [False, True])
def test_looking_on_in_compiled_blocks(whole: bool) -> None:
    """The graph breaks where someone looks on; a block compiled as a whole says that it can't, or runs eagerly."""
    torch.manual_seed(0)
    options = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16}
    model = WanTransformer3DModel(**options, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=64).eval()
    latents, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, T, 16)
    plain = Transformer(model).predict(latents, text)
    torch._dynamo.reset()
    model.compile_repeated_blocks(fullgraph=whole, backend="aot_eager")
    torch.testing.assert_close(Transformer(model).predict(latents, text), plain, atol=1e-5, rtol=1e-5)
    seen = []
    own = model.blocks[1].attn1
    with processors({own: Onlooker(own.processor, lambda query, key: seen.append(query))}):
        if whole:
            with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.compiler\.disable"):
                Transformer(model).predict(latents, text)
        with torch.compiler.set_stance("force_eager" if whole else "default"):
            found = Transformer(model).predict(latents, text)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    assert [query.shape for query in seen] == [(1, 12, 2, 12)]
    torch._dynamo.reset()
