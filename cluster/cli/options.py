"""Options that several verbs share, and their exit statuses."""

from typing import Annotated

import typer

FAILED, WRONG_INPUT, STOPPED = 1, 2, 3

Config = Annotated[
    str | None, typer.Option("--config", "-c", help="A job's YAML file, or the name of a shipped one such as demo.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides key=value, e.g. parallel.ulysses=4 limit=8.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The seed of all random choices, 0 to 2**63 - 1.")]
Workers = Annotated[int, typer.Option(min=1, help="Number of judge processes; more than one run on Ray.")]
