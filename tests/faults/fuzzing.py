"""What the fuzz tests share: how long they search, and what every command promises."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

from cluster.cli.app import app
from numina.errors import InputError, NuminaError

EXAMPLES = int(os.environ.get("NUMINA_FUZZ", "0"))
"""Of each test, at random, as `make fuzz` asks for them; 0: a few that are the same every time."""


def bounded(few: int) -> Callable[[Any], Any]:
    """A test's search: so many examples in an ordinary run, on a machine of any speed."""
    search: Callable[[Any], Any] = settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return search


def run(*arguments: str) -> tuple[int, str]:
    """A command's exit status and all that it says. An exception that `numina` would show as a traceback is raised."""
    result = CliRunner().invoke(app, arguments)
    error = result.exception
    if isinstance(error, NuminaError):
        return 2 if isinstance(error, InputError) else 1, f"{result.output}{error}"
    if error is not None and not isinstance(error, SystemExit):
        raise AssertionError(f"numina {' '.join(map(repr, arguments))} is a traceback") from error
    assert result.exit_code in range(4), result.output
    return result.exit_code, result.output


def names_one_of(said: str, named: Iterable[str]) -> bool:
    """Whether a message shows what it is about, whatever groups a number's digits."""

    def bare(text: str) -> str:
        return "".join(letter for letter in text if not letter.isspace() and letter not in "│─╭╮╰╯_,")

    return any(bare(name) in bare(said) for name in named if bare(name))


def entries(folder: Path) -> set[str]:
    """All that is in a folder, also what begins with a dot."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
