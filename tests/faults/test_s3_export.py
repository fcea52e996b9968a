"""Shards in a bucket of a real S3 server: written there from an output in it, read back by the real libraries."""

import json
import os
import sys

import datasets
import fsspec
import pytest
import webdataset

from cluster.dataset.store import Store
from cluster.export.config import ExportConfig
from cluster.export.job import export
from pipelines.video.mp4 import decode_mp4
from tests.cluster.export.exports import FRAMES, PROMPTS, SIZE, a_row


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_shards_in_a_bucket_grow_and_are_read(form: str, bucket: str) -> None:
    """Each clip once, also those that came after the first call; the manifest lists what is there."""
    store = Store(f"{bucket}/out")
    store.open_run({}, asked=5)

    def make(samples: range) -> int:
        for sample in samples:
            store.commit(a_row(store, sample + 1, PROMPTS[0], sample, "numina"))
        return export(Store.reader(store.place), f"{bucket}/x", ExportConfig(to=form, shard_clips=2)).clips

    assert make(range(3)) == 3
    fs = fsspec.filesystem("s3")
    before = {path: fs.info(path)["LastModified"] for path in fs.glob(f"{bucket}/x/shard-*")}
    assert make(range(3, 5)) == 5
    assert {path: fs.info(path)["LastModified"] for path in before} == before
    shards = json.loads(fs.cat(f"{bucket}/x/MANIFEST.json"))["shards"]
    assert [shard["clips"] for shard in shards] == [2, 1, 2]
    assert not fs.exists(f"{bucket}/x/leases") or not fs.find(f"{bucket}/x/leases")
    for shard in shards:
        assert fs.info(f"{bucket}/x/{shard['name']}")["size"] == shard["bytes"]
    urls = [f"{bucket}/x/{shard['name']}" for shard in shards]
    read = read_tars(urls) if form == "webdataset" else read_parquet(urls)
    assert sorted(read) == store.rows()["key"].to_pylist()
    for video in read.values():
        assert decode_mp4(video).shape == (FRAMES, SIZE, SIZE, 3)


def read_tars(urls: list[str]) -> dict[str, bytes]:
    """By `webdataset`, from a pipe as its manual has `aws s3 cp`. `datasets` 5.2 can't read tars from S3: it gives the
    client an option that there isn't."""
    copy = "import sys, s3fs; sys.stdout.buffer.write(s3fs.S3FileSystem().cat(sys.argv[1]))"
    web = [f"pipe:{sys.executable} -c '{copy}' {url}" for url in urls]
    return {own["__key__"]: own["mp4"] for own in webdataset.WebDataset(web, shardshuffle=False)}


def read_parquet(urls: list[str]) -> dict[str, bytes]:
    """By `datasets`, straight from the bucket."""
    options = {"key": "test", "secret": "test", "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    rows = datasets.load_dataset("parquet", data_files=urls, split="train", streaming=True, storage_options=options)
    videos = rows.cast_column("video", datasets.Video(decode=False))
    return {row["key"]: row["video"]["bytes"] for row in videos}
