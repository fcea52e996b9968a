"""The files of a prompt set: those that a path, a folder or a pattern names, on any fsspec filesystem.

Of a folder all `*.parquet` below it are read, links followed. Names that begin with `.` or `_` are passed over:
checkpoints of notebooks, temporary files, caches, markers. A folder `name=value` is a partition: its files have that
column too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from numina.errors import PromptSetError

_PATTERN = re.compile(r"[*?[]")
_PARTITION = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_NULL = "__HIVE_DEFAULT_PARTITION__"  # Hive's own name for it, which Spark and Arrow write too
_TABLES = {  # formats whose folder also holds files of rows that were removed or replaced since
    "Delta": re.compile(r"(?:^|/)_delta_log(?:/|$)"),
    "Iceberg": re.compile(r"(?:^|/)metadata/[^/]*\.metadata\.json$"),
    "Hudi": re.compile(r"(?:^|/)\.hoodie(?:/|$)"),
}


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file of a set, and what its folders say of all its rows."""

    fs: fsspec.AbstractFileSystem
    path: str
    partitions: tuple[pa.Scalar, ...] = ()
    partition_names: tuple[str, ...] = ()


def find_files(path: str, texts: Sequence[str] = ()) -> list[FoundFile]:
    """The files of a set in the order of their paths. Partition columns are int32 where all their values are, else
    text, as Arrow has it; those of `texts` are text.

    Raises PromptSetError when there are none, or for a table of another format.
    """
    try:
        fs, place = url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise PromptSetError(f"prompt set {path!r} can't be opened: {error}; install its fsspec package") from error
    try:
        base, found = _LocalFiles(path).find(place) if isinstance(fs, LocalFileSystem) else _remote(fs, place, path)
    except PromptSetError:
        raise
    except (OSError, ValueError) as error:
        raise PromptSetError(f"prompt set {path!r} can't be listed: {error}") from error
    if not found:
        raise PromptSetError(
            f"prompt set {path!r}: no Parquet file there; give a file, a folder of *.parquet or a glob "
            "(names that begin with '.' or '_' are not read); numina prompts import converts other files"
        )
    return _with_partitions(fs, base, sorted(found), texts)


# --- local files ---


class _LocalFiles:
    """A walk through folders and links."""

    def __init__(self, given: str) -> None:
        self._given = given

    def find(self, place: str) -> tuple[str, list[str]]:
        """The folder from which on names are partitions, and the files."""
        if os.path.isfile(place) and not self._given.endswith("/"):
            return os.path.dirname(place), [place]
        if os.path.isdir(place):
            return place, list(self._below(place))
        base, parts = _literal_part(place)
        if not parts:
            return base, []
        named = list(self._matches(base, parts))
        files = [name for name in named if _is_file(name)]
        folders = [] if files else [name for name in named if os.path.isdir(name)]
        return base, files or [file for name in folders for file in self._below(name)]

    def _below(self, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
        """All `*.parquet` below a folder. A link to a folder that it lies in is passed over: it would never end."""
        above = (*above, os.path.realpath(folder))
        _refuse_tables(self._given, folder, self._marks(folder))
        for name in sorted(os.listdir(folder)):
            own = f"{folder.rstrip('/')}/{name}"
            if _is_passed_over(name):
                continue
            if os.path.isdir(own):
                if not _leads_back(own, above):
                    yield from self._below(own, above)
            elif _is_parquet(name) and _is_file(own):
                yield own

    def _marks(self, folder: str) -> Iterator[str]:
        """Names that would show a table of another format."""
        for name in os.listdir(folder):
            yield name
            if name == "metadata" and os.path.isdir(f"{folder}/{name}"):
                yield from (f"{name}/{own}" for own in os.listdir(f"{folder}/{name}"))

    def _matches(self, folder: str, parts: Sequence[str], above: tuple[str, ...] = ()) -> Iterator[str]:
        """What a pattern names, component by component."""
        above = (*above, os.path.realpath(folder))
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._matches(folder, rest, above) if rest else self._below(folder)
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            own = f"{folder.rstrip('/')}/{name}"
            if part == "**":
                if rest and not _is_passed_over(name) and os.path.isdir(own) and not _leads_back(own, above):
                    yield from self._matches(own, parts, above)
            elif _is_match(name, part):
                yield from self._matches(own, rest) if rest else [own]


def _literal_part(place: str) -> tuple[str, list[str]]:
    """The first folders of a path that are there as they are written, and its other components."""
    parts = place.split("/")
    for count in range(len(parts), 0, -1):
        folder = "/".join(parts[:count]) or "/"
        if os.path.isdir(folder):
            rest = parts[count:]
            return folder, rest if any(map(_PATTERN.search, rest)) else []
    return place, []


def _is_match(name: str, part: str) -> bool:
    """Whether a component of a pattern names this. What is passed over must be asked for by its first letter."""
    return fnmatchcase(name, part) and (not _is_passed_over(name) or part[0] == name[0])


def _is_file(path: str) -> bool:
    """Whether it is a file, or a dead link: that is told when it is opened, so that no rows are missed."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _leads_back(folder: str, above: Iterable[str]) -> bool:
    real = os.path.realpath(folder)
    return any(own == real or own.startswith(f"{real.rstrip('/')}/") for own in above)


# --- other filesystems ---


def _remote(fs: fsspec.AbstractFileSystem, place: str, given: str) -> tuple[str, list[str]]:
    """The same, by the filesystem's own listings."""
    if not given.endswith("/") and fs.isfile(place):
        return place.rpartition("/")[0], [place]
    pattern = _PATTERN.search(place)
    if pattern is None or fs.isdir(place):
        return place, _kept(place, fs.find(place), given)
    base = place[: pattern.start()].rpartition("/")[0]
    named = fs.glob(place, detail=True)
    parts = place[len(base) :].strip("/").split("/")
    named = {name: info for name, info in named.items() if _is_asked_for(_relative(base, name), parts)}
    files = [name for name, info in named.items() if info["type"] == "file"]
    if files:
        return base, files
    return base, [file for name in named for file in _kept(name, fs.find(name), given)]


def _kept(base: str, names: Sequence[str], given: str) -> list[str]:
    relative = {name: _relative(base, name) for name in names}
    _refuse_tables(given, base, relative.values())
    return [
        name for name, own in relative.items() if _is_parquet(own) and not any(map(_is_passed_over, own.split("/")))
    ]


def _is_asked_for(name: str, parts: Sequence[str]) -> bool:
    firsts = {part[0] for part in parts if part}
    return all(not _is_passed_over(own) or own[0] in firsts for own in name.split("/"))


def _relative(base: str, path: str) -> str:
    base = base.rstrip("/")
    return path[len(base) + 1 :] if path.startswith(f"{base}/") else path.rpartition("/")[2]


def _is_passed_over(name: str) -> bool:
    """Whether it begins with `.` or `_`. A partition's column may: Spark reads `_day=1/` too."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _refuse_tables(given: str, folder: str, names: Iterable[str]) -> None:
    names = list(names)
    for kind, mark in _TABLES.items():
        if shown := next((name for name in names if mark.search(name)), None):
            raise PromptSetError(
                f"prompt set {given!r}: {folder} is a table of {kind} ({shown}): its folder also holds files of rows "
                f"that were removed or replaced. Read the table with a library of {kind}, write it as plain Parquet, "
                "and give that"
            )


# --- partitions ---


def _with_partitions(
    fs: fsspec.AbstractFileSystem, base: str, paths: Sequence[str], texts: Sequence[str]
) -> list[FoundFile]:
    given = [dict(_partitions(_relative(base, path).split("/")[:-1], path)) for path in paths]
    values: dict[str, list[str | None]] = {}
    for own in given:
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    types = {name: pa.string() if name in texts else _type(found) for name, found in values.items()}
    return [
        FoundFile(
            fs=fs,
            path=path,
            partition_names=tuple(own),
            partitions=tuple(_scalar(value, types[name]) for name, value in own.items()),
        )
        for path, own in zip(paths, given, strict=True)
    ]


def _partitions(folders: Iterable[str], path: str) -> Iterator[tuple[str, str | None]]:
    names = set[str]()
    for folder in folders:
        if match := _PARTITION.fullmatch(folder):
            try:
                name, value = (unquote(part, errors="strict") for part in match.groups())
            except UnicodeDecodeError as error:
                raise PromptSetError(f"{path}: folder {folder!r} isn't UTF-8 ({error}); rename it") from error
            if name in names:
                raise PromptSetError(f"{path}: two of its folders give the column {name!r}; rename one")
            names.add(name)
            yield name, None if value == _NULL else value


def _type(values: Iterable[str | None]) -> pa.DataType:
    known = [value for value in values if value is not None]
    whole = all(re.fullmatch(r"-?[0-9]{1,19}", value) and -(2**31) <= int(value) < 2**31 for value in known)
    return pa.int32() if known and whole else pa.string()


def _scalar(value: str | None, type: pa.DataType) -> pa.Scalar:
    return pa.scalar(int(value) if value is not None and pa.types.is_integer(type) else value, type)
