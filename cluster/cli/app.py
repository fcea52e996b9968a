"""Make count-accurate text-to-video datasets on many GPUs.

Exit status: 0 done, 1 something failed, 2 wrong input, 3 stopped before it was done.
"""

import logging
import os
import sys
from io import TextIOWrapper
from pkgutil import resolve_name

import typer
from rich.console import Console
from rich.markup import escape

from cluster.cli.options import FAILED, WRONG_INPUT
from cluster.observability import logs
from numina.errors import InputError, NuminaError

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


def commands() -> typer.Typer:
    """The command with all verbs."""
    made = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
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
    try:
        app()
    except InputError as error:
        _fail(str(error), WRONG_INPUT)
    except NuminaError as error:
        _fail(str(error), FAILED)


def _fail(message: str, status: int) -> None:
    if logs.are_json():
        logging.getLogger("numina").error("%s", message)
    else:
        shown = f"[bold red]error:[/bold red] {escape(logs.redact(message))}"
        Console(stderr=True, emoji=False).print(shown, highlight=False, soft_wrap=True)
    sys.exit(status)
