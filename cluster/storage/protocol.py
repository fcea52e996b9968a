"""What a store needs of a filesystem, and what goes wrong with one."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from numina.errors import StorageError

TEMPORARY = ".numina-"  # how names begin of what isn't whole yet
HEX_DIGITS = "0123456789abcdef"
NO_PROMISE = "without an atomic create-if-absent two drivers could both commit a row"
ONE_WRITER = "use a POSIX folder or s3://, or set single_writer=true and never start a second driver on this output"

# S3's secrets may hold a slash, its buckets no colon; elsewhere a colon may stand before a port.
S3_USER = re.compile(r"(?P<protocol>\bs3a?://)(?P<key>[^/@:\s]*)(:(?P<secret>[^@\s]*))?@")
_ANY_USER = re.compile(r"(?P<protocol>\b[a-z][a-z0-9+.-]*://)[^/@\s]*@")


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
        """The file, to read all or most of it; FileNotFoundError when there is no such file."""

    def open_parts(self, name: str, size: int | None = None) -> pa.NativeFile:
        """The file, to read small parts of it; who knows its size spares a look. FileNotFoundError, at the latest when
        it is read, when there is no such file."""

    def stat(self, name: str) -> FileStat:
        """The file's size and time; FileNotFoundError when there is no such file."""

    def remove(self, name: str) -> None:
        """Remove the file; no error when it is gone already."""

    def remove_all(self, names: Collection[str]) -> None:
        """Remove these files in as few requests as there may be; no error for those that are gone already."""

    def remove_folder(self, folder: str) -> None:
        """Remove the folder if it is empty."""

    def names(self, folder: str = "") -> list[str]:
        """The bare names of files and folders directly under the folder; none when there is no such folder."""

    def walk(self, folder: str) -> Iterator[str]:
        """Names of all files under the folder, at any depth; nothing when there is no such folder."""

    def keyed(self, folder: str) -> Iterator[Mapping[str, int | None]]:
        """Bare names of the files in the folder, and one folder below it, whose paths begin with a hex digit, in parts
        that are listed at once: keys are spread evenly. With each its size in bytes, where a listing tells it."""

    def temporaries(self) -> Iterator[str]:
        """Names of the files that writers leave when they are killed. A living writer's are among them."""

    def clock(self) -> float:
        """The time by the storage's own clock, in seconds since the epoch: that of a file made now."""


@contextmanager
def storage_trouble(
    action: str,
    path: str,
    *,
    lost: tuple[type[Exception], ...] = (),
    remedy: Callable[[Exception], str | None] = lambda error: None,
) -> Iterator[None]:
    """Turn an OSError, and the `lost` errors of a storage client, into a StorageError; a file that isn't there to be
    read stays a FileNotFoundError. `remedy` has what to do about an error that a storage knows more of."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *lost)):
            raise
        if action == "read" and isinstance(error, FileNotFoundError):
            raise
        if action == "read" and isinstance(error, NotADirectoryError):  # its folder is a file
            raise FileNotFoundError(*error.args) from error
        shown, trouble = without_secrets(path), without_secrets(str(error))
        known = remedy(error)
        raise StorageError(
            f"can't {action} {shown!r}: {trouble}; "
            + (known or "free some space or restore the storage, then run the same command to resume")
        ) from error


def without_secrets(text: str) -> str:
    """The text with the user's name and secret taken out of every URL in it: it may be written or shown."""
    return _ANY_USER.sub(r"\g<protocol>", S3_USER.sub(r"\g<protocol>", text))


def hidden(name: str) -> bool:
    """Whether a name is a dot-name, which is never listed."""
    return name.rsplit("/", 1)[-1].startswith(".")
