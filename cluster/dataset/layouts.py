"""Layouts of rows: a file for each until a clean-up, then segments that hold many.

    layouts/ab/{key}-{sha256:16}.npz        arrays, no pickles
    layouts/segments/{digest}.parquet       key, name (as the row has it) and bytes, sorted by name, up to 64 MiB

A row group holds few layouts, and the keys of a segment are read once, so that one layout costs one small read.
"""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import pyarrow as pa

from cluster.dataset.row_files import Segments
from cluster.dataset.segments import SEGMENT_BYTES, SEGMENT_ROWS, sharded
from cluster.storage.protocol import Files

SCHEMA = pa.schema([("key", pa.string()), ("name", pa.string()), ("data", pa.binary())])

_NAME = re.compile(r"layouts/[0-9a-f]{2}/(?P<key>[0-9a-f]{32})-(?P<digest>[0-9a-f]{16})\.npz")
_PARSING = Lock()
_AT_ONCE = 256  # files that are read before they are put together


def arrays_of(data: bytes) -> dict[str, np.ndarray] | None:
    """What a layout's file holds; None if it is torn.

    By one thread at a time: numpy parses an array's header with `ast`, whose depth CPython counts for all threads
    together: several that parse at once may end in a SystemError (python/cpython#106905).
    """
    try:
        with _PARSING, np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


class Layouts:
    """The layouts of one output."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.in_segments = Segments(files, "layouts/segments", SCHEMA, unique="name", large=True)

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Store the arrays; the file's name. Equal arrays, equal bytes. Raises ValueError for an object array."""
        data = _npz(arrays)
        name = f"layouts/{sharded(key)}-{hashlib.sha256(data).hexdigest()[:16]}.npz"
        self._files.create(name, data)
        return name

    def read(self, name: str) -> bytes:
        """A layout, wherever it is; FileNotFoundError where it is nowhere. Many that are read in the order of their
        names are read once."""
        made = _NAME.fullmatch(name)
        found = self.in_segments.find(made["key"], name, listing=False) if made else None
        try:
            if found is None:
                return self._files.read(name)
        except FileNotFoundError:
            found = self.in_segments.find(made["key"], name) if made else None
            if found is None:
                raise
        return bytes(found["data"][0].as_py())

    def gather(self, names: Iterable[str]) -> int:
        """Put these single files, given in order, into segments; how many were written.

        A file that isn't there, or isn't the one that its name was made of, is left as it is.
        """
        written, size, rows = 0, 0, list[dict[str, object]]()
        for key, name, data in self._whole(names):
            if rows and (size + len(data) > SEGMENT_BYTES or len(rows) == SEGMENT_ROWS):
                self.in_segments.write([pa.Table.from_pylist(rows, schema=SCHEMA)])
                written, size, rows = written + 1, 0, []
            rows.append({"key": key, "name": name, "data": data})
            size += len(data)
        if rows:
            self.in_segments.write([pa.Table.from_pylist(rows, schema=SCHEMA)])
        return written + bool(rows)

    def _whole(self, names: Iterable[str]) -> Iterator[tuple[str, str, bytes]]:
        def read(name: str) -> bytes | None:
            try:
                return self._files.read(name)
            except FileNotFoundError:
                return None

        rest = list(names)
        with ThreadPoolExecutor(self._files.readers) as readers:
            for start in range(0, len(rest), _AT_ONCE):
                some = rest[start : start + _AT_ONCE]
                for name, data in zip(some, readers.map(read, some), strict=True):
                    made = _NAME.fullmatch(name)
                    if made and data is not None and hashlib.sha256(data).hexdigest()[:16] == made["digest"]:
                        yield made["key"], name, data


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """`numpy.savez_compressed` without the clock: names sorted, one fixed date."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.getvalue())
    return sink.getvalue()
