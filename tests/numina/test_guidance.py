import itertools
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from numina.bias import PARTS, SPARSE, ShardGuidance, _row_lists, take
from numina.config import GuideConfig
from numina.guidance import GuidancePlan, plan_guidance
from numina.layout import Layout
from numina.prompts.tokens import TokenSpans
from numina.regions import Refinement, Region
from numina.schedule import intensity, schedule_times

CLOSED = GuideConfig(
    remove=10, add=6, keep=2, elsewhere=6, other=4, overwrite="none", tokens="phrase", schedule="constant", until=0.8
)
PAPER = GuideConfig()
RELEASED = GuideConfig(overwrite="global", tokens="first")
EVERYTHING = GuideConfig(keep=1, elsewhere=2, other=3)
ONLY_ADDED = GuideConfig(overwrite="none", other=1.5)
F, H, W = 3, 4, 5
ROWS, TEXT, N, D = F * H * W, 23, 2, 8
TOKENS = ((1, 2), (5,))
NONE, KEEP, REMOVE, DISC, COPY, REFERENCE = Region


def plan_of(regions: list[list[Region]], config: GuideConfig, tokens=TOKENS) -> GuidancePlan:
    """A plan of one frame of one row, from a list of regions per noun."""
    return GuidancePlan(np.array(regions, dtype=np.int8)[:, None, None], tokens, config)


def random_plan(seed: int, config: GuideConfig, *, nouns: int = 2, share: float = 1.0) -> GuidancePlan:
    """Every region at random on a share of the rows; copies may lack a reference, nouns may share tokens."""
    random = np.random.default_rng(seed)
    regions = random.choice([NONE, KEEP, REMOVE, DISC, COPY, REFERENCE], size=(nouns, F, H, W)).astype(np.int8)
    regions[random.random(regions.shape) > share] = NONE
    tokens = tuple(tuple(random.choice(TEXT, size=random.integers(1, 4), replace=False).tolist()) for _ in range(nouns))
    return GuidancePlan(regions, tokens, config)


def oracle_scores(scores: torch.Tensor, plan: GuidancePlan, delta: float, scale: float) -> torch.Tensor:
    """The module's table in float64, one row, noun and token at a time, on scores [N, rows, T]."""
    config, guided = plan.config, scores.clone()
    flat = plan.regions.reshape(len(plan.regions), -1)
    overwritten: dict[tuple[int, int], torch.Tensor] = {}
    for row, noun in itertools.product(range(flat.shape[1]), range(len(flat))):
        region = Region(int(flat[noun, row]))
        frame = np.arange(flat.shape[1]) // (H * W) == row // (H * W)
        reference = np.flatnonzero(frame & (flat[noun] == REFERENCE))
        own = list(plan.tokens[noun])
        if region is COPY and config.overwrite != "none" and len(reference):
            for token in own:
                if config.overwrite == "head":
                    mean = scores[:, reference, token].mean(dim=1)
                    strengthened = torch.where(mean >= 0, mean * delta, mean / delta)
                    overwritten[row, token] = torch.maximum(strengthened, scores[:, row, token])
                else:
                    mean = scores[:, reference][:, :, own].mean()
                    overwritten[row, token] = scores[:, row, token] - scores[:, row, token].mean() + delta * mean
            continue
        strength = {
            NONE: -config.elsewhere,
            KEEP: config.keep,
            REFERENCE: config.keep,
            REMOVE: -config.remove,
            DISC: config.add,
            COPY: config.add,
        }[region]
        others = [flat[other, row] for other in range(len(flat)) if other != noun]
        if region not in (DISC, COPY) and any(other in (DISC, COPY) for other in others):
            strength -= config.other
        guided[:, row, own] += delta * scale * strength
    for (row, token), score in overwritten.items():
        guided[:, row, token] = score
    return guided


def oracle(q, k, v, plans: Sequence[GuidancePlan], delta: float) -> torch.Tensor:
    """Guided cross-attention of whole clips in float64, dense: [B, rows, N, D]."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / D**0.5
    clips = zip(scores, plans, strict=True)
    guided = torch.stack([oracle_scores(own, plan, delta, plan.scale) for own, plan in clips]) if delta else scores
    return torch.einsum("bhij,bjhd->bihd", guided.softmax(dim=-1), v)


def attend(q, k, v, mask=None) -> torch.Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


def sharded(
    q, k, v, plans: Sequence[GuidancePlan], delta: float, shards: list[slice], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Guided cross-attention as ranks do it: each its own rows, with sums of the references added over all of them."""
    ready = [ShardGuidance.prepare(plans, rows, TEXT, dtype=dtype) for rows in shards]
    q = torch.nn.functional.pad(q, (0, 0, 0, 0, 0, max(0, shards[-1].stop - ROWS)))
    queries = [q[:, rows] for rows in shards]
    keys, values = (ready[0].arrange(x.flatten(2)).view_as(x) for x in (k, v))
    sums: list[torch.Tensor] = []

    def collect(part: torch.Tensor) -> torch.Tensor:
        sums.append(part)
        return part

    for query, guidance in zip(queries, ready, strict=True):
        guidance.set(delta)
        if guidance.copies is not None:
            guidance.copies.mean_queries(query, collect)
    assert len(sums) in (0, len(shards))  # all ranks enter the collective, or none
    out = []
    for query, guidance in zip(queries, ready, strict=True):
        result = attend(query, keys, values, None if guidance.bias is None else guidance.bias.mask(keys))
        flat = result.flatten(2).flatten(0, 1)
        if guidance.rows is not None:
            again = attend(take(query, guidance.rows), keys, values, guidance.row_bias.mask(keys))
            flat[guidance.rows.flatten()] = again.flatten(2).flatten(0, 1)
        if guidance.copies is not None:
            copies = guidance.copies
            means = copies.mean_scores(sum(sums), keys)
            chosen = take(query, copies.rows)
            mask = copies.mask(chosen, keys, means, guidance.delta)
            flat[copies.rows.flatten()] = attend(chosen, keys, values, mask).flatten(2).flatten(0, 1)
        result = flat.view(query.shape)
        out.append(result)
    return torch.cat(out, dim=1)[:, :ROWS]


def random_attention(seed: int, clips: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(clips, ROWS, N, D, generator=generator)
    k, v = torch.randn(2, clips, TEXT, N, D, generator=generator)
    return q, k, v


CONFIGS = {
    "paper": PAPER,
    "closed": CLOSED,
    "released": RELEASED,
    "everything": EVERYTHING,
    "everything global": replace(EVERYTHING, overwrite="global"),
    "only added": ONLY_ADDED,
}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(list(CONFIGS)),
    st.sampled_from([1, 3]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.sampled_from([0.25, 1.0, 1.75]),
    st.booleans(),
    st.lists(st.integers(0, ROWS), max_size=2),
    st.sampled_from([0, 7]),
)
def test_shards_equal_the_float64_oracle(seed, name, clips, share, delta, scaled, cuts, padding):
    """Any plans, however many clips and however rows are divided: guided attention is the plain dense definition."""
    plans = [random_plan(seed + clip, CONFIGS[name], nouns=1 + (seed + clip) % 3, share=share) for clip in range(clips)]
    if scaled:
        plans = [replace(plan, scale=0.4 + clip) for clip, plan in enumerate(plans)]
    q, k, v = random_attention(seed, clips)
    edges = [0, *sorted(cuts), ROWS + padding]
    shards = [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]
    found = sharded(q, k, v, plans, delta, shards)
    torch.testing.assert_close(found.double(), oracle(q, k, v, plans, delta), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "share", "forms"),
    [
        (PAPER, 0.1, {"rows", "row_bias", "copies"}),
        (RELEASED, 0.1, {"rows", "row_bias", "copies"}),
        (PAPER, 1.0, {"bias", "copies"}),
        (EVERYTHING, 0.1, {"bias", "copies"}),
        (CLOSED, 0.1, {"bias"}),
        (ONLY_ADDED, 0.1, {"rows", "row_bias"}),
        (PAPER, 0.0, {"rows", "row_bias", "copies"}),
    ],
)
def test_the_form_follows_from_what_changes(config, share, forms):
    """A mask where most rows change, rows computed again where few do; copies always are, where they may be."""
    guidance = ShardGuidance.prepare([random_plan(1, config, share=share)], slice(0, ROWS), TEXT)
    assert {name for name in ("bias", "rows", "row_bias", "copies") if getattr(guidance, name) is not None} == forms


@pytest.mark.parametrize("config", [PAPER, RELEASED, CLOSED, EVERYTHING, ONLY_ADDED])
def test_a_shard_without_changes_is_plain_attention(config):
    """A rank that holds none of the changed rows takes part in the references, and computes what it would have."""
    regions = np.zeros((2, F, H, W), dtype=np.int8)
    regions[0, :2] = KEEP
    regions[0, 0, 0], regions[0, 0, 2] = REFERENCE, COPY
    plan = GuidancePlan(regions, TOKENS, config)
    q, k, v = random_attention(4)
    halves = [slice(0, 40), slice(40, ROWS)]
    found = sharded(q, k, v, [plan], 1.75, halves)
    torch.testing.assert_close(found.double(), oracle(q, k, v, [plan], 1.75), atol=2e-5, rtol=1e-4)
    if not config.elsewhere:
        torch.testing.assert_close(found[:, 40:], attend(q, k, v)[:, 40:], atol=1e-6, rtol=1e-6)
    parts = [ShardGuidance.prepare([plan], rows, TEXT) for rows in halves]
    assert len({part.copies is None for part in parts}) == 1


def bias_of(plan: GuidancePlan, delta: float = 1.0, rows: slice | None = None, dtype=torch.float32) -> torch.Tensor:
    """The mask of a plan that changes most rows, with the text's tokens in their own order: [rows, T]."""
    guidance = ShardGuidance.prepare([plan], rows or slice(0, plan.rows), TEXT, dtype=dtype)
    guidance.set(delta)
    assert guidance.bias is not None
    mask = guidance.bias.mask(torch.zeros(1, TEXT, N, D, dtype=dtype))
    return mask[0, 0][:, guidance.order[0].argsort()]


def test_closed_table_by_hand():
    """One row of each kind: what the closed form does to a noun's own tokens and to the other noun's."""
    bias = bias_of(plan_of([[NONE, KEEP, REMOVE, DISC, COPY], [NONE, NONE, KEEP, KEEP, NONE]], CLOSED))
    assert bias[:, 1].tolist() == bias[:, 2].tolist() == [-6, 2, -10, 6, 6]
    assert bias[:, 5].tolist() == [-6, -6, 2, 2 - 4, -6 - 4]
    others = [token for token in range(TEXT) if token not in (1, 2, 5)]
    assert bias[:, others].abs().max() == 0


def test_bias_is_linear_in_intensity_and_scale():
    """δ and a plan's scale multiply every addition."""
    plan = random_plan(2, CLOSED)
    torch.testing.assert_close(bias_of(plan, 1.75), 1.75 * bias_of(plan))
    torch.testing.assert_close(bias_of(replace(plan, scale=0.5), 1.75), 0.5 * 1.75 * bias_of(plan))


def test_padding_rows_are_left_alone():
    """Rows that only pad a sequence shard get no bias, and are no copies and no reference."""
    bias = bias_of(random_plan(0, CLOSED), rows=slice(50, 64), dtype=torch.bfloat16)
    assert bias.shape == (14, TEXT)
    assert bias.dtype == torch.bfloat16
    assert bias[10:].abs().max() == 0
    assert bias[:10].abs().max() > 0
    beyond = ShardGuidance.prepare([random_plan(0, PAPER)], slice(60, 64), TEXT)
    assert beyond.copies is not None
    assert not beyond.copies.copied.any()
    assert beyond.copies.membership.abs().max() == 0


@pytest.mark.parametrize("mean", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_more_intensity_is_never_less_attention(mean):
    """The weighted mean grows with δ, also where the mean is negative; δ = 1 is the mean itself."""
    plan, own = plan_of([[REFERENCE, COPY]], PAPER, tokens=((0,),)), -32.0  # lower than any weighted mean
    q = torch.tensor([mean, own])[None, :, None, None]  # [1, 2, 1, 1]: scores are the queries
    k = torch.zeros(1, 2, 1, 1)
    k[0, 0] = 1.0
    values = []
    for delta in (0.25, 0.5, 1.0, 1.5, 1.75):
        guidance = ShardGuidance.prepare([plan], slice(0, 2), 2)
        guidance.set(delta)
        keys = guidance.arrange(k.flatten(2)).view_as(k)
        means = guidance.copies.mean_scores(guidance.copies.mean_queries(q, lambda part: part), keys)
        rows = guidance.copies.rows
        mask = guidance.copies.mask(take(q, rows), keys, means, guidance.delta)
        values.append(own + mask[0, 0, (rows[0] == 1).nonzero()[0, 0], -1].item())
    assert values == sorted(values)
    assert values[2] == mean


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.25, 1.75),
    st.sampled_from([0.5, 3.0, 12.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, ROWS),
)
def test_a_copy_never_gets_less_attention_than_unguided(seed, delta, spread, dtype, cut):
    """In each head and row of a copy the noun's share of the softmax is at least the unguided one, at any δ.

    Of any scores: the published δ·m takes from copies where m is above 0 and δ below 1, and m/δ where it is below 0.
    """
    random = np.random.default_rng(seed)
    regions = random.choice([NONE, KEEP, REMOVE, COPY, REFERENCE], size=(1, F, H, W)).astype(np.int8)
    plan = GuidancePlan(regions, (tuple(random.choice(TEXT, size=3, replace=False).tolist()),), PAPER)
    q, k, _ = random_attention(seed)
    q, k = (spread * q).to(dtype), k.to(dtype)
    v = torch.zeros(1, TEXT, N, D, dtype=dtype)
    v[:, list(plan.tokens[0])] = 1.0  # the output is then the noun's share
    shards = [slice(a, b) for a, b in itertools.pairwise([0, cut, ROWS]) if a < b]
    guided = sharded(q, k, v, [plan], delta, shards, dtype=dtype)
    plain = attend(q, k, v)
    copies = torch.from_numpy(regions.ravel() == COPY)
    slack = 1e-5 if dtype == torch.float32 else 2**-7  # two roundings of a share
    assert (guided - plain)[:, copies].min().item() >= -slack if copies.any() else True


@pytest.mark.parametrize("overwrite", ["head", "global"])
def test_a_copy_without_a_reference_is_biased_like_a_disc(overwrite):
    """Nothing to copy from in the frame: + k·δ, whatever the overwrite rule."""
    regions = np.zeros((1, F, H, W), dtype=np.int8)
    regions[0, 1, 2] = COPY
    copies = GuidancePlan(regions, ((3,),), replace(PAPER, overwrite=overwrite))
    discs = replace(copies, regions=np.where(regions == COPY, DISC, regions).astype(np.int8))
    q, k, v = random_attention(6)
    found, expected = (sharded(q, k, v, [plan], 1.5, [slice(0, ROWS)]) for plan in (copies, discs))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, attend(q, k, v))


def test_masks_are_written_only_for_another_intensity():
    """A constant δ writes the mask once a clip; another δ writes it in place."""
    guidance = ShardGuidance.prepare([random_plan(3, CLOSED)], slice(0, ROWS), TEXT)
    guidance.set(1.75)
    mask, version = guidance.bias.kept, guidance.bias.kept._version
    guidance.set(1.75)
    assert mask._version == version
    guidance.set(0.5)
    assert guidance.bias.kept is mask
    assert mask._version == version + 1
    assert guidance.delta.item() == 0.5


def test_prepared_inside_inference_mode_it_can_be_set_outside():
    """Where it was prepared makes no difference to the tensors."""
    with torch.inference_mode():
        guidance = ShardGuidance.prepare([random_plan(3, EVERYTHING)], slice(0, ROWS), TEXT)
    guidance.set(1.0)
    assert not guidance.bias.kept.is_inference()
    assert not guidance.copies.membership.is_inference()


def test_lengths_do_not_follow_the_prompt():
    """Lists of rows are padded to steps, tail columns and references to more nouns and tokens than prompts have."""
    shapes = set()
    for seed in range(4):
        plan = random_plan(seed, PAPER, nouns=1 + seed % 3, share=0.04)
        guidance = ShardGuidance.prepare([plan], slice(0, ROWS), TEXT)
        copies = guidance.copies
        shapes.add((guidance.rows.shape, copies.rows.shape, copies.source.shape, copies.membership.shape))
    assert shapes == {((1, 32), (1, 36), (1, 1, 36, 16), (1, 8, 4 * F, 5))}


@pytest.mark.parametrize("rows", [60, 4095, 32760])
def test_lengths_of_different_lists_never_meet(rows):
    """Whatever is in them: torch.compile would take equal lengths for one, and compile again where they part."""
    lengths = [set(), set(), set()]
    for count in range(0, rows, max(1, rows // 60)):
        chosen = np.arange(rows)[None] < count
        for kind, found in enumerate(lengths):
            length = _row_lists(chosen, kind).shape[1]
            assert length >= count
            assert length % PARTS == 0 or kind < 2
            found.add(length // PARTS if kind == 2 else length)
    assert not lengths[0] & lengths[1] | lengths[1] & lengths[2] | lengths[0] & lengths[2]


def test_tanh_schedule_is_the_published_one():
    """δ(t) = ¼·(4 − 3·tanh(t − 25)) over 50 steps, rescaled to any number of steps, always falling."""
    published = [intensity(time, PAPER) for time in schedule_times(50)]
    assert published == pytest.approx([0.25 * (4 - 3 * math.tanh(step - 25)) for step in range(50)])
    assert published[25] == intensity(schedule_times(20)[10], PAPER) == 1.0
    values = [intensity(time, PAPER) for time in schedule_times(30)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("until", "steps", "guided"), [(0.8, 25, 20), (1.0, 7, 7), (0.0, 7, 0), (0.29, 100, 29)])
def test_guidance_is_on_for_its_share_of_the_steps(until, steps, guided):
    """Constant strength while on, 0 after; a share that names whole steps is taken exactly."""
    config = GuideConfig(schedule="constant", strength=1.5, until=until)
    values = [intensity(time, config) for time in schedule_times(steps)]
    assert values == [1.5] * guided + [0.0] * (steps - guided)


def test_plan_takes_the_configured_tokens():
    """noun, phrase or first mention: the spans' tokens in the layout's order; a span too few is an error."""
    labels = np.zeros((2, 1, 2, 2), dtype=np.int16)
    refinement = Refinement(Layout(labels), labels.astype(np.int8), (0, 0))
    spans = [TokenSpans(noun=(3, 8), phrase=(2, 3), first=(3,)), TokenSpans(noun=(6,), phrase=(6,), first=(6,))]
    assert plan_guidance(refinement, spans, PAPER).tokens == ((3, 8), (6,))
    assert plan_guidance(refinement, spans, CLOSED).tokens == ((2, 3), (6,))
    assert plan_guidance(refinement, spans, RELEASED, 1.4).tokens == ((3,), (6,))
    assert plan_guidance(refinement, spans, RELEASED, 1.4).scale == 1.0
    assert plan_guidance(refinement, spans, replace(CLOSED, unit="deviation"), 1.4).scale == 1.4
    with pytest.raises(ValueError, match="1 token spans for 2 nouns"):
        plan_guidance(refinement, spans[:1], PAPER)


def test_plan_travels_small():
    """A 480p clip's plan for three nouns pickles to about a byte per row and noun, never a dense mask."""
    plan = GuidancePlan(np.zeros((3, 21, 30, 52), dtype=np.int8), ((1,), (2,), (3,)), CLOSED)
    data = pickle.dumps(plan)
    assert len(data) < 3 * 32760 + 2000
    assert pickle.loads(data).rows == 32760


def test_what_does_not_fit_together_is_refused():
    """A strided shard, plans of different kinds, a token beyond the text: errors, not misreadings."""
    plan = random_plan(0, CLOSED)
    with pytest.raises(ValueError, match="contiguous"):
        ShardGuidance.prepare([plan], slice(0, 10, 2), TEXT)
    with pytest.raises(ValueError, match="differ"):
        ShardGuidance.prepare([plan, replace(plan, config=PAPER)], slice(0, 10), TEXT)
    with pytest.raises(ValueError, match=r"text tokens \[30\]"):
        ShardGuidance.prepare([replace(plan, tokens=((1,), (30,)))], slice(0, 10), TEXT)


def test_the_threshold_is_a_share_of_the_rows():
    """Just under it rows are computed again, above it all are masked."""
    few, many = (plan_of([[REMOVE] * n + [NONE] * (30 - n)], ONLY_ADDED, ((3,),)) for n in (10, 11))
    assert pytest.approx(1 / 3) == SPARSE
    assert ShardGuidance.prepare([few], slice(0, 30), TEXT).bias is None
    assert ShardGuidance.prepare([many], slice(0, 30), TEXT).bias is not None
