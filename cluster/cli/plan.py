"""`numina plan`: how a job would run on a cluster, and what it would cost."""

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
    clips: Annotated[
        int | None,
        typer.Option(help="Number of clips to plan for; without it, as many as a named prompt set asks for, else one."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of a GPU-hour, in any currency.")] = None,
    accuracy: Annotated[
        float | None,
        typer.Option(help="Share of clips that the judge of verified strategies accepts; else that of the output."),
    ] = None,
) -> None:
    """Show what a job needs, the best way to run it on a cluster, and what it costs; needs no GPU and no weights.

    With --gpus, values of parallel.* and memory.* on the command line are kept; those in the job's YAML are not.
    """
    from cluster.cli.tables import bill_table, candidate_table, facts_table, print_configured
    from cluster.job.config import load_job, names_setting
    from cluster.planner import (
        DEFAULT_GPU,
        Demand,
        Planner,
        check_for_gpus,
        check_known,
        load_gpu,
        reasons,
        wishes_of,
    )

    overrides = overrides or []
    job, table = load_job(config, overrides), load_gpu(DEFAULT_GPU if gpu is None else gpu)
    if gpus is None and (nodes != 1 or objective != "throughput"):
        raise InputError("--nodes and --objective need the number of GPUs; add e.g. --gpus 8")
    if accuracy is not None and not job.verifies:
        raise InputError(
            f"--accuracy is {accuracy:g}, and none of the strategies {', '.join(job.strategies)} is verified; leave it"
            " out, or add e.g. strategies=[numina+verified]"
        )
    checked = check_known(job) if gpus is None else check_for_gpus(job)
    if clips is None and (job.model.path == "testbed" or names_setting(config, overrides, "prompts")):
        from cluster.job.prepared import with_prompts

        clips = with_prompts(checked, judge=False).asked
    if accuracy is None and job.verifies:
        from cluster.evaluation.accepted import accepted_share

        accuracy = accepted_share(job)
    demand = Demand(videos=clips, accuracy=accuracy, price=price)
    planner = Planner(checked, table, demand)
    if gpus is None:
        print_configured(planner, refuse=gpu is not None)
        return
    found = planner.candidates(gpus, nodes=nodes, objective=objective, wishes=wishes_of(job, overrides))
    where = f"{gpus} × {table.name}, {table.memory_gib:g} GiB each, on {nodes} node{'s' if nodes > 1 else ''}"
    tokens = f"{planner.memory.tokens} per clip"
    console.print(facts_table(planner, {"tokens": tokens, "GPUs": where, "objective": objective}))
    say()
    console.print(candidate_table(found[:CANDIDATES_SHOWN]))
    say()
    for place, candidate in enumerate(found[:CANDIDATES_SHOWN], start=1):
        say(f"{place}: {candidate.setup.overrides(job) or 'as configured'}")
    say()
    console.print(bill_table(planner, found[0], gpus))
    say("\nwhy 1:")
    for reason in reasons(planner, found, gpus, objective):
        say(f"  {reason}")
