"""What is chosen for a cluster: the best by the objective that is supported and fits."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planner import Gpu, Objective, Setup, reasons
from numina.errors import ConfigError
from pipelines.models.families import FAMILIES
from pipelines.parallel.support import Wish, check_support
from tests.cluster.planner.conftest import (
    COG_5B,
    H100,
    SMALL,
    UNMEASURED,
    WAN_1_3B,
    WAN_5B,
    WAN_14B,
    Plan,
    Shape,
    with_rows,
)

EAGER = next(row for row in H100.forward.rows if (row.heads, row.compile) == (12, False))


def test_throughput_prefers_gangs_and_latency_ranks(planner: Plan) -> None:
    """8 H100: a clip per GPU makes the most clips an hour; branches, then Ulysses over all of them, one soonest."""
    most, soonest = planner().candidates(8)[0], planner().candidates(8, objective="latency")[0]
    assert (most.setup.gangs, most.setup.ranks) == (8, 1)
    assert (soonest.setup.gangs, soonest.setup.cfg, soonest.setup.ulysses) == (1, 2, 4)
    assert most.clips_per_hour > soonest.clips_per_hour
    assert most.cost.seconds > soonest.cost.seconds
    assert most.setup.overrides(planner().job) == "parallel.cfg=1 parallel.ulysses=1 parallel.gangs=8"
    assert {own.setup.gangs for own in planner("parallel.gangs_max=3").candidates(8)} == {1, 2, 3}


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_candidates_are_sorted_and_each_split_once(planner: Plan, objective: Objective) -> None:
    """What is never measured comes last; before it, the best by the objective comes first."""
    found = planner().candidates(12, objective=objective)
    splits = [(c.setup.cfg, c.setup.ulysses, c.setup.ring) for c in found]
    assert len(set(splits)) == len(splits)
    unmeasured = [c.cost.forward.at_least for c in found]
    assert unmeasured == sorted(unmeasured)
    known = [c for c in found if not c.cost.forward.at_least]
    values = [-c.clips_per_hour if objective == "throughput" else c.cost.seconds for c in known]
    assert [round(value, 3) for value in values] == sorted(round(value, 3) for value in values)


def test_the_least_sharding_that_fits(planner: Plan) -> None:
    """Whole weights with the text encoder where they fit, else it is apart, else both are sharded and not compiled."""
    assert planner(wan=WAN_1_3B, gpu=SMALL).candidates(1)[0].setup == Setup(text_encoder="apart")
    medium = replace(SMALL, memory_gib=48)
    assert planner(gpu=medium).candidates(8)[0].setup == Setup(gangs=8, text_encoder="apart")
    small = planner("parallel.compile=true", gpu=SMALL).candidates(8)
    assert all(c.setup.shard == "zero3" and not c.setup.compile for c in small if c.setup.ranks > 1)
    assert planner(gpu=SMALL).candidates(1)[0].setup.shard == "zero3_offload"


def test_an_encoder_on_gpus_takes_them_from_the_gangs(planner: Plan) -> None:
    """Half a GPU for the text encoder leaves seven whole ones."""
    found = planner("cluster.encoder_gpus=0.5").candidates(8, wishes={"text_encoder": "apart", "ulysses": 1})
    assert found[0].setup.gangs == 7


def test_gangs_stay_on_a_node(planner: Plan) -> None:
    """Across nodes only for latency, or where a node is too small; Ulysses never."""
    most = planner().candidates(16, nodes=2)
    assert all(candidate.setup.nodes == 1 for candidate in most)
    soonest = planner().candidates(16, nodes=2, objective="latency")
    assert soonest[0].setup.nodes == 2
    assert (soonest[0].setup.cfg, soonest[0].setup.ulysses) == (2, 8)
    assert all(candidate.setup.ulysses <= 8 for candidate in soonest)
    tight = replace(SMALL, memory_gib=30)  # 14B fits neither whole nor in halves of one GPU's nodes
    wide = planner(gpu=tight).candidates(4, nodes=4, wishes={"shard": "zero3"})
    assert all(candidate.setup.nodes > 1 and candidate.setup.ulysses == 1 for candidate in wide)


def test_a_batch_is_proposed_where_it_was_measured_to_pay(planner: Plan) -> None:
    """More clips an hour by over 1 %, with memory for it, under caches and compilers as measured; else one clip."""
    table = with_rows(replace(EAGER, batch=2, milliseconds=1200), replace(EAGER, batch=4, milliseconds=2390))

    def chosen(*overrides: str, gpu: Gpu = table, **wishes: Any) -> Setup:
        return planner(*overrides, wan=WAN_1_3B, gpu=gpu).candidates(8, wishes=wishes)[0].setup

    assert chosen() == Setup(gangs=8, batch=2)  # four gain next to nothing on two
    assert chosen().overrides(planner().job) == "parallel.cfg=1 parallel.ulysses=1 parallel.gangs=8 parallel.batch=2"
    assert chosen(gpu=with_rows(replace(EAGER, batch=2, milliseconds=1265))).batch == 1
    assert chosen(gpu=replace(table, memory_gib=30)).batch == 1
    assert chosen("method.identify.cache=first_block").batch == 1
    assert chosen("parallel.compile=true").batch == 1
    assert chosen(batch=4).batch == chosen("parallel.batch=4", batch=4).batch == 4
    assert chosen("parallel.batch=4").batch == 2
    asked = planner(wan=WAN_1_3B, gpu=table)
    assert asked.candidates(8, objective="latency")[0].setup.batch == 1
    [why] = [line for line in reasons(asked, asked.candidates(8), 8, "throughput") if line.startswith("batch 2:")]
    assert re.fullmatch(r"batch 2: 2 clips in one forward make \d+\.\d clips an hour, \d+\.\d one by one", why)


def test_joint_attention_is_spread_by_branches_alone(planner: Plan) -> None:
    """CogVideoX on eight GPUs: two ranks for a clip are the most; Ulysses is refused with the rule's reason."""
    asked = planner(wan=COG_5B)
    found = asked.candidates(8, objective="latency")
    assert [(c.setup.cfg, c.setup.ulysses, c.setup.ring) for c in found] == [(2, 1, 1), (1, 1, 1)]
    with pytest.raises(ConfigError, match=r"one sequence of attention.*nearest on 8 GPUs: parallel.ulysses=1"):
        asked.candidates(8, wishes={"ulysses": 2})


def test_idle_gpus_are_said(planner: Plan) -> None:
    """Seven GPUs and 40 heads: the fastest clip takes five, and two are left over."""
    found = planner().candidates(7, objective="latency")
    assert found[0].setup.ranks == 5
    assert "2 GPUs left over" in reasons(planner(), found, 7, "latency")[0]


@settings(max_examples=40, deadline=None)
@given(
    gpus=st.integers(1, 16),
    wan=st.sampled_from([WAN_14B, WAN_1_3B, WAN_5B, COG_5B, UNMEASURED]),
    engine=st.sampled_from(["auto", "diffusers", "xfuser"]),
    compile=st.booleans(),
    cache=st.sampled_from(["none", "taylorseer", "cfg_cache"]),
    scale=st.sampled_from([1.0, 5.0]),
    gib=st.sampled_from([16, 24, 79]),
    objective=st.sampled_from(["throughput", "latency"]),
)
def test_no_candidate_is_unsupported_or_too_large(
    planner: Plan,
    gpus: int,
    wan: Shape,
    engine: str,
    compile: bool,
    cache: str,
    scale: float,
    gib: int,
    objective: Objective,
) -> None:
    """Whatever is asked: each proposal passes the support matrix, fits the memory and the GPUs; or none is made."""
    given_job = [f"parallel.engine={engine}", f"generation.guidance_scale={scale}", f"parallel.compile={compile}"]
    asked = planner(*given_job, f"generation.cache={cache}", wan=wan, gpu=replace(H100, memory_gib=gib))
    try:
        found = asked.candidates(gpus, objective=objective)
    except ConfigError:
        return
    for candidate in found:
        setup = candidate.setup
        check_support(
            Wish(
                engine=engine,
                cfg=setup.cfg,
                ulysses=setup.ulysses,
                ring=setup.ring,
                compile=setup.compile,
                shard=setup.shard,
                cache=cache,
                device="cuda",
                heads=wan.heads,
                tokens=asked.memory.tokens,
                guidance=scale > 1,
                lacks=FAMILIES[wan.classes[0]].lacks,
            )
        )
        assert setup.ranks * setup.gangs <= gpus
        assert candidate.memory.peak <= gib
