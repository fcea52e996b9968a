"""What the command line wishes is held, and refused with the nearest where it can't be."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.job.config import load_job
from cluster.planner import Planner, check_for_gpus, wishes_of
from numina.errors import ConfigError
from tests.cluster.planner.conftest import FOUR, H100, SMALL, WAN_1_3B, WAN_14B, Models, Plan, job_plan


def test_wishes_are_what_the_command_line_names(models: Models) -> None:
    """`parallel.ulysses=4` of the YAML file is a default, the same on the command line is a wish."""
    overrides = ["parallel.cfg=2", "memory.text_encoder=apart", "generation.steps=30"]
    job = load_job("wan14b", ["model.path=unread", *overrides])
    assert wishes_of(job, overrides) == {"cfg": 2, "text_encoder": "apart"}
    assert all(
        c.setup.cfg == 2 and c.setup.text_encoder == "apart"
        for c in Planner(job_plan(models[WAN_14B], *overrides), H100).candidates(8, wishes=wishes_of(job, overrides))
    )


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"ulysses": 3}, "doesn't divide the model's 40 heads; nearest on 8 GPUs: parallel.ulysses=4"),
        ({"ulysses": 20}, "takes 20 GPUs or more; nearest on 8 GPUs: parallel.ulysses=8"),
        ({"cfg": 2, "gangs": 5}, "takes 10 GPUs or more; nearest on 8 GPUs: parallel.gangs=4"),
        ({"ring": 937}, "32760 tokens don't divide by 937, .*; nearest on 8 GPUs: parallel.ring="),
        ({"cfg": 3}, "guidance has two branches; nearest on 8 GPUs: parallel.cfg=2"),
    ],
)
def test_an_impossible_split_is_refused_with_the_nearest(planner: Plan, wishes: dict[str, Any], message: str) -> None:
    """Why not, and the fewest and smallest changes that work."""
    with pytest.raises(ConfigError, match=message):
        planner().candidates(8, wishes=wishes)


def test_missing_memory_is_refused_with_what_fits(planner: Plan) -> None:
    """14B whole, its encoder in the gang, on 24 GiB: how much is missing, and the options that make it fit."""
    held = {"shard": "none", "text_encoder": "gang"}
    with pytest.raises(ConfigError, match=r"needs 51.2 GiB .* 27.2 GiB more than the 24 .*memory.shard=zero3_offload"):
        planner(gpu=SMALL).candidates(1, wishes=held)
    with pytest.raises(ConfigError, match=r"what fits: .*memory.shard=zero3 \(.* or .*memory.text_encoder=apart"):
        planner(gpu=SMALL).candidates(8, wishes=held)
    medium = replace(SMALL, memory_gib=48)
    with pytest.raises(ConfigError, match=r"what fits: memory.text_encoder=apart \("):
        planner(gpu=medium).candidates(1, wishes=held)


def test_where_no_option_fits_the_clip_must_change(planner: Plan) -> None:
    """On 8 GiB even offloaded weights leave too little for decoding 480p; a cache that forbids sharding may go."""
    with pytest.raises(ConfigError, match=r"what fits: generation.height=\d+ generation.width=\d+ with memory.shard="):
        planner(gpu=replace(SMALL, memory_gib=8)).candidates(1)
    with pytest.raises(ConfigError, match=r"what fits: generation.cache=none with .*memory.shard=zero3"):
        planner("generation.cache=taylorseer", gpu=SMALL).candidates(8)


def test_the_configured_job_is_refused_where_it_does_not_fit(planner: Plan) -> None:
    """As configured on four 24 GiB GPUs it lacks memory, on H100s it doesn't."""
    assert planner().refusal(planner().configured) is None
    assert "what fits: memory.shard=zero3 (" in planner(gpu=SMALL).refusal(FOUR)


def test_gpus_must_fill_their_nodes(planner: Plan) -> None:
    """Seven GPUs aren't two alike nodes."""
    with pytest.raises(ConfigError, match="same number"):
        planner().candidates(7, nodes=2)


def test_planning_for_gpus_needs_none(models: Models) -> None:
    """On a machine without a GPU, and whatever degrees and memory the YAML file has; but not for a job on CPUs."""
    overrides = [
        f"model.path={models[WAN_1_3B].path}",
        "prompts=testbed:demo",
        "model.device=cuda",
        "cluster.address=local",
    ]
    prepared = check_for_gpus(load_job("wan14b", [*overrides, "memory.shard=zero3", "parallel.ulysses=1"]))
    assert (prepared.device, prepared.dtype, prepared.job.memory.shard) == ("cuda", "bfloat16", "zero3")
    with pytest.raises(ConfigError, match=r"model.device=auto"):
        check_for_gpus(load_job("demo"))
