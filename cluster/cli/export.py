"""`numina export`: a dataset in the formats that trainers and evaluators read."""

from typing import Annotated

import typer

from cluster.cli.options import FAILED
from cluster.cli.terminal import bar, say
from cluster.export.config import ExportConfig, Only
from cluster.export.formats import FORMATS

SHOWN_LOST = 20


def export(
    output: Annotated[str, typer.Argument(help="An output of numina run.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")],
    folder: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="A new folder or URL to write to.")],
    strategy: Annotated[
        str | None, typer.Option(help="Export the clips that this strategy keeps. Default: all clips.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="The judge whose verdicts are exported, if there are several.")
    ] = None,
    only: Annotated[Only, typer.Option(help="Export all clips, only judged ones, or only accepted ones.")] = "all",
    distinct: Annotated[
        float | None,
        typer.Option(
            help="Of clips with the same targets whose embeddings have at least this cosine, export only the first: "
            "0.95 for example."
        ),
    ] = None,
    shard_clips: Annotated[int, typer.Option(help="Largest number of clips in one tar file of webdataset.")] = 1000,
    license: Annotated[
        str, typer.Option(help="The license in the dataset card: an identifier of the Hugging Face hub.")
    ] = "other",
) -> None:
    """Copy a dataset's clips in the format of Hugging Face datasets, WebDataset, CountBench or VBench.

    The same command again copies only what is missing. Lost videos are listed, and the exit status is then 1.
    """
    from cluster.dataset.store import Store
    from cluster.export.job import export as write

    config = ExportConfig(
        to=to,
        strategy=strategy,
        judge=judge,
        only=only,
        distinct=distinct,
        shard_clips=shard_clips,
        license=license,
    )
    with bar("exporting") as report:
        exported = write(Store.reader(output), folder, config, report)
    for name, problem in list(exported.lost.items())[:SHOWN_LOST]:
        say(f"left out: {name} is {problem}")
    if len(exported.lost) > SHOWN_LOST:
        say(f"and {len(exported.lost) - SHOWN_LOST} more")
    for note in exported.notes:
        say(note)
    say(f"{folder}: {exported.clips} clips as {to}, {len(exported.lost)} left out")
    if exported.lost:
        raise typer.Exit(FAILED)
