"""`numina doctor`: what a run needs of this machine, and what is here."""

import json
from typing import Annotated

import typer

from cluster.cli.options import FAILED, Config, Overrides
from cluster.cli.terminal import console, say


def doctor(
    config: Config = None,
    overrides: Overrides = None,
    on_cluster: Annotated[
        bool, typer.Option("--on-cluster", help="Check every node of the Ray cluster that cluster.address names.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check this machine for what a run needs, with a remedy for all that is missing.

    With --config or overrides, just what that job needs; without, everything. With --on-cluster, this machine is asked
    for what a driver needs, and each node for the rest. Exit status 1 if something will fail.
    """
    import ray  # checks are forked: it is imported once

    assert ray
    from cluster.doctor.check import Examination, Result, State, examine
    from cluster.doctor.checks import CHECKS, EARLY, TORCH
    from cluster.doctor.needs import Needs, needs_of
    from cluster.job.config import load_job

    asked = config is not None or bool(overrides)
    needs = needs_of(load_job(config, overrides or [])) if asked else Needs()
    early = Examination({} if on_cluster else EARLY, needs)
    results, nodes = examine(TORCH, needs), dict[str, list[Result]]()
    if results[0].state is State.OK:  # all else begins with its import
        import torch

        assert torch
        if on_cluster:
            from cluster.doctor.nodes import examine_cluster

            here, nodes = examine_cluster(needs)
            results += here
        else:
            late = examine({name: check for name, check in CHECKS.items() if name not in EARLY}, needs)
            found = {result.name: result for result in [*late, *early.results()]}
            results += [found[name] for name in CHECKS if name in found]
    else:
        results += early.results()
    every = [*results, *(line for lines in nodes.values() for line in lines)]
    if as_json:
        lines = [result.as_json() | {"node": None} for result in results]
        lines += [line.as_json() | {"node": node} for node, lines_of in nodes.items() for line in lines_of]
        typer.echo(json.dumps(lines, indent=2, ensure_ascii=False))
    else:
        from cluster.cli.tables import check_table, node_table

        console.print(check_table(results))
        if nodes:
            say()
            console.print(node_table(nodes))
    failing = dict.fromkeys(result.name for result in every if result.state is State.FAILS)
    if failing and not as_json:
        say(f"a run will fail: {', '.join(failing)}")
    if failing:
        raise typer.Exit(FAILED)
