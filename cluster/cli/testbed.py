"""`numina testbed`: the embedded counting model."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import Seed

testbed = typer.Typer(no_args_is_help=True, help="Retrain the embedded counting model.")


@testbed.command("train")
def testbed_train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint and the training log.")],
    seed: Seed = 0,  # noqa: PT028
) -> None:
    """Retrain the embedded counting model from scratch, on one GPU."""
    from cluster.storage.destination import check_folder

    check_folder("--output", output)
    from pipelines.testbed.train import train

    train(output, seed=seed)
