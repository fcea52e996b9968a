"""Prompt sets written as one Parquet file: whole or not at all, and never over a different one by mistake."""

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.atomic import open_files
from cluster.files import Files
from numina.errors import PromptSetError


def write_set(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, force: bool = False) -> int:
    """Write batches as the set at a path or URL, a row group each; the number of rows.

    The compressed file is put together in memory and appears in one step. An equal file that is there already stays;
    a different one is replaced with `force` alone, else PromptSetError is raised.
    """
    sink, rows = io.BytesIO(), 0
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    publish(path, sink.getvalue(), force=force)
    return rows


def publish(path: str, data: bytes, *, force: bool = False) -> None:
    """Put a file in its place, as `write_set` does."""
    folder, name = split_path(path)
    files = open_files(folder, single_writer=True)
    if force:
        files.replace(name, data)
    elif not files.create(name, data) and not _is_there(files, name, data):
        raise PromptSetError(
            f"prompt set {path!r} exists already, with other rows: give a new name, remove it, or add --force"
        )


def _is_there(files: Files, name: str, data: bytes) -> bool:
    return files.stat(name).size == len(data) and files.read(name) == data


def split_path(path: str) -> tuple[str, str]:
    """A path or URL as its folder and name."""
    folder, slash, name = path.rpartition("/")
    return (folder if folder else slash or "."), name
