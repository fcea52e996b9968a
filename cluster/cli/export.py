"""`numina export`: a dataset in the formats that trainers and evaluators read."""

from dataclasses import replace
from typing import Annotated

import typer

from cluster.cli.options import FAILED
from cluster.cli.terminal import amount, bar, say
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
    shard_clips: Annotated[int, typer.Option(help="Number of clips in one shard of webdataset and parquet.")] = 1000,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Add shards while the job runs, until it has ended (webdataset and parquet)."),
    ] = False,
    license: Annotated[
        str, typer.Option(help="The license in the dataset card: an identifier of the Hugging Face hub.")
    ] = "other",
) -> None:
    """Copy a dataset's clips in the format of Hugging Face datasets, WebDataset, Parquet, CountBench or VBench.

    The same command again copies only what is missing. Lost videos are listed, and the exit status is then 1.

    webdataset and parquet write closed shards, which never change: MANIFEST.json lists them with their checksums, and
    a later call adds new ones. With --follow, a clip is exported as soon as its sample is settled: accepted by the
    judge, or no attempt is left. Stop it with Ctrl-C and give the same command again: no clip is exported twice.
    """
    from cluster.dataset.store import Store
    from cluster.export.job import export as write

    chosen = ExportConfig(
        to=to,
        strategy=strategy,
        judge=judge,
        only=only,
        distinct=distinct,
        shard_clips=shard_clips,
        license=license,
    )
    config = replace(chosen, follow=follow)
    with bar("exporting") as report:
        exported = write(Store.reader(output), folder, config, report)
    for name, problem in list(exported.lost.items())[:SHOWN_LOST]:
        say(f"left out: {name} is {problem}")
    if len(exported.lost) > SHOWN_LOST:
        say(f"and {len(exported.lost) - SHOWN_LOST} more")
    for note in exported.notes:
        say(note)
    say(f"{folder}: {amount(exported.clips, 'clips')} as {to}, {len(exported.lost)} left out")
    if exported.lost:
        raise typer.Exit(FAILED)
