"""Objects of a store such as S3, through fsspec: put with `If-None-Match: *` where only one writer may win.

The client repeats what a server refuses because it is busy (503 SlowDown) or doesn't answer in time, later and later
(`AWS_MAX_ATTEMPTS`, `AWS_RETRY_MODE`). Credentials that expire are read anew, from wherever the client found them.
"""

import io
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http import HTTPStatus
from threading import Lock
from typing import Any

import fsspec
import pyarrow as pa

from cluster.storage.protocol import HEX_DIGITS, TEMPORARY, FileStat, hidden, storage_trouble, without_secrets

_DELETED_AT_ONCE = 1000  # objects: S3's limit
_PART = 32 * 2**20  # bytes: what is twice as large or more is put in parts of this size
_EXPIRED = {
    *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidToken"),
    *("InvalidAccessKeyId", "InvalidClientTokenId"),  # what some servers say of temporary ones that they forgot
    "400",  # of a HEAD request, whose answer has no body
}
_NOT_RENEWED = {
    *("CredentialRetrievalError", "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"),
    *("SSOTokenLoadError", "UnauthorizedSSOTokenError", "MetadataRetrievalError"),
}
_RENEW = (
    "its credentials have expired or aren't known: renew them where they come from (`aws sso login`, the profile's "
    "file, the credential process), then run the same command to resume; nothing that was committed is lost"
)
_SET_CLOCK = (
    "the server refuses requests from this machine because its clock is wrong: synchronize it (NTP), then run the same "
    "command to resume"
)


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
        self._renewals = 0
        self._renewing = Lock()

    def create(self, name: str, data: bytes) -> bool:
        """On S3 a put whose answer was lost and that the client repeated counts as another writer's: the object is
        there, whole and once, and False is returned."""
        path = self._path(name)
        with self._trouble("write", path):
            if self._exclusive:
                return self._put_if_absent(path, data)
            if self._fs.exists(path):
                return False
            self._call("pipe_file", path, data)
        return True

    def _put_if_absent(self, path: str, data: bytes) -> bool:
        for last in (False, False, True):
            try:
                self._call("pipe_file", path, data, mode="create", chunksize=_PART)
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
            self._call("pipe_file", path, data, **({"chunksize": _PART} if self._exclusive else {}))

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with self._trouble("read", path):
            alone = {"max_concurrency": 1} if self._exclusive else {}  # else it asks for the size first
            return bytes(self._call("cat_file", path, **alone))

    def open(self, name: str) -> pa.NativeFile:
        return pa.BufferReader(self.read(name))  # one request; a part of a Parquet file takes three

    def open_parts(self, name: str, size: int | None = None) -> pa.NativeFile:
        return pa.PythonFile(_Parts(self, name, self.stat(name).size if size is None else size), mode="r")

    def read_part(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`."""
        path = self._path(name)
        with self._trouble("read", path):
            return bytes(self._call("cat_file", path, start=start, end=end))

    def stat(self, name: str) -> FileStat:
        path = self._path(name)
        with self._trouble("read", path):
            if self._exclusive:  # `info` would list, too, where there is no such object
                head = self._call("call_s3", "head_object", Bucket=self._bucket, Key=f"{self._in_bucket}{name}")
                return FileStat(int(head["ContentLength"]), head["LastModified"].timestamp())
            info = self._call("info", path)
        if info["type"] == "directory":
            raise FileNotFoundError(path)
        made = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
        return FileStat(int(info["size"] or 0), made.timestamp() if isinstance(made, datetime) else float(made))

    def remove(self, name: str) -> None:
        path = self._path(name)
        with self._trouble("remove", path):
            try:
                self._call("rm_file", path)
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
                answer = self._call("call_s3", "delete_objects", Bucket=bucket, Delete=some)
                if refused := answer.get("Errors"):  # the answer's own status is 200
                    raise OSError(f"{refused[0]['Key']}: {refused[0].get('Code')} ({len(refused)} objects refused)")

    def remove_folder(self, folder: str) -> None:
        """Object stores have no empty folders."""

    def names(self, folder: str = "") -> list[str]:
        path = f"{self._prefix}/{folder}".rstrip("/")
        with self._trouble("list", path):
            self._fs.invalidate_cache()
            try:
                listed = self._call("ls", path, detail=False)
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

    def _list_prefix(self, prefix: str, *, dotted: bool = False) -> dict[str, int | None]:
        """Bare names and sizes, without dot-names unless `dotted`: a request for each 1,000 objects."""
        found, more = dict[str, int | None](), dict[str, str]()
        with self._trouble("list", f"{self._bucket}/{prefix}"):
            while True:
                page = self._call("call_s3", "list_objects_v2", Bucket=self._bucket, Prefix=prefix, **more)
                named = ((entry["Key"].rsplit("/", 1)[-1], entry["Size"]) for entry in page.get("Contents", []))
                found |= {name: size for name, size in named if dotted or not hidden(name)}
                if not page.get("IsTruncated"):
                    return found
                more = {"ContinuationToken": page["NextContinuationToken"]}

    def temporaries(self) -> Iterator[str]:
        """Only probes: a put shows nothing before it is whole. Parts of a killed multipart upload aren't objects; a
        lifecycle rule of the bucket removes them."""
        if self._exclusive:
            return iter(self._list_prefix(f"{self._in_bucket}{TEMPORARY}", dotted=True))
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
        return storage_trouble(action, path, lost=self._lost, remedy=_remedy)

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """A call of the client, once more with credentials that it reads anew where a server takes the old ones no
        more. Parts of an upload that was under way stay, as those of a killed one."""
        renewals = self._renewals
        try:
            return getattr(self._fs, method)(*args, **options)
        except Exception as error:
            if not self._exclusive or not _expired(error):
                raise
            self._renew(renewals)
            return getattr(self._fs, method)(*args, **options)

    def _renew(self, renewals: int) -> None:
        """A new session of the client, unless another thread made one since there were so many."""
        with self._renewing:
            if self._renewals == renewals:
                self._fs.connect(refresh=True)
                self._renewals += 1

    def _find(self, folder: str) -> Iterable[str]:
        with self._trouble("list", self._path(folder)):
            self._fs.invalidate_cache()
            try:
                found: list[str] = self._call("find", self._path(folder).rstrip("/"))
            except FileNotFoundError:
                return []
        start = len(self._prefix) + 1
        return [path[start:] for path in found]


class _Parts(io.RawIOBase):
    """An object to read parts of, each by a request of its own."""

    def __init__(self, files: ObjectFiles, name: str, size: int) -> None:
        self._files, self._name = files, name
        self._size, self._place = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._place + size, self._size)
        if end <= self._place:
            return b""
        data = self._files.read_part(self._name, self._place, end)
        self._place += len(data)
        return data


def _expired(error: BaseException) -> bool:
    """Whether a server takes the client's credentials no more, or the client couldn't renew them itself."""
    return _code(error) in _EXPIRED or type(error.__cause__ or error).__name__ in _NOT_RENEWED


def _code(error: BaseException) -> str | None:
    """What the server calls its error."""
    code: str | None = (getattr(error.__cause__ or error, "response", None) or {}).get("Error", {}).get("Code")
    return code


def _remedy(error: BaseException) -> str | None:
    if _expired(error):
        return _RENEW
    return _SET_CLOCK if _code(error) == "RequestTimeTooSkewed" else None


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
