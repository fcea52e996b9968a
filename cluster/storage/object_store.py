"""Objects of a store such as S3, through fsspec: put with `If-None-Match: *` where only one writer may win."""

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http import HTTPStatus
from typing import Any

import fsspec
import pyarrow as pa

from cluster.storage.protocol import HEX_DIGITS, TEMPORARY, FileStat, hidden, storage_trouble, without_secrets

_DELETED_AT_ONCE = 1000  # objects: S3's limit


class ObjectFiles:
    """A prefix of an object store, through fsspec; `exclusive` when its put can be conditional (S3)."""

    readers = 16  # each waits for a round trip

    def __init__(self, fs: fsspec.AbstractFileSystem, prefix: str, *, exclusive: bool) -> None:
        self.root = without_secrets(fs.unstrip_protocol(prefix))
        self._fs: Any = fs
        self._prefix = prefix.rstrip("/")
        self._exclusive = exclusive
        self._bucket, _, folder = self._prefix.partition("/")  # where it is S3
        self._in_bucket = f"{folder}/" if folder else ""
        self._lost = _client_errors()

    def create(self, name: str, data: bytes) -> bool:
        """On S3 a put whose answer was lost and that the client repeated counts as another writer's: the object is
        there, whole and once, and False is returned."""
        path = self._path(name)
        with self._trouble("write", path):
            if self._exclusive:
                return self._put_if_absent(path, data)
            if self._fs.exists(path):
                return False
            self._fs.pipe_file(path, data)
        return True

    def _put_if_absent(self, path: str, data: bytes) -> bool:
        for last in (False, False, True):
            try:
                self._fs.pipe_file(path, data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                status = _http_status(error)
                if status == HTTPStatus.PRECONDITION_FAILED:  # a server that doesn't say which condition failed
                    return False
                if status != HTTPStatus.CONFLICT or last:  # a conflict is S3's word for "try that again"
                    raise
        return False

    def replace(self, name: str, data: bytes, *, durable: bool = True) -> None:
        path = self._path(name)
        with self._trouble("write", path):
            self._fs.pipe_file(path, data)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with self._trouble("read", path):
            return bytes(self._fs.cat_file(path))

    def open(self, name: str) -> pa.NativeFile:
        return pa.BufferReader(self.read(name))  # one request; a part of a Parquet file takes three

    def open_parts(self, name: str) -> pa.NativeFile:
        path = self._path(name)
        with self._trouble("read", path):
            return pa.PythonFile(self._fs.open(path, "rb", cache_type="none"), mode="r")

    def stat(self, name: str) -> FileStat:
        path = self._path(name)
        with self._trouble("read", path):
            info = self._fs.info(path)
        if info["type"] == "directory":
            raise FileNotFoundError(path)
        made = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
        return FileStat(int(info["size"] or 0), made.timestamp() if isinstance(made, datetime) else float(made))

    def remove(self, name: str) -> None:
        path = self._path(name)
        with self._trouble("remove", path):
            try:
                self._fs.rm_file(path)
            except FileNotFoundError:
                return

    def remove_all(self, names: Collection[str]) -> None:
        if not self._exclusive:
            for name in names:
                self.remove(name)
            return
        bucket, keys = self._bucket, [{"Key": f"{self._in_bucket}{name}"} for name in names]
        with self._trouble("remove", self._path("")):
            for start in range(0, len(keys), _DELETED_AT_ONCE):
                some = {"Objects": keys[start : start + _DELETED_AT_ONCE], "Quiet": True}
                answer = self._fs.call_s3("delete_objects", Bucket=bucket, Delete=some)
                if refused := answer.get("Errors"):  # the answer's own status is 200
                    raise OSError(f"{refused[0]['Key']}: {refused[0].get('Code')} ({len(refused)} objects refused)")

    def remove_folder(self, folder: str) -> None:
        """Object stores have no empty folders."""

    def names(self, folder: str = "") -> list[str]:
        path = f"{self._prefix}/{folder}".rstrip("/")
        with self._trouble("list", path):
            self._fs.invalidate_cache()
            try:
                listed = self._fs.ls(path, detail=False)
            except FileNotFoundError:
                return []
        bare = (found[len(path) :].strip("/") for found in (place.rstrip("/") for place in listed))
        return [name for name in bare if name[:1] not in ("", ".")]

    def walk(self, folder: str) -> Iterator[str]:
        return (name for name in self._find(folder) if not hidden(name))

    def keyed(self, folder: str) -> Iterator[Mapping[str, int | None]]:
        if not self._exclusive:
            found = (name.removeprefix(f"{folder}/") for name in self.walk(folder))
            yield dict.fromkeys(name.rsplit("/", 1)[-1] for name in found if name[0] in HEX_DIGITS)
            return
        prefixes = [f"{self._in_bucket}{folder}/{digit}" for digit in HEX_DIGITS]
        with ThreadPoolExecutor(self.readers) as readers:
            yield from readers.map(self._list_prefix, prefixes)

    def _list_prefix(self, prefix: str) -> dict[str, int | None]:
        """Bare names and sizes: a page for each 1,000 objects, and of each no more than is asked for is kept."""
        found, more = dict[str, int | None](), dict[str, str]()
        with self._trouble("list", f"{self._bucket}/{prefix}"):
            while True:
                page = self._fs.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=prefix, **more)
                named = ((entry["Key"].rsplit("/", 1)[-1], entry["Size"]) for entry in page.get("Contents", []))
                found |= {name: size for name, size in named if not hidden(name)}
                if not page.get("IsTruncated"):
                    return found
                more = {"ContinuationToken": page["NextContinuationToken"]}

    def temporaries(self) -> Iterator[str]:
        """Only probes: a put shows nothing before it is whole. Parts of a killed multipart upload aren't objects; a
        lifecycle rule of the bucket removes them."""
        return (name for name in self._find("") if name.startswith(TEMPORARY))

    def clock(self) -> float:
        name = f"{TEMPORARY}clock-{uuid.uuid4().hex}"
        try:
            self.replace(name, b"")
            return self.stat(name).modified
        finally:
            self.remove(name)

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _trouble(self, action: str, path: str) -> Any:
        return storage_trouble(action, path, lost=self._lost)

    def _find(self, folder: str) -> Iterable[str]:
        with self._trouble("list", self._path(folder)):
            self._fs.invalidate_cache()
            try:
                found: list[str] = self._fs.find(self._path(folder).rstrip("/"))
            except FileNotFoundError:
                return []
        start = len(self._prefix) + 1
        return [path[start:] for path in found]


def _client_errors() -> tuple[type[Exception], ...]:
    """What an S3 client raises beside OSError when the endpoint or the credentials are gone."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return ()
    return (BotoCoreError, ClientError)


def _http_status(error: OSError) -> int | None:
    """What the S3 server answered to the request that s3fs made this error of."""
    response = getattr(error.__cause__, "response", None) or {}
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
