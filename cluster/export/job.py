"""One export: from an output to a folder, in one form; the same again adds only what isn't there."""

import json
from dataclasses import asdict
from pkgutil import resolve_name
from typing import Any

from cluster.dataset.segments import union
from cluster.dataset.store import Store
from cluster.evaluation.outcomes import strategies_of
from cluster.export.arrivals import Arrivals, Rule, rule_of, wanted_strategies
from cluster.export.columns import notes_of
from cluster.export.config import ExportConfig, Exported
from cluster.export.copying import Report
from cluster.export.formats import FORMATS
from cluster.export.growing import Growing
from cluster.export.readme import readme
from cluster.export.selection import select
from cluster.export.shards import Shards, alone
from cluster.rows import ROW_SCHEMA
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
    if form.shard:
        return _grow(store, open_files(folder, single_writer=True), config, report)
    one = config.to if form.one_clip else None
    selection = select(
        store, strategy=config.strategy, judge=config.judge, only=config.only, one=one, distinct=config.distinct
    )
    files = open_files(folder, single_writer=True)
    _claim(files, store, config)
    exported: Exported = resolve_name(form.write)(store, files, selection, config, report)
    return exported


def _grow(store: Store, files: Files, config: ExportConfig, report: Report) -> Exported:
    """Add what is ready to the export's shards; with `follow` until the job has ended."""
    form = FORMATS[config.to]
    if not config.follow and not store.row_files.segments() and not any(store.row_files.commits()):
        raise OutputError(f"output {store.root!r} holds no rows; give an output of `numina run` that has some")
    if config.strategy not in (None, *(own.name for own in strategies_of(store))):
        made = union(ROW_SCHEMA, store.row_files.tables(["key", "strategy"]))["strategy"]
        wanted_strategies(store, made.unique().to_pylist(), config.strategy)
    rule = rule_of(store, config)
    rule = Rule(**_claim(files, store, config, asdict(rule)))
    with alone(files):
        shards = Shards(files, form.ending)
        arrivals = Arrivals(store, config, rule, shards.index())
        writer = resolve_name(form.shard)
        growing = Growing(store=store, config=config, shards=shards, arrivals=arrivals, writer=writer, report=report)
        files.replace("README.md", readme(config, rule).encode())
        growing.mend()
        growing.follow() if config.follow else growing.once()
    if not shards.closed and not growing.lost and not config.follow:
        by = f" by {rule.judge}" if rule.judge else ""
        raise OutputError(f"output {store.root!r} has no clip that is {config.only}{by} and settled; export all")
    return Exported(clips=shards.clips, lost=growing.lost, notes=notes_of(arrivals.renamed))


def _claim(files: Files, store: Store, config: ExportConfig, fixed: dict[str, Any] | None = None) -> dict[str, Any]:
    """The folder is empty, or holds an export of the same settings; `fixed` as it was when the export began."""
    settings: dict[str, Any] = {"output": store.root, "to": config.to, "strategy": config.strategy}
    settings |= {"judge": config.judge, "only": config.only}
    settings |= {} if config.distinct is None else {"distinct": config.distinct}
    settings |= {name: getattr(config, name) for name in FORMATS[config.to].settings}
    try:
        kept = json.loads(files.read(RECORD))
    except FileNotFoundError:
        if names := sorted(name for name in files.names() if name != "lost+found"):
            raise OutputError(
                f"{files.root!r} is no export, but holds {', '.join(names[:5])}: give an empty or a new folder"
            ) from None
        files.replace(RECORD, json.dumps(settings | ({"fixed": fixed} if fixed else {}), sort_keys=True).encode())
        return fixed or {}
    before = kept.pop("fixed", None)
    if fixed and before is None:
        raise OutputError(
            f"{files.root!r} was written by an earlier version, whose shards don't grow: give another folder"
        )
    if kept != settings:
        was, now = (json.dumps(own, sort_keys=True) for own in (kept, settings))
        raise OutputError(f"{files.root!r} holds another export, {was}; now it is {now}: give another folder")
    return before or {}
