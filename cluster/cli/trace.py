"""`numina trace`: when and where each clip's stages ran."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.terminal import amount, say


def trace(
    output: str,
    to: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")] = Path("trace.json"),
    key: Annotated[str | None, typer.Option(help="Trace only the clip with this key.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Trace at most this many clips, the latest ones.")] = 1000,
) -> None:
    """Write when and where each clip's stages ran, as a file for https://ui.perfetto.dev."""
    import json

    from cluster.dataset.store import Store
    from cluster.observability.trace import latest_rows
    from cluster.observability.trace import trace as trace_of
    from cluster.storage.destination import check_file, write_file

    check_file("--output", to, ".json")
    traced = trace_of(latest_rows(Store.reader(output), last, key))
    write_file(to, json.dumps(traced, ensure_ascii=False).encode())
    say(f"{to}: {amount(traced['otherData']['clips'], 'clips')}; open it in https://ui.perfetto.dev")
