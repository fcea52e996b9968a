"""What is in closed shards, read by other code than wrote them, and whether it is what it should be."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.dataset.store import Store


def manifest(folder: Path) -> list[dict[str, Any]]:
    """The closed shards."""
    found: list[dict[str, Any]] = json.loads((folder / "MANIFEST.json").read_text())["shards"]
    return found


def samples_in(shard: Path) -> list[tuple[dict[str, Any], bytes]]:
    """A shard's rows with their videos, in order."""
    if shard.suffix == ".parquet":
        rows = pq.read_table(shard).to_pylist()
        return [(row, row["video"]["bytes"]) for row in rows]
    with tarfile.open(shard) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    found = list[tuple[dict[str, Any], bytes]]()
    for (record, content), (video, data) in zip(members[::2], members[1::2], strict=True):
        row = json.loads(content)
        assert (record, video) == (f"{row['key']}.json", f"{row['key']}.mp4")
        found.append((row, data))
    return found


def keys_in(shard: Path) -> list[str]:
    return [row["key"] for row, _ in samples_in(shard)]


def check_shards(folder: Path, store: Store) -> dict[str, dict[str, Any]]:
    """By key the rows of all closed shards, each once, after all that an export promises is looked at: bytes and
    checksums, names in order, the index, and videos that are those of the output's rows."""
    rows = {row["key"]: row for row in store.rows().select(["key", "video_sha256"]).to_pylist()}
    found, index = dict[str, dict[str, Any]](), list[tuple[str, str, int]]()
    shards = manifest(folder)
    for number, shard in enumerate(shards):
        path = folder / shard["name"]
        assert path.stem == f"shard-{number:06d}"
        content = path.read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
        samples = samples_in(path)
        assert len(samples) == shard["clips"]
        for row, video in samples:
            assert row["key"] not in found, "a clip is in two shards"
            assert hashlib.sha256(video).hexdigest() == rows[row["key"]]["video_sha256"]
            found[row["key"]] = row
            index.append((shard["name"], row["key"], len(video)))
    listed = [pq.read_table(folder / f"index/shard-{number:06d}.parquet") for number in range(len(shards))]
    assert [(own["shard"], own["key"], own["bytes"]) for table in listed for own in table.to_pylist()] == index
    return found
