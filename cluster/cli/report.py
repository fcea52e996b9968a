"""`numina report`: a page of all clips."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.terminal import say


def report(
    output: str,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="Another page to write, NAME.html, with its data in NAME/.")
    ] = None,
) -> None:
    """Write a static page of all clips: videos beside their layouts and counts, search, filters and plots."""
    from cluster.report import build_report

    page = build_report(output, to)
    say(f"report: {to or Path(output) / page.name}")
