"""WebDataset: tars of `{key}.mp4` and `{key}.json`, the same bytes for the same clips.

DIR/shard-000000.tar                  at most so many clips, in the order of their ids
    .shards/shard-000000.json         what is in it: a shard that holds this already isn't written again
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from cluster.dataset.store import Store
from cluster.export.columns import json_records, notes_of
from cluster.export.config import ExportConfig, Exported
from cluster.export.copying import LostVideoError, Report, read_video
from cluster.export.selection import Selection
from cluster.storage.protocol import Files
from numina.errors import ConfigError

Row = dict[str, Any]


def write(store: Store, files: Files, selection: Selection, config: ExportConfig, report: Report) -> Exported:
    """The export. A shard's clips are those of its rows: a lost video leaves its shard smaller."""
    lost: dict[str, str] = {}
    done, written = 0, 0
    for number, rows in enumerate(_shards(selection, config.shard_clips)):
        written += _write_shard(store, files, f"shard-{number:06d}", rows, lost)
        done += len(rows)
        report(done, len(selection.rows))
    return Exported(clips=written, lost=lost, notes=notes_of(selection.renamed))


def _shards(selection: Selection, clips: int) -> Iterator[list[Row]]:
    for first in range(0, len(selection.rows), clips):
        yield list(json_records(selection.rows.slice(first, clips)))


def _write_shard(store: Store, files: Files, name: str, rows: Sequence[Row], lost: dict[str, str]) -> int:
    """One tar, unless it is there; how many clips it holds."""
    records = [json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False) for row in rows]
    content = hashlib.sha256("\n".join(records).encode()).hexdigest()
    kept = _kept(files, name)
    if kept.get("content") == content and _size(files, f"{name}.tar") == kept["size"] and not kept["lost"]:
        return int(kept["clips"])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "shard.tar"
        missing = _write_tar(store, place, rows, records)
        lost |= missing
        size = place.stat().st_size
        _publish(files, f"{name}.tar", place)
    clips = len(rows) - len(missing)
    files.replace(
        f".shards/{name}.json",
        json.dumps({"content": content, "size": size, "clips": clips, "lost": sorted(missing)}).encode(),
    )
    return clips


def _write_tar(store: Store, place: Path, rows: Sequence[Row], records: Sequence[str]) -> dict[str, str]:
    """All videos that there are; what is wrong with the others."""
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise ConfigError(f"--to webdataset needs a package: {error}; pip install numina-video[export]") from error
    missing: dict[str, str] = {}
    with place.open("wb") as stream, TarWriter(stream, mtime=0, user="numina", group="numina") as tar:
        for row, record in zip(rows, records, strict=True):
            try:
                video = read_video(store, row["file_name"], row["video_sha256"])
            except LostVideoError as problem:
                missing[row["file_name"]] = str(problem)
            else:
                tar.write({"__key__": row["key"], "json": record.encode(), "mp4": video})
    return missing


def _publish(files: Files, name: str, place: Path) -> None:
    """In one step, without the whole tar in memory."""
    fs, root = url_to_fs(files.root)
    fs.makedirs(root, exist_ok=True)
    aside = f"{root}/.{name}.part" if "file" in fs.protocol else f"{root}/{name}"
    fs.put_file(str(place), aside)
    if aside != f"{root}/{name}":
        fs.mv(aside, f"{root}/{name}")


def _kept(files: Files, name: str) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(files.read(f".shards/{name}.json"))
    except (FileNotFoundError, ValueError):
        return {}
    return kept


def _size(files: Files, name: str) -> int | None:
    try:
        return files.stat(name).size
    except FileNotFoundError:
        return None
