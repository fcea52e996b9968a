"""A folder that `datasets.load_dataset` reads as it is: the layout of its videofolder builder, and a dataset card.

DIR/README.md                             the card: what was measured, how it was made
    metadata.parquet                      a row for each clip; `file_name` leads to its video
    annotations.jsonl                     a line for each clip that has a layout: boxes and masks, see annotations.py
    videos/ab/{key}-{sha256:16}.mp4       no folder holds more than a share of them
"""

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.dataset.store import Store
from cluster.export.annotations import read_annotations
from cluster.export.columns import common_types, notes_of
from cluster.export.config import ExportConfig, Exported
from cluster.export.copying import Report, Video, copy_videos
from cluster.export.diversity import diversity_of
from cluster.export.readme import page
from cluster.export.selection import Selection
from cluster.export.shards import written
from cluster.rows import asks_no_count
from cluster.storage.protocol import Files

ROW_GROUP = 1000
ANNOTATIONS = "annotations.jsonl"
LABELLED = ("key", "file_name", "prompt", "targets", "detected", "layout_file", "width", "height", "num_frames")
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
    annotated = _write_annotations(store, files, kept)
    files.replace("metadata.parquet", _parquet(table.select(["file_name", *_others(table)])))
    files.replace("README.md", card(selection, kept, config.license, notes, annotated=annotated).encode())
    return Exported(clips=len(kept), lost=lost, notes=notes)


def _others(rows: pa.Table) -> list[str]:
    return [name for name in rows.column_names if name != "file_name"]


def _parquet(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, row_group_size=ROW_GROUP, compression="zstd")
    return sink.getvalue()


def _write_annotations(store: Store, files: Files, rows: pa.Table) -> int:
    """The clips that have some."""
    rows, clips = rows.filter(pc.is_valid(rows["layout_file"])).select(LABELLED), 0
    if not len(rows):
        return 0
    with written(files, ANNOTATIONS) as stream, ThreadPoolExecutor(store.files.readers) as readers:
        for batch in rows.to_batches(max_chunksize=ROW_GROUP):
            own = batch.to_pylist()
            for row, made in zip(own, readers.map(lambda row: read_annotations(store, row), own), strict=True):
                if made is not None:
                    line = {name: row[name] for name in ("key", "file_name")} | {"caption": row["prompt"]} | made
                    stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    clips += 1
    return clips


def card(selection: Selection, rows: pa.Table, license: str, notes: Sequence[str] = (), *, annotated: int = 0) -> str:
    """The dataset card in Markdown, with the hub's metadata in front."""
    return page(
        "card.md.j2",
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
        annotated=annotated,
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
