"""Prompts in the forms that people have them in, read row by row: the one place to register one.

A form is a reader in a file of its own and an entry of SOURCES.

| form | |
|---|---|
| txt | a prompt on each line; blank lines are passed over, numbers and bullets before all lines left out |
| txt and jsonl | the same, and the targets of each line |
| csv, tsv | with commas, semicolons, tabs or bars, with or without a header |
| jsonl, json | an object or a text a line, or a document with a list of them |
| Parquet | a file, a folder or a glob, with columns of any name |

Files may be compressed, in UTF-8 or UTF-16; what a file holds counts more than the end of its name.
`cluster.prompts.meaning` says which column is what. Other columns are carried. Without an id a row gets its line's
number: `001`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name

from fsspec.core import url_to_fs

from cluster.prompts.source_rows import SourceRow
from cluster.prompts.text_files import TextFile, look_at
from numina.errors import PromptSetError

PAIR = ("prompts.txt", "noun_counts.jsonl")
"""The files of a counting benchmark's folder."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One form of file. Readers are module:name."""

    read: str  # of a path: its `SourceRow`s, with values by the file's own names
    read_with_counts: str | None = None  # of a path and that of a jsonl beside it; None: targets are in its columns
    schema: str | None = None  # of a path: the types of its columns; None: found from their values


_CSV = Source(read="cluster.prompts.from_csv:read_csv")
_JSON = Source(read="cluster.prompts.from_json:read_json")
SOURCES = {  # by the end of a file's name
    "txt": Source(read="cluster.prompts.from_text:read_text", read_with_counts="cluster.prompts.from_text:read_pair"),
    "csv": _CSV,
    "tsv": _CSV,
    "json": _JSON,
    "jsonl": _JSON,
    "ndjson": _JSON,
    "parquet": Source(
        read="cluster.prompts.from_parquet:read_parquet", schema="cluster.prompts.from_parquet:parquet_schema"
    ),
}

_COMPRESSED = re.compile(r"\.(gz|gzip|bz2|xz|zst)$", re.IGNORECASE)
_JSON_LINE = re.compile(r'\s*(\[\s*)?\{\s*"')


def source_of(path: str) -> tuple[Source, str | None]:
    """The form of a file by its name and, where that says something else, its content; and what to say about it.

    Raises PromptSetError for a form that isn't known.
    """
    suffix = _COMPRESSED.sub("", path).rsplit("/", 1)[-1].rpartition(".")[2].lower()
    if _is_folder_or_pattern(path):
        return SOURCES["parquet"], None
    file = look_at(path)
    held = _held(file, suffix)
    if held is not None and held != suffix:
        return SOURCES[held], f"{path}: holds {held}, and is read as such"
    if suffix not in SOURCES:
        raise PromptSetError(
            f"source {path!r} is none of {', '.join(SOURCES)}, by its name and by its content; rename it, or write it "
            "as one of them"
        )
    if suffix == "parquet" and not file.is_parquet:
        raise PromptSetError(f"source {path!r} isn't Parquet, whatever its name says; rename it, or write it again")
    return SOURCES[suffix], None


def _held(file: TextFile, suffix: str) -> str | None:
    """The form that a file's content shows; None where it shows none."""
    if file.is_parquet:
        return "parquet"
    if SOURCES.get(suffix) is not _JSON and _JSON_LINE.match(file.head_text) and suffix not in ("csv", "tsv"):
        return "json"
    return None


def read_source(path: str, counts: str | None = None) -> Iterator[SourceRow]:
    """The rows of a source in its order, one at a time in memory; `counts` is the jsonl beside a txt.

    Raises PromptSetError for a form that isn't known, or a file that can't be read.
    """
    path, counts = locate(path, counts)
    with _named(path):
        source, note = source_of(path)
        if counts is not None and source.read_with_counts is None:
            raise PromptSetError(f"--counts goes with a txt; {path!r} has its targets in a column of its own")
        if counts is not None and source.read_with_counts is not None:
            rows = resolve_name(source.read_with_counts)(path, counts)
        else:
            rows = resolve_name(source.read)(path)
        for row in rows:
            if note:
                row.notes, note = [note, *row.notes], None
            yield row


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors of a file that can't be read have its name."""
    try:
        yield
    except PromptSetError:
        raise
    except (OSError, EOFError, ImportError, ValueError) as error:
        raise PromptSetError(f"source {path!r} can't be read: {error}") from error


def _is_folder_or_pattern(path: str) -> bool:
    fs, place = url_to_fs(path)
    return bool(fs.isdir(place) or (re.search(r"[*?[]", place) and not fs.isfile(place)))


def locate(path: str, counts: str | None = None) -> tuple[str, str | None]:
    """The file of the prompts, and that of the counts: of a folder the two of PAIR, or its Parquet files."""
    try:
        fs, place = url_to_fs(path)
        if not fs.isdir(place):
            return path, counts
        names = [f"{path.rstrip('/')}/{name}" for name in PAIR]
        if fs.isfile(url_to_fs(names[0])[1]):
            return names[0], counts or (names[1] if fs.isfile(url_to_fs(names[1])[1]) else None)
        if any(name.lower().endswith(".parquet") for name in fs.find(place)):
            return path, counts
    except (OSError, ImportError, ValueError) as error:
        raise PromptSetError(f"source {path!r} can't be opened: {error}") from error
    raise PromptSetError(
        f"folder {path!r} holds no {PAIR[0]} and no Parquet; give a folder with {' and '.join(PAIR)}, or a file"
    )
