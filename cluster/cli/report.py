"""`numina report`: a page of all clips."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.terminal import say


def report(
    output: str,
    to: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The page to write, NAME.html; its data goes to NAME/. Default: in the output."
        ),
    ] = None,
) -> None:
    """Write a static HTML page of all clips: videos, layouts, counts, search, filters and plots."""
    from cluster.report import build_report

    page = build_report(output, to)
    say(f"report: {to or Path(output) / page.name}")
