import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numina.config import GuideConfig
from numina.guidance import GuidancePlan, intensity, overwrite_scores, plan_guidance, reference_sums
from numina.layout import Layout
from numina.refine import Refinement, Region
from numina.tokens import TokenSpans

CLOSED = GuideConfig(
    remove=10, add=6, keep=2, elsewhere=6, other=4, overwrite="none", tokens="phrase", schedule="constant", until=0.8
)
PAPER = GuideConfig()
TEXT = 7
TOKENS = ((1, 2), (5,))
NONE, KEEP, REMOVE, DISC, COPY, REFERENCE = Region


def one_row(regions: list[list[Region]]) -> np.ndarray:
    """Regions [nouns, 1 frame, 1 row, columns] from a list per noun."""
    return np.array(regions, dtype=np.int8)[:, None, None]


def random_plan(seed: int, config: GuideConfig) -> GuidancePlan:
    """A plan with every region at random; a copy's frame always has a reference."""
    random = np.random.default_rng(seed)
    regions = random.choice([NONE, KEEP, REMOVE, DISC, COPY, REFERENCE], size=(2, 3, 4, 5)).astype(np.int8)
    regions[:, :, 0, 0] = REFERENCE
    return GuidancePlan(regions=regions, tokens=TOKENS, config=config)


def oracle_bias(plan: GuidancePlan, delta: float) -> np.ndarray:
    """The table of the module, row by row and noun by noun, in float64."""
    config = plan.config
    flat = plan.regions.reshape(len(plan.regions), -1)
    bias = np.zeros((flat.shape[1], TEXT))
    for row, noun in itertools.product(range(flat.shape[1]), range(len(flat))):
        region = flat[noun, row]
        value = {
            NONE: -config.elsewhere,
            KEEP: config.keep,
            REFERENCE: config.keep,
            REMOVE: -config.remove,
            DISC: config.add,
            COPY: 0.0 if config.overwrite != "none" else config.add,
        }[Region(region)]
        others = [flat[other, row] for other in range(len(flat)) if other != noun]
        if region not in (DISC, COPY) and any(other in (DISC, COPY) for other in others):
            value -= config.other
        bias[row, list(plan.tokens[noun])] += delta * value
    return bias


def biased_attention(q, k, v, plan: GuidancePlan, delta: float) -> torch.Tensor:
    """Oracle: guided cross-attention of a whole clip in float64, dense, by the words of the rules; [rows, heads, D]."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    guided = scores + torch.from_numpy(oracle_bias(plan, delta))
    if plan.config.overwrite != "none" and delta:
        per_frame = plan.regions[0, 0].size
        flat = plan.regions.reshape(len(plan.regions), -1)
        for noun, row in np.argwhere(flat == COPY):
            frame = np.arange(flat.shape[1]) // per_frame == row // per_frame
            reference = np.flatnonzero(frame & (flat[noun] == REFERENCE))
            for token in plan.tokens[noun]:
                mean = scores[:, reference, token].mean(dim=1)
                guided[:, row, token] = torch.where(mean >= 0, mean * delta, mean / delta)
    return torch.einsum("hij,jhd->ihd", guided.softmax(dim=-1), v)


def sharded_attention(q, k, v, plan: GuidancePlan, delta: float, shards: list[slice]) -> torch.Tensor:
    """Guided cross-attention as ranks do it: each its own rows, with sums of the reference added over all of them."""
    parts = [plan.overwrites(rows) for rows in shards]
    queries = [q[rows].transpose(0, 1) for rows in shards]
    scores = [part @ k.permute(1, 2, 0) / q.shape[-1] ** 0.5 for part in queries]
    sums, counts = zip(*map(reference_sums, queries, parts), strict=True)
    means = sum(sums) / sum(counts)[:, None, None]
    means = torch.einsum("ohd,jhd->ohj", means.to(k.dtype), k) / q.shape[-1] ** 0.5
    out = []
    for rows, score, part in zip(shards, scores, parts, strict=True):
        guided = score + plan.bias(delta, rows, TEXT, dtype=score.dtype)
        guided = overwrite_scores(guided, means, part, delta)
        out.append(torch.einsum("hij,jhd->ihd", guided.softmax(dim=-1), v))
    return torch.cat(out)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([PAPER, CLOSED, GuideConfig(keep=1, other=2)]),
    st.floats(0.25, 1.75),
    st.lists(st.integers(0, 60), max_size=3),
)
def test_shards_equal_the_float64_oracle(seed, config, delta, cuts):
    """However rows are divided among ranks, guided attention is that of the plain dense definition."""
    plan = random_plan(seed, config)
    generator = torch.Generator().manual_seed(seed)
    q, (k, v) = torch.randn(60, 2, 8, generator=generator), torch.randn(2, TEXT, 2, 8, generator=generator)
    edges = [0, *sorted(cuts), 60]
    shards = [slice(a, b) for a, b in itertools.pairwise(edges)]
    guided = sharded_attention(q, k, v, plan, delta, shards)
    torch.testing.assert_close(guided.double(), biased_attention(q, k, v, plan, delta), atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([PAPER, CLOSED]), st.integers(0, 59), st.integers(0, 59))
def test_bias_is_the_table_for_any_rows(seed, config, start, length):
    """The bias of any run of rows is that part of the whole clip's, and linear in δ."""
    plan = random_plan(seed, config)
    rows = slice(start, min(60, start + length))
    np.testing.assert_allclose(plan.bias(1.75, rows, TEXT).numpy(), oracle_bias(plan, 1.75)[rows], atol=1e-5)
    torch.testing.assert_close(plan.bias(1.75, rows, TEXT), 1.75 * plan.bias(1.0, rows, TEXT))


def test_closed_table_by_hand():
    """One row of each kind: what the closed form does to a noun's own tokens and to the other noun's."""
    plan = GuidancePlan(
        regions=one_row([[NONE, KEEP, REMOVE, DISC, COPY], [NONE, NONE, KEEP, KEEP, NONE]]),
        tokens=TOKENS,
        config=CLOSED,
    )
    bias = plan.bias(1.0, slice(0, 5), TEXT)
    assert bias[:, 1].tolist() == bias[:, 2].tolist() == [-6, 2, -10, 6, 6]
    assert bias[:, 5].tolist() == [-6, -6, 2, 2 - 4, -6 - 4]
    assert bias[:, [0, 3, 4, 6]].abs().max() == 0


def test_padding_rows_are_left_alone():
    """Rows that only pad a sequence shard get no bias and are in no overwrite."""
    plan = random_plan(0, CLOSED)
    bias = plan.bias(1.0, slice(50, 64), TEXT, dtype=torch.bfloat16)
    assert bias.shape == (14, TEXT)
    assert bias.dtype == torch.bfloat16
    assert bias[10:].abs().max() == 0
    assert bias[:10].abs().max() > 0
    beyond = random_plan(0, PAPER).overwrites(slice(60, 64))
    assert beyond
    assert all(len(part.copies) == len(part.reference) == 0 for part in beyond)


@pytest.mark.parametrize("mean", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_more_intensity_is_never_less_attention(mean):
    """The weighted mean grows with δ, also where the mean is negative; δ = 1 is the mean itself."""
    plan = GuidancePlan(regions=one_row([[REFERENCE, COPY]]), tokens=((0,),), config=PAPER)
    parts = plan.overwrites(slice(0, 2))
    scores, means = torch.tensor([[[mean, 1.0], [9.0, 1.0]]]), torch.tensor([[[mean, 1.0]]])
    deltas = [0.25, 0.5, 1.0, 1.5, 1.75]
    values = [overwrite_scores(scores, means, parts, delta)[0, 1, 0].item() for delta in deltas]
    assert values == sorted(values)
    assert values[2] == mean
    assert scores[0, 1, 0] == 9.0  # the caller's scores are its own


def test_no_intensity_changes_nothing():
    """δ = 0 is plain attention: no bias, no overwrite, no division by 0."""
    plan = random_plan(3, PAPER)
    scores = torch.randn(2, 60, TEXT)
    parts = plan.overwrites(slice(0, 60))
    assert overwrite_scores(scores, torch.zeros(len(parts), 2, TEXT), parts, 0.0) is scores
    assert plan.bias(0.0, slice(0, 60), TEXT).abs().max() == 0


def test_every_shard_lists_the_same_overwrites():
    """Shards all-reduce their sums one by one: the sequence must be the same for all, whatever rows they hold."""
    plan = random_plan(5, PAPER)
    keys = [[(part.noun, part.frame) for part in plan.overwrites(slice(a, a + 15))] for a in range(0, 60, 15)]
    assert keys[0] == keys[1] == keys[2] == keys[3] != []
    assert plan.overwrites(slice(0, 60)) != ()
    assert GuidancePlan(plan.regions, plan.tokens, CLOSED).overwrites(slice(0, 60)) == ()


def test_tanh_schedule_is_the_published_one():
    """δ(t) = ¼·(4 − 3·tanh(t − 25)) over 50 steps, rescaled to any number of steps, always falling."""
    assert intensity(0, 50, PAPER) == pytest.approx(1.75)
    assert intensity(25, 50, PAPER) == 1.0
    assert intensity(24, 50, PAPER) == pytest.approx(0.25 * (4 + 3 * math.tanh(1)))
    assert intensity(49, 50, PAPER) == pytest.approx(0.25)
    assert intensity(10, 20, PAPER) == intensity(25, 50, PAPER)
    values = [intensity(step, 30, PAPER) for step in range(30)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("until", "steps", "guided"), [(0.8, 25, 20), (1.0, 7, 7), (0.0, 7, 0), (0.29, 100, 29)])
def test_guidance_is_on_for_its_share_of_the_steps(until, steps, guided):
    """Constant strength while on, 0 after; a share that names whole steps is taken exactly."""
    config = GuideConfig(schedule="constant", strength=1.5, until=until)
    values = [intensity(step, steps, config) for step in range(steps)]
    assert values == [1.5] * guided + [0.0] * (steps - guided)


def test_plan_takes_the_configured_tokens():
    """noun or phrase: the spans' tokens in the layout's order; a span too few is an error."""
    labels = np.zeros((2, 1, 2, 2), dtype=np.int16)
    refinement = Refinement(Layout(labels), labels.astype(np.int8), (0, 0))
    spans = [TokenSpans(noun=(3,), phrase=(2, 3), first=(3,)), TokenSpans(noun=(6,), phrase=(6,), first=(6,))]
    assert plan_guidance(refinement, spans, PAPER).tokens == ((3,), (6,))
    assert plan_guidance(refinement, spans, CLOSED).tokens == ((2, 3), (6,))
    with pytest.raises(ValueError, match="1 token spans for 2 nouns"):
        plan_guidance(refinement, spans[:1], PAPER)


def test_plan_travels_small():
    """A 480p clip's plan for three nouns pickles to about a byte per row and noun, never a dense mask."""
    plan = GuidancePlan(np.zeros((3, 21, 30, 52), dtype=np.int8), ((1,), (2,), (3,)), CLOSED)
    data = pickle.dumps(plan)
    assert len(data) < 3 * 32760 + 2000
    assert pickle.loads(data).rows == 32760


def test_rows_must_be_a_run():
    """A shard is contiguous: a stride is refused instead of misread."""
    with pytest.raises(ValueError, match="contiguous"):
        random_plan(0, CLOSED).bias(1.0, slice(0, 10, 2), TEXT)
