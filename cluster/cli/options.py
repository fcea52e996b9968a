"""What several verbs take, and the statuses they exit with."""

from typing import Annotated

import typer

FAILED, WRONG_INPUT, STOPPED = 1, 2, 3

Config = Annotated[str | None, typer.Option("--config", "-c", help="A job's YAML file, or the name of a shipped one.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value overrides, e.g. parallel.ulysses=4 limit=8")]
Workers = Annotated[int, typer.Option(min=1, help="Judges at work; more than one run on Ray.")]
