"""`numina config`: a resolved job with the meaning of every key, and the list of all settings."""

from typing import Annotated

import typer

from cluster.cli.terminal import say
from numina.errors import InputError


def config(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] [OVERRIDES]",
            help="A job's YAML file or the name of a shipped one, then key=value overrides. With --keys: a prefix.",
        ),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List the settings whose keys begin with the prefix.")] = False,
) -> None:
    """Print a resolved job as YAML, with the meaning of every key; --keys lists all settings.

    The output is a job file: `numina config demo > job.yaml` writes one that `numina run --config job.yaml` runs.
    """
    from cluster.job.config import load_job
    from cluster.job.reference import commented_yaml, scalar, settings_under

    given = given or []
    if not keys:
        name = given.pop(0) if given and "=" not in given[0] else None
        say(commented_yaml(load_job(name, given)).rstrip("\n"))
        return
    if len(given) > 1:
        raise InputError(f"--keys is given {' '.join(given)}; give at most one prefix, e.g. --keys method.guide.")
    lines = [("key", "type", "default", "[unit] meaning")]
    for setting in settings_under(given[0] if given else ""):
        default = "required" if setting.is_required else scalar(setting.default)
        lines.append((setting.key, setting.kind, default, setting.text))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
