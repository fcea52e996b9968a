"""Parquet with the videos in it: shards that `datasets` reads as they are, `video` as its Video feature.

    video        struct of bytes (the mp4) and path ({key}.mp4)
    …            the columns of a row, the judge's, and the prompt set's own
    annotations  boxes and masks of the layout, see annotations.py

A group of rows holds few clips, so that a reader of one needs little memory.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.export.annotations import ANNOTATIONS
from cluster.export.columns import common_types
from cluster.export.selection import VERDICT
from cluster.export.shards import Hashed, Sample
from cluster.export.whole_rows import ANNOTATED
from cluster.rows import ROW_SCHEMA

GROUP_CLIPS, GROUP_BYTES = 100, 2**26  # of one group of rows, at most
VIDEO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"huggingface": json.dumps({"info": {"features": {"video": {"_type": "Video"}}}})}


class ParquetShard:
    """One Parquet file."""

    def __init__(self, stream: Hashed) -> None:
        self._stream = stream
        self._writer: pq.ParquetWriter | None = None
        self._group = list[Sample]()

    def add(self, sample: Sample) -> None:
        """A video isn't one piece of the file that others could find."""
        self._group.append(sample)
        if len(self._group) == GROUP_CLIPS or sum(len(own.video) for own in self._group) >= GROUP_BYTES:
            self._write()

    def close(self) -> None:
        self._write()
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        if not self._group:
            return
        table = _table(self._group)
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._stream,
                table.schema.with_metadata(FEATURES),
                compression={name: "none" if name == "video" else "zstd" for name in _leaves(table.schema)},
                use_dictionary=[name for name in table.schema.names if name != "video"],
                write_page_checksum=True,
            )
        self._writer.write_table(table.cast(self._writer.schema), row_group_size=len(table))
        self._group = []


def _table(samples: list[Sample]) -> pa.Table:
    rows = pa.concat_tables([own.columns.slice(own.place, 1) for own in samples])
    own = {*ROW_SCHEMA.names, *VERDICT.names}
    rows, _ = common_types(rows, [name for name in rows.column_names if name not in own])
    videos = [{"bytes": own.video, "path": f"{own.row['key']}.mp4"} for own in samples]
    rows = rows.add_column(0, "video", pa.array(videos, VIDEO))
    return rows.append_column(ANNOTATED, pa.array([own.row[ANNOTATED] for own in samples], ANNOTATIONS))


def _leaves(schema: pa.Schema) -> list[str]:
    return schema.names
