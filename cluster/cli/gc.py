"""`numina gc`: removes the files of an output that no row needs."""

from typing import Annotated

import typer

from cluster.cli.terminal import console, say
from numina.errors import OutputError


def gc(
    output: str,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be removed.")] = False,
) -> None:
    """Remove files that no row needs, and merge small files. Run it only when no job uses the output."""
    from cluster.cli.tables import garbage_table
    from cluster.dataset.garbage import collect_garbage
    from cluster.dataset.store import Store

    store = Store(output, single_writer=True)
    if store.run_config() is None:
        raise OutputError(f"{store.root!r} has no run.json; give an output of `numina run`")
    collected = collect_garbage(store, dry_run=dry_run)
    console.print(garbage_table(collected, "to remove" if dry_run else "removed"))
    if collected.segments_written:
        say(f"{collected.segments_written} segments written")
