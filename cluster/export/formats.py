"""The forms of an export: the one place to register one.

A form is a file of its own and an entry of FORMATS. It is written whole, or it grows by closed shards (shards.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Format:
    """One form: either `write` or `shard`."""

    write: str = (
        ""  # module:name, of a store, files, a `Selection`, an `ExportConfig` and a report: gives an `Exported`
    )
    shard: str = ""  # module:name of the `shards.Writer` of one shard
    ending: str = ""  # of a shard's name
    one_clip: bool = False  # of each prompt and sample, and so of one strategy
    settings: tuple[str, ...] = ()  # of `ExportConfig`, that decide its files beside those that decide any form's


FORMATS = {
    "hf": Format(write="cluster.export.hf:write"),
    "webdataset": Format(shard="cluster.export.webdataset:TarShard", ending=".tar", settings=("shard_clips",)),
    "parquet": Format(shard="cluster.export.parquet:ParquetShard", ending=".parquet", settings=("shard_clips",)),
    "countbench": Format(write="cluster.export.countbench:write", one_clip=True),
    "vbench": Format(write="cluster.export.vbench:write", one_clip=True),
}
GROWING = [name for name, form in FORMATS.items() if form.shard]
