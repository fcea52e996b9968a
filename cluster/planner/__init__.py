"""`numina plan`: how a job would run on a cluster, what it takes and how long, from configs and measured tables alone.

    memory of a rank  = the most that encoding, denoising or decoding holds at once              (memory.py)
    seconds of a clip = its text + forwards · seconds of a forward + decode / ranks              (timing.py)
    candidates        = every supported split of the GPUs, each with the least sharding that fits (choice.py)

Seconds are a measured row, or are made from rows of the same model and say so; without a row there are none.
"""

from cluster.planner.choice import (
    Candidate,
    Estimate,
    Objective,
    Planner,
    check_for_gpus,
    check_known,
    estimate,
    planned_gib,
    wishes_of,
)
from cluster.planner.demand import Bill, Demand, Range
from cluster.planner.measured import DEFAULT_GPU, Gpu, load_gpu
from cluster.planner.reasons import reasons, time_reasons
from cluster.planner.setup import Setup

__all__ = [
    "DEFAULT_GPU",
    "Bill",
    "Candidate",
    "Demand",
    "Estimate",
    "Gpu",
    "Objective",
    "Planner",
    "Range",
    "Setup",
    "check_for_gpus",
    "check_known",
    "estimate",
    "load_gpu",
    "planned_gib",
    "reasons",
    "time_reasons",
    "wishes_of",
]
