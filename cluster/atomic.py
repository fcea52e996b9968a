"""Files that appear whole or not at all: the create-if-absent under every commit, on POSIX folders and on S3.

A POSIX file is written under a temporary dot-name in its own folder, fsynced, hard-linked to its name, and the folder
is fsynced. An S3 object is put with `If-None-Match: *`. Of any number of writers exactly one makes the file, and no
reader sees a part of it. Names are relative to the root, with `/` between folders; dot-names are never listed.
"""

import errno
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.core import url_to_fs

from numina.errors import OutputError, StorageError

_TEMPORARY = ".numina-"
_NO_PROMISE = "without an atomic create-if-absent two drivers could both commit a row"
_ONE_WRITER = "use a POSIX folder or s3://, or set single_writer=true and never start a second driver on this output"


class Files(Protocol):
    """What a store needs of a filesystem. Lost or full storage is a StorageError in every method."""

    root: str

    def create(self, name: str, data: bytes) -> bool:
        """Make the file with this content, durably; False when it exists already, then it is left as it is."""

    def replace(self, name: str, data: bytes) -> None:
        """Make the file, or put this content in its place, in one step."""

    def read(self, name: str) -> bytes:
        """The content; FileNotFoundError when there is no such file."""

    def remove(self, name: str) -> None:
        """Remove the file; no error when it is gone already."""

    def walk(self, folder: str) -> Iterator[str]:
        """Names of all files under the folder, at any depth; nothing when there is no such folder."""

    def times(self, folder: str) -> Iterator[tuple[str, float]]:
        """As `walk`, with the time of each file's making in seconds since the epoch."""

    def entries(self) -> list[str]:
        """Names of the files and folders directly under the root."""


def open_files(root: str, *, single_writer: bool = False) -> Files:
    """The files under a local folder or a URL that fsspec knows.

    Raises OutputError for a filesystem that is neither POSIX nor S3, unless `single_writer`.
    """
    try:
        fs, path = url_to_fs(root, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise OutputError(f"output {root!r} can't be opened: {error}; install its fsspec package, e.g. s3fs") from error
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if "file" in protocols:
        return PosixFiles(path, single_writer=single_writer)
    exclusive = "s3" in protocols
    if not exclusive and not single_writer:
        raise OutputError(f"output {root!r} is on {sorted(protocols)}: {_NO_PROMISE}; {_ONE_WRITER}")
    return ObjectFiles(fs, path, exclusive=exclusive)


def check_promise(files: Files) -> None:
    """Try create-if-absent on the spot: some S3 servers ignore the condition, some mounts have no hard links.

    Raises OutputError when the second of two creates of one name is not refused.
    """
    probe = f"{_TEMPORARY}probe-{uuid.uuid4().hex}"
    try:
        files.create(probe, b"first")
        refused = not files.create(probe, b"second") and files.read(probe) == b"first"
    finally:
        files.remove(probe)
    if not refused:
        raise OutputError(f"output {files.root!r} let two writers create one file: {_NO_PROMISE}; {_ONE_WRITER}")


@contextmanager
def storage_trouble(action: str, path: str, *, lost: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn an OSError, and the `lost` errors of a storage client, into a StorageError; a file that isn't there to be
    read stays a FileNotFoundError."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *lost)):
            raise
        if action == "read" and isinstance(error, FileNotFoundError):
            raise
        raise StorageError(
            f"can't {action} {path!r}: {error}; the job stops here, no prompt is blamed: "
            "free some space or bring the storage back, then give the same command again to resume"
        ) from error


class PosixFiles:
    """A folder on a POSIX filesystem, local or NFS."""

    def __init__(self, root: str, *, single_writer: bool = False) -> None:
        self.root = root
        self._single_writer = single_writer

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with storage_trouble("write", path):
            temporary = self._write_temporary(path, data)
            try:
                made = self._link(temporary, path)
            finally:
                _unlink(temporary)
            # Also when another writer made it: it may have died before its own fsync of the folder.
            _sync_folder(os.path.dirname(path))
        return made

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with storage_trouble("write", path):
            temporary = self._write_temporary(path, data)
            try:
                os.replace(temporary, path)
            except OSError:
                _unlink(temporary)
                raise
            _sync_folder(os.path.dirname(path))

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with storage_trouble("read", path):
            return Path(path).read_bytes()

    def remove(self, name: str) -> None:
        path = self._path(name)
        with storage_trouble("remove", path):
            _unlink(path)

    def walk(self, folder: str) -> Iterator[str]:
        return (name for name, _ in self._scan(folder))

    def times(self, folder: str) -> Iterator[tuple[str, float]]:
        for name, entry in self._scan(folder):
            try:
                with storage_trouble("read", entry.path):
                    made = entry.stat().st_mtime
            except FileNotFoundError:  # removed since it was listed: a lease that was given back
                continue
            yield name, made

    def entries(self) -> list[str]:
        with storage_trouble("list", self.root):
            try:
                return sorted(name for name in os.listdir(self.root) if not name.startswith("."))
            except FileNotFoundError:
                return []

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _scan(self, folder: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
        with storage_trouble("list", self._path(folder)):
            try:
                listed = list(os.scandir(self._path(folder)))
            except FileNotFoundError:
                return
        for entry in listed:
            if entry.name.startswith("."):
                continue
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                yield from self._scan(name)
            else:
                yield name, entry

    def _write_temporary(self, path: str, data: bytes) -> str:
        folder = os.path.dirname(path)
        _make_folder(folder)
        temporary = os.path.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            _unlink(temporary)
            raise
        return temporary

    def _link(self, temporary: str, path: str) -> bool:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return _same_file(temporary, path)  # NFS repeats a request whose answer was lost, and refuses the repeat
        except OSError as error:
            if _same_file(temporary, path):
                return True
            if not _has_no_links(error):
                raise
            return self._rename_alone(temporary, path, error)
        return True

    def _rename_alone(self, temporary: str, path: str, error: OSError) -> bool:
        if not self._single_writer:
            raise OutputError(
                f"output {self.root!r} has no hard links ({error.strerror}): {_NO_PROMISE}; {_ONE_WRITER}"
            ) from error
        if os.path.exists(path):
            return False
        os.rename(temporary, path)
        return True


class ObjectFiles:
    """A prefix of an object store, through fsspec; `exclusive` when its put can be conditional (S3)."""

    def __init__(self, fs: fsspec.AbstractFileSystem, prefix: str, *, exclusive: bool) -> None:
        self.root = fs.unstrip_protocol(prefix)
        self._fs: Any = fs
        self._prefix = prefix.rstrip("/")
        self._exclusive = exclusive
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

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with self._trouble("write", path):
            self._fs.pipe_file(path, data)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with self._trouble("read", path):
            return bytes(self._fs.cat_file(path))

    def remove(self, name: str) -> None:
        path = self._path(name)
        with self._trouble("remove", path):
            try:
                self._fs.rm_file(path)
            except FileNotFoundError:
                return

    def walk(self, folder: str) -> Iterator[str]:
        return (name for name, _ in self._find(folder))

    def times(self, folder: str) -> Iterator[tuple[str, float]]:
        for name, info in self._find(folder):
            made = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
            yield name, made.timestamp() if isinstance(made, datetime) else float(made)

    def entries(self) -> list[str]:
        with self._trouble("list", self._prefix):
            self._fs.invalidate_cache()
            try:
                listed = self._fs.ls(self._prefix, detail=False)
            except FileNotFoundError:
                return []
        return sorted(name for name in (path.rstrip("/").rsplit("/", 1)[-1] for path in listed) if name[:1] not in ".")

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _trouble(self, action: str, path: str) -> Any:
        return storage_trouble(action, path, lost=self._lost)

    def _find(self, folder: str) -> Iterable[tuple[str, dict[str, Any]]]:
        with self._trouble("list", self._path(folder)):
            self._fs.invalidate_cache()
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
        start = len(self._prefix) + 1
        return [(path[start:], info) for path, info in found.items() if not path.rsplit("/", 1)[-1].startswith(".")]


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


def _has_no_links(error: OSError) -> bool:
    return error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def _same_file(a: str, b: str) -> bool:
    try:
        first, second = os.stat(a), os.stat(b)
    except FileNotFoundError:
        return False
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _make_folder(folder: str) -> None:
    """Make the folder and its parents, each durable in its own parent."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    if parent and parent != folder:
        _make_folder(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise NotADirectoryError(f"{folder!r} is a file where a folder is needed") from None
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
