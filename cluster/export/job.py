"""One export: from an output to a folder, in one form; the same again copies only what isn't there."""

import json
from pkgutil import resolve_name

from cluster.dataset.store import Store
from cluster.export.config import ExportConfig, Exported
from cluster.export.copying import Report
from cluster.export.formats import FORMATS
from cluster.export.selection import select
from cluster.storage.destination import check_folder
from cluster.storage.open import open_files
from cluster.storage.protocol import Files
from numina.errors import OutputError

RECORD = "export.json"


def export(store: Store, folder: str, config: ExportConfig, report: Report = lambda done, total: None) -> Exported:
    """Write an output's clips to a local folder or a URL that fsspec knows.

    Raises OutputError for an output without rows, unknown strategies and judges, or a folder that holds something else.
    """
    check_folder("--output", folder)
    form = FORMATS[config.to]
    one = config.to if form.one_clip else None
    selection = select(
        store, strategy=config.strategy, judge=config.judge, only=config.only, one=one, distinct=config.distinct
    )
    files = open_files(folder, single_writer=True)
    _claim(files, store, config)
    exported: Exported = resolve_name(form.write)(store, files, selection, config, report)
    return exported


def _claim(files: Files, store: Store, config: ExportConfig) -> None:
    """The folder is empty, or holds an export of the same settings."""
    settings: dict[str, str | int | float | None] = {"output": store.root, "to": config.to, "strategy": config.strategy}
    settings |= {"judge": config.judge, "only": config.only}
    settings |= {} if config.distinct is None else {"distinct": config.distinct}
    settings |= {name: getattr(config, name) for name in FORMATS[config.to].settings}
    record = json.dumps(settings, sort_keys=True)
    try:
        kept = files.read(RECORD).decode()
    except FileNotFoundError:
        if names := sorted(name for name in files.names() if name != "lost+found"):
            raise OutputError(
                f"{files.root!r} is no export, but holds {', '.join(names[:5])}: give an empty or a new folder"
            ) from None
        files.replace(RECORD, record.encode())
        return
    if kept != record:
        raise OutputError(f"{files.root!r} holds another export, {kept}; now it is {record}: give another folder")
