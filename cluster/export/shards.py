"""Closed shards: files of equally many clips that are written once, listed in a manifest and never changed.

DIR/MANIFEST.json                     the closed shards in their order: name, sha256, bytes, clips; no other file counts
    shard-000000.tar                  or .parquet
    index/shard-000000.parquet        of each clip its key, the bytes of its video and where they begin in a tar; and
                                      its sample (`chain`) with the strategies that keep it: it is not exported again
    README.md                         how a trainer reads all this
    leases/                           who is writing

A shard is written aside and renamed, then comes its index, then its line in the manifest. A process that is killed
before that last step leaves files that count for nothing, and the next one writes that number again.
"""

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from cluster.dataset.leases import LEASE_SECONDS, Leases
from cluster.dataset.segments import read_tables
from cluster.storage.protocol import TEMPORARY, Files, storage_trouble
from numina.errors import DamageError, StorageError

MANIFEST = "MANIFEST.json"
FORMAT = "numina-shards/1"
INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("bytes", pa.int64()),  # of the video
        ("offset", pa.int64()),  # of the video's first byte in the shard; null where it isn't one piece
        ("chain", pa.string()),
        ("strategies", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A closed shard, as the manifest lists it."""

    name: str
    sha256: str  # hex
    bytes: int
    clips: int

    @property
    def index(self) -> str:
        """The name of its index."""
        return f"index/{self.name.split('.')[0]}.parquet"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A clip on its way into a shard."""

    row: dict[str, Any]  # as `columns.json_bytes` takes it, with `annotations`
    columns: pa.Table  # the same with its types, without `annotations`: at its `place`
    place: int
    video: bytes


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A shard that is written, but not closed yet."""

    place: str  # the name that its file has until then
    sha256: str  # hex
    bytes: int
    index: pa.Table  # of INDEX's columns


class Writer(Protocol):
    """Writes one shard."""

    def __init__(self, stream: "Hashed") -> None: ...

    def add(self, sample: Sample) -> int | None:
        """Where in the shard the video's bytes begin, where they are one piece."""

    def close(self) -> None: ...


class Hashed(io.RawIOBase):
    """A file that is written once, in order. A thread of its own writes and hashes, a megabyte at a time."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self.size, self.place = 0, place
        self._file, self._digest = file, hashlib.sha256()
        self._waiting, self._bytes = list[bytes](), 0
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None

    @property
    def sha256(self) -> str:
        """In hex, of all that was written."""
        self.flush()
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        data = bytes(data)  # the same object, where it is one
        self._waiting.append(data)
        self._bytes += len(data)
        self.size += len(data)
        if self._bytes >= 2**20:
            self._pass_on()
        return len(data)

    def flush(self) -> None:
        """Waits until all is written."""
        self._pass_on()
        self._wait()

    def close(self) -> None:
        """Ends the thread. Flush before: what it hasn't begun to write is lost."""
        self._thread.shutdown(cancel_futures=True)

    def _pass_on(self) -> None:
        self._wait()
        self._under_way = self._thread.submit(self._write, self._waiting)
        self._waiting, self._bytes = [], 0

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result()

    def _write(self, parts: list[bytes]) -> None:
        data = b"".join(parts)
        self._file.write(data)
        self._digest.update(data)


class Shards:
    """The closed shards of an export's folder, of one `ending` (.tar, .parquet)."""

    def __init__(self, files: Files, ending: str) -> None:
        self.files, self.ending = files, ending
        self.closed = self._read()

    @property
    def clips(self) -> int:
        """In all closed shards."""
        return sum(shard.clips for shard in self.closed)

    def index(self) -> pa.Table:
        """Of all clips in closed shards, of INDEX's columns."""
        return self.index_of(*self.closed)

    def index_of(self, *shards: Shard) -> pa.Table:
        """Of the clips of some shards, in their order."""
        return pa.concat_tables([INDEX.empty_table(), *read_tables(self.files, [shard.index for shard in shards])])

    def damaged(self) -> Iterator[int]:
        """The numbers of the shards that are gone, or have another size than they should."""
        for number, shard in enumerate(self.closed):
            try:
                size = self.files.stat(shard.name).size
            except FileNotFoundError:
                size = -1
            if size != shard.bytes:
                yield number

    def close(self, number: int, filled: "Filled") -> None:
        """Close a shard of what was filled: a new one, or number `number` again."""
        name = shard_name(number, self.ending)
        named(self.files, filled.place, name)
        closed = Shard(name=name, sha256=filled.sha256, bytes=filled.bytes, clips=len(filled.index))
        index = filled.index.set_column(1, "shard", pa.array([name] * closed.clips))
        sink = io.BytesIO()
        pq.write_table(index, sink, compression="zstd", write_page_checksum=True)
        self.files.replace(closed.index, sink.getvalue())
        self.closed[number : number + 1] = [closed]
        self._list()

    def _list(self) -> None:
        lines = ",\n".join(f"  {json.dumps(asdict(shard))}" for shard in self.closed)
        self.files.replace(MANIFEST, f'{{"format": "{FORMAT}", "shards": [\n{lines}\n]}}\n'.encode())

    def _read(self) -> list[Shard]:
        place = f"{self.files.root}/{MANIFEST}"
        try:
            found = json.loads(self.files.read(MANIFEST))
            if found["format"] != FORMAT:
                raise ValueError(f"it has format {found['format']!r}, this version reads {FORMAT!r}")
            return [Shard(**shard) for shard in found["shards"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise DamageError(f"{place} can't be read ({error}): restore it, or export to a new folder") from error


def shard_name(number: int, ending: str) -> str:
    return f"shard-{number:06d}{ending}"


def fill(
    files: Files, name: str, samples: Iterator[Sample], most: int, writer: type[Writer], *, exact: bool
) -> "Filled | None":
    """A shard of the next samples, `most` of them at most, to be closed under this name; None where they are too few
    for an `exact` one, or none."""
    entries = list[dict[str, Any]]()
    with suppress(_TooFewError), begun(files, name) as stream:
        shard = writer(stream)
        for sample in samples:
            own = {"key": sample.row["key"], "strategies": sample.row["strategies"]}
            own["chain"] = sample.row["chain"] or sample.row["key"]  # as `outcomes` groups them
            entries.append({**own, "shard": name, "bytes": len(sample.video), "offset": shard.add(sample)})
            if len(entries) == most:
                break
        if len(entries) < (most if exact else 1):
            raise _TooFewError
        shard.close()
        index = pa.Table.from_pylist(entries, schema=INDEX)
        return Filled(place=stream.place, sha256=stream.sha256, bytes=stream.size, index=index)
    return None


@contextmanager
def written(files: Files, name: str) -> Iterator[Hashed]:
    """A file that is written in order, and appears whole under its name or not at all."""
    with begun(files, name) as stream:
        yield stream
    named(files, stream.place, name)


@contextmanager
def begun(files: Files, name: str) -> Iterator[Hashed]:
    """A file that is written in order, whole when this is left. Where files can be renamed it lies aside until it is
    `named`, else it has its name then."""
    fs, root = url_to_fs(files.root)
    with storage_trouble("write", f"{files.root}/{name}"):
        fs.makedirs(root, exist_ok=True)
        local = "file" in fs.protocol
        place = f"{TEMPORARY}{uuid.uuid4().hex}" if local else name
        file = fs.open(f"{root}/{place}", "wb")
        hashed = Hashed(file, place)
        try:
            yield hashed
            hashed.flush()
            if local:
                file.flush()
                os.fsync(file.fileno())
            file.close()
        except BaseException:
            file.close() if local else file.discard()
            Path(root, place).unlink(missing_ok=True)
            raise
        finally:
            hashed.close()


def named(files: Files, place: str, name: str) -> None:
    """Give a file that lies aside its name."""
    if place != name:
        with storage_trouble("write", f"{files.root}/{name}"):
            os.replace(f"{files.root}/{place}", f"{files.root}/{name}")


@contextmanager
def alone(files: Files) -> Iterator[None]:
    """While this process writes shards to a folder no other one does. What killed ones left there is removed.

    Raises OutputError where another process is at work on the folder.
    """
    leases = Leases(files, uuid.uuid4().hex)
    ended = Event()

    def renew() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            try:
                leases.lease(())
            except StorageError:  # what the export itself does next raises it too
                continue

    leases.lease(())
    renewing = Thread(target=renew, daemon=True)
    try:
        leases.refuse(leases.in_the_way(), "one export at a time writes to a folder")
        renewing.start()
        for name in [*leases.dead(), *files.temporaries()]:
            files.remove(name)
        yield
    finally:
        ended.set()
        if renewing.is_alive():
            renewing.join()
        leases.release()


class _TooFewError(Exception):
    """There are fewer samples than a shard takes."""
