"""Files that appear whole or not at all: the create-if-absent under every commit, on POSIX folders and on S3.

A POSIX file is written under a temporary dot-name in its own folder, fsynced, hard-linked to its name, and the folder
is fsynced. An S3 object is put with `If-None-Match: *`. Of any number of writers exactly one makes the file, and no
reader sees a part of it. Names are relative to the root, with `/` between folders; dot-names are never listed.
"""

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from numina.errors import OutputError, StorageError

_TEMPORARY = ".numina-"
# S3's secrets may hold a slash, its buckets no colon; elsewhere a colon may stand before a port.
_S3_USER = re.compile(r"(?P<protocol>\bs3a?://)(?P<key>[^/@:\s]*)(:(?P<secret>[^@\s]*))?@")
_ANY_USER = re.compile(r"(?P<protocol>\b[a-z][a-z0-9+.-]*://)[^/@\s]*@")
_NO_PROMISE = "without an atomic create-if-absent two drivers could both commit a row"
_ONE_WRITER = "use a POSIX folder or s3://, or set single_writer=true and never start a second driver on this output"


@dataclass(frozen=True)
class FileStat:
    """A file's size, and when it was made by the storage's own clock (seconds since the epoch)."""

    size: int  # bytes
    modified: float


class Files(Protocol):
    """What a store needs of a filesystem. Lost or full storage is a StorageError in every method."""

    root: str  # without the user's name and secret, where the URL had them
    readers: int  # files that are best read at once

    def create(self, name: str, data: bytes) -> bool:
        """Make the file with this content, durably; False when it exists already, then it is left as it is."""

    def replace(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Make the file, or put this content in its place, in one step. Without `durable` a crash of the machine may
        lose it or leave it empty."""

    def read(self, name: str) -> bytes:
        """The content; FileNotFoundError when there is no such file."""

    def open(self, name: str) -> pa.NativeFile:
        """The file, to read parts of it; FileNotFoundError when there is no such file."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file, by one look at the storage."""

    def stat(self, name: str) -> FileStat:
        """The file's size and time; FileNotFoundError when there is no such file."""

    def remove(self, name: str) -> None:
        """Remove the file; no error when it is gone already."""

    def remove_folder(self, folder: str) -> None:
        """Remove the folder if it is empty."""

    def names(self, folder: str = "") -> list[str]:
        """The bare names of files and folders directly under the folder; none when there is no such folder."""

    def walk(self, folder: str) -> Iterator[str]:
        """Names of all files under the folder, at any depth; nothing when there is no such folder."""

    def temporaries(self) -> Iterator[str]:
        """Names of the files that writers leave when they are killed. A living writer's are among them."""

    def clock(self) -> float:
        """The time by the storage's own clock, in seconds since the epoch: that of a file made now."""


def open_files(root: str, *, single_writer: bool = False) -> Files:
    """The files under a local folder or a URL that fsspec knows.

    Raises OutputError for a filesystem that is neither POSIX nor S3, unless `single_writer`.
    """
    shown, (url, user) = without_secrets(root), _s3_user(root)
    try:
        fs, path = url_to_fs(url, use_listings_cache=False, **user)
    except (ImportError, ValueError) as error:
        trouble = str(error).replace(root, shown)
        raise OutputError(
            f"output {shown!r} can't be opened: {trouble}; install its fsspec package, e.g. s3fs"
        ) from None
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if "file" in protocols:
        return PosixFiles(path, single_writer=single_writer)
    exclusive = "s3" in protocols
    if not exclusive and not single_writer:
        raise OutputError(f"output {shown!r} is on {sorted(protocols)}: {_NO_PROMISE}; {_ONE_WRITER}")
    return ObjectFiles(fs, path, exclusive=exclusive)


def without_secrets(text: str) -> str:
    """The text with the user's name and secret taken out of every URL in it: it may be written or shown."""
    return _ANY_USER.sub(r"\g<protocol>", _S3_USER.sub(r"\g<protocol>", text))


def _s3_user(url: str) -> tuple[str, dict[str, str]]:
    """An S3 URL without its user's part, and that part as the client's options; other URLs as they are."""
    found = _S3_USER.match(url)
    if found is None:
        return url, {}
    given = {"key": unquote(found["key"]), "secret": unquote(found["secret"] or "")}
    return without_secrets(url), {name: value for name, value in given.items() if value}


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
        shown, trouble = without_secrets(path), without_secrets(str(error))
        raise StorageError(
            f"can't {action} {shown!r}: {trouble}; the job stops here, no prompt is blamed: "
            "free some space or bring the storage back, then give the same command again to resume"
        ) from error


class PosixFiles:
    """A folder on a POSIX filesystem, local or NFS."""

    readers = 4  # more are no faster, and take memory

    def __init__(self, root: str, *, single_writer: bool = False) -> None:
        self.root = root
        self._single_writer = single_writer
        self._begun = _holds_files(root)

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

    def replace(self, name: str, data: bytes, *, durable: bool = True) -> None:
        path = self._path(name)
        with storage_trouble("write", path):
            temporary = self._write_temporary(path, data, durable=durable)
            try:
                os.replace(temporary, path)
            except OSError:
                _unlink(temporary)
                raise
            if durable:
                _sync_folder(os.path.dirname(path))

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with storage_trouble("read", path):
            return Path(path).read_bytes()

    def open(self, name: str) -> pa.NativeFile:
        # Not mapped into memory: there a lost NFS server is a SIGBUS, here it is an error.
        path = self._path(name)
        with storage_trouble("read", path):
            return pa.OSFile(path)

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def stat(self, name: str) -> FileStat:
        path = self._path(name)
        with storage_trouble("read", path):
            found = os.stat(path)
        return FileStat(found.st_size, found.st_mtime)

    def remove(self, name: str) -> None:
        path = self._path(name)
        with storage_trouble("remove", path):
            _unlink(path)

    def remove_folder(self, folder: str) -> None:
        path = self._path(folder)
        with storage_trouble("remove", path):
            try:
                os.rmdir(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise

    def names(self, folder: str = "") -> list[str]:
        path = self._path(folder)
        with storage_trouble("list", path):
            try:
                return [name for name in os.listdir(path) if name[0] != "."]
            except FileNotFoundError:
                self._require_root()
                return []

    def walk(self, folder: str) -> Iterator[str]:
        return (name for name in self._scan(folder) if not _hidden(name))

    def temporaries(self) -> Iterator[str]:
        return (name for name in self._scan("") if name.rsplit("/", 1)[-1].startswith(_TEMPORARY))

    def clock(self) -> float:
        path = self._path(f"{_TEMPORARY}clock-{uuid.uuid4().hex}")
        with storage_trouble("write", path):
            self._make_folder(self.root)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                return os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
                _unlink(path)

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name) if name else self.root

    def _scan(self, folder: str) -> Iterator[str]:
        """All files under the folder, also those with dot-names; no folders with dot-names."""
        with storage_trouble("list", self._path(folder)):
            try:
                listed = list(os.scandir(self._path(folder)))
            except FileNotFoundError:
                self._require_root()
                return
        for entry in listed:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if not entry.is_dir():
                yield name
            elif not _hidden(name):
                yield from self._scan(name)

    def _write_temporary(self, path: str, data: bytes, *, durable: bool = True) -> str:
        folder = os.path.dirname(path)
        self._make_folder(folder)
        temporary = os.path.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            _unlink(temporary)
            raise
        return temporary

    def _make_folder(self, folder: str) -> None:
        if not os.path.isdir(folder):
            self._require_root()
            _make_folder(folder)
            self._require_root()

    def _require_root(self) -> None:
        """An output that was there and isn't any more must not be begun anew: its folder was removed, or what is seen
        now is the empty folder that it was mounted on. (Inodes would tell more, but FUSE may change them.)"""
        begun = _holds_files(self.root)
        if self._begun and not begun:
            raise OSError(errno.ESTALE, "the output's folder was removed, emptied or unmounted while in use")
        self._begun = begun

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

    readers = 16  # each waits for a round trip

    def __init__(self, fs: fsspec.AbstractFileSystem, prefix: str, *, exclusive: bool) -> None:
        self.root = without_secrets(fs.unstrip_protocol(prefix))
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

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

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
        return (name for name in self._find(folder) if not _hidden(name))

    def temporaries(self) -> Iterator[str]:
        """Only probes: a put shows nothing before it is whole. Parts of a killed multipart upload aren't objects; a
        lifecycle rule of the bucket removes them."""
        return (name for name in self._find("") if name.startswith(_TEMPORARY))

    def clock(self) -> float:
        name = f"{_TEMPORARY}clock-{uuid.uuid4().hex}"
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


def _hidden(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(".")


def _holds_files(folder: str) -> bool:
    try:
        return not all(map(_hidden, os.listdir(folder)))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False


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
