"""`numina report`: a page of all clips."""

from pathlib import Path
from typing import Annotated, Literal

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
    sample: Annotated[
        int | None,
        typer.Option(min=0, help="Number of clips to show; 0: all. Default: all, but 10,000 of an output with more."),
    ] = None,
    by: Annotated[
        Literal["random", "worst", "newest", "noun"],
        typer.Option(help="Prompts to show in a sample: random, worst counted first, newest, or each noun in turn."),
    ] = "random",
) -> None:
    """Write a static HTML page of the clips: videos, layouts, counts, search, filters and plots.

    Sums and plots are of all clips. Of a large output the page shows a sample of whole prompts, and says how it was
    chosen.
    """
    from cluster.report import build_report

    page = build_report(output, to, sample=sample, by=by, tell=say)
    say(f"report: {to or Path(output) / page.name}")
