"""`numina plan`: how a job would run on a cluster."""

from typing import Annotated, Literal

import typer

from cluster.cli.options import Config, Overrides
from cluster.cli.terminal import console, say
from numina.errors import InputError

CANDIDATES_SHOWN = 5


def plan(
    config: Config = None,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs to plan for; without it, the job is shown as configured.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="The kind of GPU: a file in configs/measured/, by name or by path.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Number of nodes; each has the same number of GPUs.")] = 1,
    objective: Annotated[
        Literal["throughput", "latency"], typer.Option(help="Most clips per hour, or the shortest time for one clip.")
    ] = "throughput",
) -> None:
    """Show what a job needs, and the best way to run it on a cluster; needs no GPU.

    With --gpus, values of parallel.* and memory.* on the command line are kept; those in the job's YAML are not.
    """
    from cluster.cli.tables import candidate_table, facts_table, print_configured
    from cluster.job.config import load_job
    from cluster.job.prepared import prepare
    from cluster.planner import DEFAULT_GPU, Planner, load_gpu, prepare_for_gpus, reasons, wishes_of

    job, table = load_job(config, overrides or []), load_gpu(gpu or DEFAULT_GPU)
    if gpus is None:
        if nodes != 1 or objective != "throughput":
            raise InputError("--nodes and --objective need the number of GPUs; add e.g. --gpus 8")
        print_configured(Planner(prepare(job), table), refuse=gpu is not None)
        return
    planner = Planner(prepare_for_gpus(job), table)
    found = planner.candidates(gpus, nodes=nodes, objective=objective, wishes=wishes_of(job, overrides or []))
    where = f"{gpus} × {table.name}, {table.memory_gib:g} GiB each, on {nodes} node{'s' if nodes > 1 else ''}"
    tokens = f"{planner.memory.tokens} per clip"
    console.print(facts_table(planner, {"tokens": tokens, "GPUs": where, "objective": objective}))
    say()
    console.print(candidate_table(found[:CANDIDATES_SHOWN]))
    say()
    for place, candidate in enumerate(found[:CANDIDATES_SHOWN], start=1):
        say(f"{place}: {candidate.setup.overrides(job) or 'as configured'}")
    say("\nwhy 1:")
    for reason in reasons(planner, found, gpus, objective):
        say(f"  {reason}")
