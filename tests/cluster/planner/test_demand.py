"""What a plan costs: attempts, judges, disk and price, from shapes alone."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.job.config import load_job
from cluster.planner import Demand, Gpu, Planner, Setup, check_for_gpus, check_known, reasons
from cluster.planner.demand import Range
from cluster.planner.measured import JudgeBlock, JudgeRow
from numina.errors import InputError, ModelError
from tests.cluster.planner.conftest import H100, Plan

VERIFIED = ["strategies=[numina+verified]", "verify.judge=published", "judge.path=IDEA-Research/grounding-dino-tiny"]


def plan_of(*overrides: str, gpu: Gpu = H100, **demand: Any) -> Any:
    """Of a published checkpoint that isn't here, for a cluster."""
    return Planner(check_for_gpus(load_job("wan14b", overrides)), gpu, Demand(**demand))


def test_shapes_alone_give_the_plan_of_the_checkpoint(planner: Plan) -> None:
    """The published 14B and a folder of its shape: the same memory to 1 %, and the same seconds."""
    here, published = planner(), plan_of()
    assert published.memory.of(Setup()).peak == pytest.approx(here.memory.of(Setup()).peak, rel=0.01)
    assert published.time.of(Setup()) == here.time.of(Setup())
    assert published.disk.checkpoint == pytest.approx(80.4e9, rel=0.001)


def test_an_id_without_a_shape_is_refused() -> None:
    """Nothing is downloaded for a plan; the error says what would."""
    with pytest.raises(ModelError, match=r"someone/else isn't in the hub's cache here.*`numina models check"):
        check_known(load_job("wan14b", ["model.path=someone/else"]))


@pytest.mark.parametrize(("accuracy", "attempts"), [(1.0, 1.0), (0.5, 1.875), (0.25, 2.734375)])
def test_verified_samples_take_the_expected_attempts(accuracy: float, attempts: float) -> None:
    """1 + q + q² + q³ for four attempts of which a share p = 1 − q is accepted; without p, one to four."""
    once = plan_of("strategies=[numina]").time.of(Setup())
    expected = plan_of(*VERIFIED, accuracy=accuracy).time.of(Setup())
    open_end = plan_of(*VERIFIED).time.of(Setup())
    assert None not in (once, expected, open_end)
    assert expected.seconds == pytest.approx(attempts * once.seconds)
    assert (open_end.seconds_if_right, open_end.seconds) == pytest.approx((once.seconds_if_right, 4 * once.seconds))
    assert Demand(accuracy=accuracy).accepted(4) == pytest.approx(1 - (1 - accuracy) ** 4)


def test_judges_take_their_gpus_and_their_time() -> None:
    """A judge's share of a GPU is a GPU that no gang gets; where it is slower than the gangs, it sets the pace."""
    beside = plan_of(*VERIFIED, "verify.gpus=0.5", "verify.judges=2", accuracy=0.5)
    assert beside.candidates(8)[0].setup.gangs == 7
    slow = replace(H100, judge=JudgeBlock(rows=[JudgeRow(kind="grounding-dino", frames_per_second=1.0)]))
    judged = plan_of(*VERIFIED, "verify.gpus=1", gpu=slow, accuracy=0.5).candidates(8)[0]
    assert judged.cost.judge.seconds == 81
    assert judged.clips_per_hour == pytest.approx(3600 / (81 * 1.875))
    assert plan_of("verify.gpus=0.5", "verify.judges=2").candidates(8)[0].setup.gangs == 8  # nothing is verified


def test_few_steps_without_guidance_are_one_branch() -> None:
    """Eight steps of one branch: t* after four, so 5 forwards and 8 more where a second pass is needed."""
    few = plan_of("generation.steps=8", "generation.guidance_scale=1").time.of(Setup())
    around = 1.85 + 0.032
    assert few.seconds_if_right == pytest.approx(8 * 3.292 + around)
    assert few.seconds == pytest.approx(13 * 3.292 + around)
    best = plan_of("generation.steps=8", "generation.guidance_scale=1").candidates(8)
    assert {candidate.setup.cfg for candidate in best} == {1}


FEW_STEPS = ["generation.steps=4", "generation.guidance_scale=1", "generation.sampler=euler", "generation.flow_shift=5"]


@pytest.mark.parametrize(
    ("overrides", "right", "corrected", "texts"),
    [
        (["method.preset=closed"], 2 * 50, 2 * (21 + 50), 2),
        (["method.preset=quick"], 2 * 50, 2 * (21 + 40), 2),  # from step 10 on
        (["method.preset=few-step", *FEW_STEPS], 4, 3 + 3, 1),
        (["method.preset=few-step", "method.guide.start=0", *FEW_STEPS], 4, 3 + 4, 1),
    ],
)
def test_a_verified_sample_costs_its_attempts_from_where_they_start(
    overrides: list[str], right: int, corrected: int, texts: int
) -> None:
    """A guided run that starts from the plain run's state is cheaper, and so is every attempt that is corrected."""
    around = 1.85 + texts * 0.032
    cost = plan_of(*VERIFIED, *overrides, accuracy=0.5).time.of(Setup())
    assert cost is not None
    assert cost.seconds_if_right == pytest.approx(1.875 * (3.292 * right + around))
    assert cost.seconds == pytest.approx(1.875 * (3.292 * corrected + around))


def test_the_bill_of_many_clips() -> None:
    """Hours at the gangs' rate, times GPUs, times the price; disk by clips made, attempts included."""
    planner = plan_of("parallel.cfg=1", price=2.0, videos=1000)
    [best, *_] = planner.candidates(8)
    bill = planner.bill(best, 8, 1000)
    assert bill.hours.most == pytest.approx(1000 / best.clips_per_hour)
    assert bill.hours.least == pytest.approx(bill.hours.most * best.cost.seconds_if_right / best.cost.seconds)
    assert bill.gpu_hours.most == pytest.approx(8 * bill.hours.most)
    assert bill.price.most == pytest.approx(16 * bill.hours.most)
    assert bill.disk_gb == Range(least=pytest.approx(0.623, abs=0.01), most=pytest.approx(0.623, abs=0.01))
    verified = plan_of(*VERIFIED, accuracy=0.5, videos=1000)
    made = verified.bill(verified.candidates(8)[0], 8, 1000)
    assert made.disk_gb.most == pytest.approx(1.875 * bill.disk_gb.most)


@pytest.mark.parametrize("clips", [1, 5, 8, 9, 1001])
def test_a_gang_makes_one_clip_at_a_time(clips: int) -> None:
    """The last clips take as long as a clip, however many gangs have nothing to do; the whole cluster is held."""
    planner = plan_of("parallel.cfg=1", price=2.0, videos=clips)
    [best, *_] = planner.candidates(8)
    bill, share = planner.bill(best, 8, clips), planner.bill(best, 8, None)
    assert best.setup.gangs == 8
    assert bill.hours.most == pytest.approx(-(-clips // 8) * best.cost.seconds / 3600)
    assert (bill.gpu_hours.most, bill.price.most) == pytest.approx((8 * bill.hours.most, 16 * bill.hours.most))
    assert share.gpu_hours.most == pytest.approx(best.cost.seconds / 3600)
    assert any("have nothing to do" in line for line in reasons(planner, [best], 8, "throughput")) == (clips < 8)


def test_kept_latents_and_quality_take_disk() -> None:
    """Latents are float32 numbers; an mp4 of crf 18 takes about twice that of crf 24."""
    kept = plan_of("latents=true").disk
    assert kept.latents == 32760 * 64 * 4
    assert plan_of("generation.crf=24").disk.video == pytest.approx(plan_of().disk.video * 0.074 / 0.154)
    assert plan_of("generation.crf=21").disk.video < plan_of().disk.video


@pytest.mark.parametrize(
    "wrong", [{"accuracy": 0.0}, {"accuracy": 1.5}, {"videos": 0}, {"price": -1.0}, {"price": float("inf")}]
)
def test_demands_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """By the option's name."""
    with pytest.raises(InputError, match=r"--(accuracy|clips|price) is "):
        Demand(**wrong)
