"""`numina generate`: one clip."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import Overrides, Seed
from cluster.cli.terminal import say, step_progress


def generate(
    prompt: str,
    config: Annotated[
        str, typer.Option("--config", "-c", help="A job's YAML file, or the name of a shipped one.")
    ] = "testbed",
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 file to write.")] = Path("video.mp4"),
    seed: Seed = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Generate without NUMINA.")] = False,
    overrides: Overrides = None,
) -> None:
    """Generate one mp4 from one prompt, without Ray."""
    from cluster.storage.destination import check_file, write_file

    check_file("--output", output, ".mp4")
    from cluster.api import generate as generate_clip

    with step_progress() as progress:
        clip = generate_clip(
            prompt, config=config, seed=seed, overrides=overrides or [], plain=plain, progress=progress
        )
    write_file(output, clip.mp4)
    say(f"{output}: {len(clip.video)} frames, {clip.summary()}")
