"""`numina doctor`: what a run needs of this machine, and what is here."""

import json
from typing import Annotated

import typer

from cluster.cli.options import FAILED, Config, Overrides
from cluster.cli.terminal import console, say


def doctor(
    config: Config = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check this machine for what a run needs, with a remedy for all that is missing.

    With --config or overrides, just what that job needs; without, everything. Exit status 1 if something will fail.
    """
    from cluster.doctor.check import State, examine
    from cluster.doctor.checks import CHECKS, TORCH
    from cluster.doctor.needs import Needs, needs_of

    results = examine(TORCH, Needs())
    if results[0].state is State.OK:  # all else begins with its import
        import ray
        import torch

        assert ray
        assert torch
        from cluster.job.config import load_job

        asked = config is not None or bool(overrides)
        needs = needs_of(load_job(config, overrides or [])) if asked else Needs()
        results += examine(CHECKS, needs)
    if as_json:
        typer.echo(json.dumps([result.as_json() for result in results], indent=2, ensure_ascii=False))
    else:
        from cluster.cli.tables import check_table

        console.print(check_table(results))
    failing = [result.name for result in results if result.state is State.FAILS]
    if failing and not as_json:
        say(f"a run will fail: {', '.join(failing)}")
    if failing:
        raise typer.Exit(FAILED)
