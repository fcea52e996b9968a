"""`numina models`: checkpoints."""

from typing import Annotated

import typer

from cluster.cli.terminal import console, say

models = typer.Typer(no_args_is_help=True, help="Look at checkpoints.")


@models.command("check")
def models_check(
    path: Annotated[str, typer.Argument(help="A diffusers folder, a hub id OWNER/NAME, or testbed.")],
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a commit, 40 hex digits.")] = None,
) -> None:
    """What a checkpoint holds and would run as, or all that is wrong with it; a hub's is downloaded."""
    from cluster.cli.tables import part_table, two_columns
    from cluster.planner.checkpoint import parts_of, what_it_is, would_run_as
    from pipelines.models.registry import inspect_model

    model = inspect_model(path, revision)
    console.print(two_columns(what_it_is(model)))
    say()
    console.print(part_table(parts_of(model)))
    say()
    console.print(two_columns(would_run_as(model, revision)))
