"""The forms of an export: the one place to register one.

A form is a file of its own with a `write`, and an entry of FORMATS.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Format:
    """One form."""

    write: str  # module:name, of a store, files, a `Selection`, an `ExportConfig` and a report: gives an `Exported`
    one_clip: bool = False  # of each prompt and sample, and so of one strategy
    settings: tuple[str, ...] = ()  # of `ExportConfig`, that decide its files beside those that decide any form's


FORMATS = {
    "hf": Format(write="cluster.export.hf:write"),
    "webdataset": Format(write="cluster.export.webdataset:write", settings=("shard_clips",)),
    "countbench": Format(write="cluster.export.countbench:write", one_clip=True),
    "vbench": Format(write="cluster.export.vbench:write", one_clip=True),
}
