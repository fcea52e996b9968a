"""Files of a POSIX folder, local or NFS: written aside, fsynced, hard-linked to their name, the folder fsynced."""

import errno
import os
import stat
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from cluster.storage.protocol import HEX_DIGITS, NO_PROMISE, ONE_WRITER, TEMPORARY, FileStat, hidden, storage_trouble
from numina.errors import OutputError


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

    def open_parts(self, name: str, size: int | None = None) -> pa.NativeFile:
        return self.open(name)

    def stat(self, name: str) -> FileStat:
        path = self._path(name)
        with storage_trouble("read", path):
            found = os.stat(path)
        return FileStat(found.st_size, found.st_mtime)

    def remove(self, name: str) -> None:
        path = self._path(name)
        with storage_trouble("remove", path):
            _unlink(path)

    def remove_all(self, names: Collection[str]) -> None:
        for name in names:
            self.remove(name)

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
        return (name for name in self._scan(folder) if not hidden(name))

    def keyed(self, folder: str) -> Iterator[Mapping[str, int | None]]:
        found = [name for name in self.names(folder) if name[0] in HEX_DIGITS]
        with ThreadPoolExecutor(self.readers) as readers:
            shards = (f"{folder}/{name}" for name in found if len(name) == 2)
            yield from map(dict.fromkeys, readers.map(self.names, shards))
        yield dict.fromkeys(name for name in found if len(name) > 2)

    def temporaries(self) -> Iterator[str]:
        return (name for name in self._scan("") if name.rsplit("/", 1)[-1].startswith(TEMPORARY))

    def clock(self) -> float:
        path = self._path(f"{TEMPORARY}clock-{uuid.uuid4().hex}")
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
            elif not hidden(name):
                yield from self._scan(name)

    def _write_temporary(self, path: str, data: bytes, *, durable: bool = True) -> str:
        folder = os.path.dirname(path)
        self._make_folder(folder)
        temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
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
        known = self._begun  # before looking: another thread may begin it meanwhile
        begun = _holds_files(self.root)
        if known and not begun:
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
                f"output {self.root!r} has no hard links ({error.strerror}): {NO_PROMISE}; {ONE_WRITER}"
            ) from error
        if os.path.exists(path):
            return False
        os.rename(temporary, path)
        return True


def _holds_files(folder: str) -> bool:
    try:
        return not all(map(hidden, os.listdir(folder)))
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
