"""`numina models`: what a checkpoint holds."""

from typing import Annotated

import typer

from cluster.cli.terminal import console, say

models = typer.Typer(no_args_is_help=True, help="Check model checkpoints.")


@models.command("check")
def models_check(
    path: Annotated[str, typer.Argument(help="A folder in diffusers' layout, a hub id OWNER/NAME, testbed or scenes.")],
    revision: Annotated[
        str | None, typer.Option(help="The commit of a hub id, 40 hex digits; without it, the newest.")
    ] = None,
) -> None:
    """Show what a checkpoint holds and how it would run, or all that is wrong with it; downloads a hub id."""
    from cluster.cli.tables import part_table, two_columns
    from cluster.observability.logs import set_up
    from cluster.planner.checkpoint import parts_of, what_it_is, would_run_as
    from pipelines.models.registry import inspect_model

    set_up("text")  # a download tells how far it is
    model = inspect_model(path, revision)
    console.print(two_columns(what_it_is(model)))
    say()
    console.print(part_table(parts_of(model)))
    say()
    console.print(two_columns(would_run_as(model)))
