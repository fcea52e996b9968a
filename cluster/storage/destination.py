"""Where a verb is to write, checked before it works for it. Nothing is made here; parent folders are when it writes."""

import os
from pathlib import Path

from cluster.storage.open import check_promise, open_files
from cluster.storage.posix import PosixFiles
from cluster.storage.protocol import Files, without_secrets
from numina.errors import InputError, OutputError, StorageError


def check_file(option: str, place: str | Path, ending: str) -> None:
    """Raises InputError where no file can be written: another ending, a folder, a file as parent, no permission.

    URLs are checked by their ending alone.
    """
    if not str(place).endswith(ending) or Path(place).name == ending:
        raise InputError(f"{option} is {str(place)!r}, but the file must end in {ending}: give for example out{ending}")
    if "://" in str(place):
        return
    if Path(place).is_dir():
        raise InputError(f"{option} is {str(place)!r}, which is a folder; give the name of a file in it")
    _check_parents(option, Path(place), shown=str(place))


def check_folder(option: str, place: str | Path) -> None:
    """Raises InputError where no folder can be made or written to: a file, a file as parent, no permission."""
    if "://" in str(place):
        return
    if not str(place).strip():
        raise InputError(f"{option} is {str(place)!r}; give a folder or a URL")
    if os.path.lexists(place) and not Path(place).is_dir():
        raise InputError(f"{option} is {str(place)!r}, which is no folder; give an empty or a new folder")
    _check_parents(option, Path(place) / "file", shown=str(place))


def check_output(place: str, *, single_writer: bool = False) -> Files:
    """Tries an output before any work: create-if-absent, unless there is a `single_writer`. Leaves nothing behind: a
    folder that isn't there yet is tried in the nearest one above it. The files that were tried.

    Raises OutputError where nothing can be written, or two writers could both make a file.
    """
    check_folder("output", place)
    files = open_files(place if "://" in place else str(nearest(Path(place))), single_writer=single_writer)
    try:
        if single_writer:
            files.clock()
        else:
            check_promise(files)
    except StorageError as error:
        cause, shown = error.__cause__, without_secrets(place)
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else without_secrets(str(cause))
        raise OutputError(
            f"output {shown!r} can't be written: {why}, in {files.root!r}; free some space there, or give another"
        ) from error
    return files


def write_file(place: str | Path, data: bytes) -> None:
    """Writes a local file whole or not at all; makes its folder. Raises StorageError where there is no room."""
    own = Path(place).absolute()
    PosixFiles(str(own.parent), single_writer=True).replace(own.name, data)


def nearest(place: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())


def _check_parents(option: str, place: Path, shown: str) -> None:
    """That the folders above can be made, and written to."""
    try:
        nearest = next(folder for folder in place.absolute().parents if os.path.lexists(folder))
        longest = max(len(os.fsencode(part)) for part in place.parts)
        limit = os.pathconf(nearest, "PC_NAME_MAX") if nearest.is_dir() else longest
    except (OSError, UnicodeError) as error:
        raise InputError(f"{option} is {shown!r}, which isn't there ({error}); give another place") from error
    if not nearest.is_dir():
        raise InputError(f"{option} is {shown!r}, but {str(nearest)!r} is no folder; give another place")
    if longest > limit:
        raise InputError(f"{option} has a name of {longest} bytes, and {limit} are allowed here; give a shorter one")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{option} is {shown!r}, but you may not write in {str(nearest)!r}; give another place")
