"""How long clips take: measured rows as they are, estimates that say so, and nothing invented."""

from dataclasses import replace

import pytest

from cluster.planner import Setup, estimate
from cluster.planner.choice import Planner
from cluster.planner.measured import EncodeBlock, ForwardBlock
from cluster.planner.timing import TimeModel
from tests.cluster.planner.conftest import (
    COG_5B,
    FOUR,
    H100,
    SMALL,
    UNMEASURED,
    WAN_1_3B,
    WAN_5B,
    WAN_14B,
    Models,
    Plan,
    Wan,
    job_plan,
    with_rows,
)


@pytest.mark.parametrize(
    ("wan", "engine", "ulysses", "eager", "compiled"),
    [
        (WAN_1_3B, "auto", 1, 635, 455),
        (WAN_1_3B, "auto", 2, 381, 245),
        (WAN_1_3B, "auto", 4, 202, 155),
        (WAN_1_3B, "diffusers", 2, 357, 291),
        (WAN_1_3B, "diffusers", 4, 194, 151),
        (WAN_14B, "auto", 1, 3292, 2461),
        (WAN_14B, "auto", 2, 1959, 1398),
        (WAN_14B, "auto", 4, 1012, 807),
    ],
)
def test_a_measured_forward_is_given_as_it_was_measured(
    planner: Plan, wan: Wan, engine: str, ulysses: int, eager: float, compiled: float
) -> None:
    """Every row of the table, by model, engine, degree and compiler: its milliseconds, and that they are measured."""
    time = planner(f"parallel.engine={engine}", wan=wan).time
    for compile, milliseconds in ((False, eager), (True, compiled)):
        found = time.forward(Setup(ulysses=ulysses, compile=compile))
        assert (found.seconds, found.source, found.at_least) == (milliseconds / 1000, "measured", False)


def test_a_clip_is_forwards_text_and_pixels(models: Models) -> None:
    """480p on four ranks: two forwards a step, the 21 steps through t* and all 50 again; decoded by all four ranks."""
    found = estimate(job_plan(models[WAN_14B], "parallel.gangs=2", "parallel.cfg=1", "parallel.ulysses=4"))
    cost = found.candidate.cost
    around = 1.02 * 2 / 4 + 2 * 0.032
    assert found.tokens == 32760
    assert cost.seconds == pytest.approx(1.012 * 2 * (50 + 21) + around)
    assert cost.seconds_if_right == pytest.approx(1.012 * 2 * 50 + around)
    assert cost.forward.source == cost.encode.source == "measured"
    assert cost.decode.source == "estimated from 2 ranks"
    assert found.hours == pytest.approx(10 * cost.seconds / 2 / 3600)


def test_a_forward_in_8_bits(models: Models) -> None:
    """By its own row; where it has none, by bfloat16's, and says so: eager blocks, and models without one."""

    def planned(wan: Wan) -> TimeModel:
        return Planner(replace(job_plan(models[wan]), dtype="float8"), H100).time

    for wan, compile, seconds, source in (
        (WAN_14B, True, 1.774, "measured"),
        (WAN_14B, False, 3.292, "estimated from bfloat16"),
        (WAN_1_3B, True, 0.455, "estimated from bfloat16"),
    ):
        found = planned(wan).forward(Setup(compile=compile))
        assert (found.seconds, found.source) == (seconds, source)


def test_decoding_in_half_precision_counts(planner: Plan) -> None:
    """By its own row, on one rank and on two; where it has none by float32's, which takes no less, and says so.
    CogVideoX's in float32 was never measured."""
    half = "generation.vae_dtype=bfloat16"
    alone, pair = Setup(), Setup(cfg=2)
    for setup, seconds, exact in ((alone, 0.86, 1.85), (pair, 0.62, 1.02)):
        quick, plain = (planner(*overrides).time.of(setup) for overrides in ([half], []))
        assert (quick.decode.seconds, quick.decode.source) == (seconds, "measured")
        assert plain.seconds - quick.seconds == pytest.approx(exact - seconds)
    found = planner(half, wan=WAN_5B).time.of(alone).decode
    assert (found.seconds, found.source) == (3.84, "measured")
    exact_alone = replace(H100.decode, rows=[row for row in H100.decode.rows if row.dtype == "float32"])
    found = planner(half, wan=WAN_5B, gpu=replace(H100, decode=exact_alone)).time.of(alone).decode
    assert (found.seconds, found.source) == (7.46, "estimated from float32")
    assert planner("generation.vae_dtype=float32", wan=COG_5B).time.of(alone).decode is None


def test_strategies_branches_and_the_encoders_place_count(planner: Plan) -> None:
    """The baseline has no first phase, one branch halves a step, an encoder apart takes no time of the gang."""
    full = planner("strategies=[baseline]").time.of(FOUR)
    assert full.seconds == full.seconds_if_right == pytest.approx(1.012 * 2 * 50 + 1.02 * 2 / 4 + 2 * 0.032)
    half = planner("strategies=[baseline]", "generation.guidance_scale=1").time.of(FOUR)
    assert half.seconds == pytest.approx(1.012 * 50 + 1.02 * 2 / 4 + 0.032)
    assert full.seconds - planner("strategies=[baseline]").time.of(
        replace(FOUR, text_encoder="apart")
    ).seconds == pytest.approx(2 * 0.032)


def test_variants_strides_and_caches_count(planner: Plan) -> None:
    """A stride of 2 halves the steps before t*, TaylorSeer about half the forwards; times are the strategies' mean."""
    variant = "variants.quick={identify: {stride: 2}, guide: {anchor: null}}"
    around = 1.02 * 2 / 4 + 2 * 0.032
    assert planner("strategies=[baseline]", variant).time.of(FOUR).seconds == pytest.approx(
        1.012 * 2 * (50 + (50 + 11)) / 2 + around
    )
    cached = planner("strategies=[baseline]", "generation.cache=taylorseer").time.of(FOUR).seconds
    assert 1.012 * 2 * 25 < cached < 1.012 * 2 * 30 + around


@pytest.mark.parametrize(
    ("setup", "overrides", "source", "at_least"),
    [
        (Setup(ulysses=8), [], "estimated from Ulysses 2 and 4", False),
        (Setup(ulysses=5), [], "estimated from Ulysses 2 and 4", False),
        (Setup(cfg=2), [], "estimated from one branch", False),
        (Setup(ulysses=4), ["generation.height=720", "generation.width=1280"], "estimated from 32760 tokens", False),
        (Setup(ulysses=4), ["parallel.engine=diffusers"], "estimated from engine xfuser", False),
        (Setup(ulysses=4, batch=2), [], "estimated from one clip", False),
        (Setup(ulysses=8, batch=2), [], "estimated from Ulysses 2 and 4, one clip", False),
        (Setup(ulysses=2, ring=2), [], "estimated from Ulysses 4", True),
        (Setup(ulysses=4, shard="zero3"), [], "estimated from whole weights", True),
    ],
)
def test_what_is_estimated_says_from_what(
    planner: Plan, setup: Setup, overrides: list[str], source: str, at_least: bool
) -> None:
    """Other degrees, shapes, engines: made from the same model's rows, and marked; a ring and sharding cost more."""
    found = planner(*overrides).time.forward(setup)
    assert (found.source, found.at_least) == (source, at_least)


def test_estimates_lie_where_they_must(planner: Plan) -> None:
    """More ranks are faster, but not by their number; more tokens cost more than their share, less than its square."""
    time = planner().time
    seconds = {ulysses: time.forward(Setup(ulysses=ulysses)).seconds for ulysses in (1, 2, 4, 5, 8, 10)}
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)
    assert all(seconds[n] > seconds[4] * 4 / n for n in (5, 8, 10))
    assert seconds[8] == pytest.approx(0.5385)  # a / n + b through 1959 ms at 2 and 1012 ms at 4
    assert time.forward(Setup(cfg=2)).seconds == seconds[1]
    large = planner("generation.height=720", "generation.width=1280").time
    more = large.tokens / time.tokens
    assert more < large.forward(FOUR).seconds / time.forward(FOUR).seconds < more**2


def test_a_batch_that_was_measured_is_given_as_it_was(planner: Plan) -> None:
    """Milliseconds of the whole forward; any other batch is as many forwards of one clip."""
    batched = replace(H100.forward.rows[0], batch=4, milliseconds=2000)
    time = planner(wan=WAN_1_3B, gpu=with_rows(batched)).time
    four, three = time.forward(Setup(batch=4)), time.forward(Setup(batch=3))
    assert (four.seconds, four.source) == (2.0, "measured")
    assert (three.seconds, three.source) == (pytest.approx(3 * 0.635), "estimated from one clip")
    around = 4 * (1.85 + 2 * 0.032)
    assert time.of(Setup(batch=4)).seconds == pytest.approx(2.0 * 2 * (50 + 21) + around)
    assert (time.batches(compile=False), time.batches(compile=True)) == ([1, 4], [1])


def test_text_and_video_are_one_sequence_of_joint_attention(planner: Plan) -> None:
    """CogVideoX's forward at another length goes by the operations of both, squared in attention, on one rank."""
    time = planner("generation.num_frames=25", wan=COG_5B).time
    L, whole, d = 7 * 30 * 45 + 226, 17550 + 226, 3072
    operations = [length * 24 * d + 4 * length**2 for length in (L, whole)]
    own = planner(wan=COG_5B).time.forward(Setup())
    found = time.forward(Setup())
    assert found.seconds / own.seconds == pytest.approx(operations[0] / operations[1])
    assert (own.source, found.source) == ("measured", "estimated from 17550 tokens")
    assert planner(wan=WAN_5B).time.forward(Setup()).source == "measured"


def test_a_model_measured_on_one_gpu_scales_like_the_nearest(planner: Plan) -> None:
    """Without rows of several ranks, the scaling is another model's, and the estimate names it."""
    alone = [row for row in H100.forward.rows if row.heads == 12 or row.ulysses == 1]
    table = replace(H100, forward=ForwardBlock(measured="here", rows=alone))
    found = planner(gpu=table).time.forward(Setup(ulysses=4))
    assert found.seconds == pytest.approx(3.292 * 202 / 635)
    assert found.source == "estimated from the scaling of 30 blocks of 12 heads"
    eager = replace(H100, forward=ForwardBlock(rows=[row for row in H100.forward.rows if not row.compile]))
    assert planner(gpu=eager).time.forward(replace(FOUR, compile=True)).source == "estimated from eager blocks"


def test_what_was_not_measured_gets_no_time(planner: Plan, models: Models) -> None:
    """Another model, another GPU or a CPU: no number rather than a guess; memory is planned all the same."""
    assert planner(wan=UNMEASURED).time.of(FOUR) is None
    found = planner(gpu=SMALL).candidates(8)
    assert all(candidate.cost is None and candidate.clips_per_hour is None for candidate in found)
    on_cpu = estimate(replace(job_plan(models[WAN_14B]), device="cpu", dtype="float32"))
    assert on_cpu.hours is None
    no_encoder = planner(gpu=replace(H100, encode=EncodeBlock())).time.of(FOUR)
    assert no_encoder.encode is None
