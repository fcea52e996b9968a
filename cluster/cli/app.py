"""Make count-accurate text-to-video datasets on many GPUs.

Exit status: 0 done, 1 something failed, 2 wrong input, 3 stopped before it was done.
"""

import logging
import os
import signal
import sys
from io import TextIOWrapper
from pkgutil import resolve_name
from typing import Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from cluster.cli.options import FAILED, STOPPED, WRONG_INPUT
from cluster.cli.terminal import tell
from cluster.observability import logs
from numina.errors import ConfigError, InputError, NuminaError

# The one place to register a verb: a function, or a Typer with verbs of its own, in a file of its own. All are imported
# for `numina --help`, so each imports what it needs when it is called.
VERBS = {  # by the panels of `numina --help`
    "Prepare": {
        "config": "cluster.cli.config:config",
        "plan": "cluster.cli.plan:plan",
        "prompts": "cluster.cli.prompts:prompts",
        "models": "cluster.cli.models:models",
        "doctor": "cluster.cli.doctor:doctor",
    },
    "Run": {
        "run": "cluster.cli.run:run",
        "generate": "cluster.cli.generate:generate",
        "compare": "cluster.cli.compare:compare",
        "calibrate": "cluster.cli.calibrate:calibrate",
    },
    "Look at results": {
        "status": "cluster.cli.status:status",
        "evaluate": "cluster.cli.evaluate:evaluate",
        "report": "cluster.cli.report:report",
        "trace": "cluster.cli.trace:trace",
    },
    "Export and maintain": {
        "export": "cluster.cli.export:export",
        "gc": "cluster.cli.gc:gc",
        "testbed": "cluster.cli.testbed:testbed",
    },
}


class Verbs(TyperGroup):
    """Verbs that a signal stops between two lines, where no job drains."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            tell("stopped before it was done; give the same command again")
            raise typer.Exit(STOPPED) from None


def commands() -> typer.Typer:
    """The command with all verbs."""
    made = typer.Typer(cls=Verbs, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
    for panel, verbs in VERBS.items():
        for name, place in verbs.items():
            verb = resolve_name(place)
            if isinstance(verb, typer.Typer):
                made.add_typer(verb, name=name, rich_help_panel=panel)
            else:
                made.command(name, rich_help_panel=panel)(verb)
    return made


app = commands()


def main() -> None:
    """The `numina` command."""
    if sys.getfilesystemencoding() != "utf-8":  # names and files are UTF-8 whatever the locale says
        os.environ["PYTHONUTF8"] = "1"  # of child processes
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal or a pipe of ASCII, or a name that isn't UTF-8
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's Ctrl-C: temporary files are removed
    try:
        _check_endpoint()
        app()
    except InputError as error:
        _fail(str(error), WRONG_INPUT)
    except NuminaError as error:
        _fail(str(error), FAILED)


def _check_endpoint() -> None:
    """huggingface_hub parses HF_ENDPOINT when it is imported, which diffusers and transformers do."""
    try:
        urlsplit(os.environ.get("HF_ENDPOINT", ""))
    except ValueError as error:  # the value may hold a password
        raise ConfigError(f"HF_ENDPOINT isn't a URL ({error}); give one such as https://HOST, or unset it") from error


def _fail(message: str, status: int) -> None:
    if logs.are_json():
        logging.getLogger("numina").error("%s", message)
    else:
        shown = f"[bold red]error:[/bold red] {escape(logs.redact(message))}"
        Console(stderr=True, emoji=False).print(shown, highlight=False, soft_wrap=True)
    sys.exit(status)
