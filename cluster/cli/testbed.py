"""`numina testbed`: the embedded counting models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli.options import Seed

testbed = typer.Typer(no_args_is_help=True, help="Retrain an embedded counting model, or distil it to a few steps.")


@testbed.command("train")
def train_model(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint and the training log.")],
    world: Annotated[
        Literal["shapes", "scenes"],
        typer.Option(help="shapes: flat, separate shapes; scenes: creatures that touch, cross and hide one another."),
    ] = "shapes",
    seed: Seed = 0,
    start: Annotated[Path | None, typer.Option(help="Folder of an earlier stage's weights to continue from.")] = None,
    minutes_vae: Annotated[
        float | None, typer.Option(min=0, help="Minutes of autoencoder training: 4.5, or 0 after --start.")
    ] = None,
    minutes_decoder: Annotated[
        float, typer.Option(min=0, help="Minutes of the decoder alone, which leaves the latents as they are.")
    ] = 0.0,
    minutes_dit: Annotated[float, typer.Option(min=0, help="Minutes on clips with exact captions; 0 for none.")] = 8.0,
    minutes_miscounted: Annotated[
        float, typer.Option(min=0, help="Minutes on clips with loosely counted captions; 0 for none.")
    ] = 2.5,
) -> None:
    """Retrain an embedded counting model on one GPU, at once or in stages that continue from one another."""
    from cluster.storage.destination import check_folder
    from numina.errors import InputError

    check_folder("--output", output)
    if start is not None and not (start / "model_index.json").is_file():
        raise InputError(f"--start {start} has no model_index.json; give the folder weights/ of an earlier stage")
    from pipelines.testbed.train import train

    train(
        output,
        world=world,
        seed=seed,
        start=start,
        minutes_vae=minutes_vae,
        minutes_decoder=minutes_decoder,
        minutes_dit=minutes_dit,
        minutes_miscounted=minutes_miscounted,
    )


@testbed.command("distil")
def distil_model(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the LoRA, the training log and figures.")],
    world: Annotated[
        Literal["shapes", "scenes"], typer.Option(help="Of the embedded model that is distilled.")
    ] = "shapes",
    seed: Seed = 0,
    start: Annotated[Path | None, typer.Option(help="File of an earlier stage's LoRA to continue from.")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Minutes of training; 0 measures --start alone.")] = 8.0,
    prompts: Annotated[int, typer.Option(min=0, help="Held-out prompts to measure on; 0 for none.")] = 200,
) -> None:
    """Distil an embedded counting model to 4 steps without a second branch, on one GPU, at once or in stages."""
    from cluster.storage.destination import check_folder
    from numina.errors import InputError

    check_folder("--output", output)
    if start is not None and not start.is_file():
        raise InputError(f"--start {start} is no file; give the few-step.safetensors of an earlier stage")
    from pipelines.testbed.distil import distil

    distil(output, world=world, seed=seed, start=start, minutes=minutes, prompts=prompts)
