"""A folder that `datasets.load_dataset` reads as it is: the layout of its videofolder builder, and a dataset card.

DIR/README.md                             the card: what was measured, how it was made
    metadata.parquet                      a row for each clip; `file_name` leads to its video
    videos/ab/{key}-{sha256:16}.mp4       no folder holds more than a share of them
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster.dataset.store import Store
from cluster.export.columns import common_types, notes_of
from cluster.export.config import ExportConfig, Exported
from cluster.export.copying import Report, Video, copy_videos
from cluster.export.diversity import diversity_of
from cluster.export.selection import Selection
from cluster.rows import asks_no_count
from cluster.storage.protocol import Files

ROW_GROUP = 1000
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
SETTINGS = ("model", "model_revision", "width", "height", "num_frames", "fps", "steps", "guidance_scale", "cache")


def write(store: Store, files: Files, selection: Selection, config: ExportConfig, report: Report) -> Exported:
    """The export; its rows come last, and name only videos that are there."""
    rows = selection.rows
    names = rows.select(["file_name", "video_sha256"]).to_pylist()
    videos = [Video(source=row["file_name"], name=row["file_name"], sha256=row["video_sha256"]) for row in names]
    lost = copy_videos(store, files, videos, report)
    kept = rows.filter(pc.invert(pc.is_in(rows["file_name"], pa.array(list(lost), pa.string()))))
    table, fields = common_types(kept, selection.set_columns)
    notes = (*notes_of(selection.renamed), *fields)
    files.replace("metadata.parquet", _parquet(table.select(["file_name", *_others(table)])))
    files.replace("README.md", card(selection, kept, config.license, notes).encode())
    return Exported(clips=len(kept), lost=lost, notes=notes)


def _others(rows: pa.Table) -> list[str]:
    return [name for name in rows.column_names if name != "file_name"]


def _parquet(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, row_group_size=ROW_GROUP, compression="zstd")
    return sink.getvalue()


def card(selection: Selection, rows: pa.Table, license: str, notes: Sequence[str] = ()) -> str:
    """The dataset card in Markdown, with the hub's metadata in front."""
    folder = Path(__file__).parent / "templates"
    pages = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template("card.md.j2").render(
        license=license,
        size=next((name for most, name in SIZES if len(rows) < most), "n>1M"),
        clips=len(rows),
        plain=pc.sum(asks_no_count(rows)).as_py() or 0,
        prompts=len(set(zip(*(rows[name].to_pylist() for name in ("id", "prompt")), strict=True))),
        counts=_counts(rows),
        diversity=diversity_of(rows),
        settings=_settings(rows),
        selection=selection,
        notes=notes,
    )


def _counts(rows: pa.Table) -> dict[int, int]:
    counts = pc.value_counts(pc.struct_field(pc.list_flatten(rows["targets"]), "count")).to_pylist()
    return {own["values"]: own["counts"] for own in sorted(counts, key=lambda own: own["values"])}


def _settings(rows: pa.Table) -> Sequence[tuple[str, str]]:
    """Each setting with all values that it has."""
    found = []
    for name in SETTINGS:
        values: list[Any] = [value for value in rows[name].unique().to_pylist() if value is not None]
        if values:
            shown = sorted(str(f"{value:g}" if isinstance(value, float) else value) for value in values)
            found.append((name, ", ".join(shown)))
    return found
