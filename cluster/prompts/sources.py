"""Prompts in the forms that benchmarks come in, read line by line: the one place to register one.

A form is a reader in a file of its own and an entry of SOURCES.

| form | |
|---|---|
| txt | a prompt on each line |
| txt and jsonl | the same, and the targets of each line |
| csv, jsonl | `prompt` (or `text`, `caption`), and where they are there `id`, `targets`, `negative_prompt`, `seed` |

Targets are `{"cats": 3, "dogs": 2}`, `{"nouns": […], "counts": […]}` or `[{"noun": …, "count": …}]`, in csv as JSON.
Other columns are carried. Without an id a row gets its line's number: `001`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pkgutil import resolve_name

from fsspec.core import url_to_fs

from cluster.prompts.source_rows import SourceRow
from numina.errors import PromptSetError

PAIR = ("prompts.txt", "noun_counts.jsonl")
"""The files of a counting benchmark's folder."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One form of file. Readers are module:name."""

    read: str  # of a path: its `SourceRow`s
    read_with_counts: str | None = None  # of a path and that of a jsonl beside it; None: targets are in its columns
    columns: bool = True  # whether rows can have others than `id`, `prompt` and `targets`


SOURCES = {  # by the end of a file's name
    "txt": Source(
        read="cluster.prompts.from_text:read_text",
        read_with_counts="cluster.prompts.from_text:read_pair",
        columns=False,
    ),
    "csv": Source(read="cluster.prompts.from_csv:read_csv"),
    "jsonl": Source(read="cluster.prompts.from_jsonl:read_jsonl"),
    "ndjson": Source(read="cluster.prompts.from_jsonl:read_jsonl"),
}


def source_of(path: str) -> Source:
    """The form of a file. Raises PromptSetError for one that isn't known."""
    suffix = path.rsplit(".", 1)[-1].lower()
    if suffix not in SOURCES:
        raise PromptSetError(f"source {path!r} is none of {', '.join(SOURCES)}; rename it, or write it as one of them")
    return SOURCES[suffix]


def read_source(path: str, counts: str | None = None) -> Iterator[SourceRow]:
    """The rows of a source in its order, one at a time in memory; `counts` is the jsonl beside a txt.

    Raises PromptSetError for a form that isn't known, or a file that can't be read.
    """
    path, counts = locate(path, counts)
    source = source_of(path)
    if counts is not None and source.read_with_counts is None:
        raise PromptSetError(f"--counts goes with a txt; {path!r} has its targets in a column of its own")
    try:
        if counts is not None and source.read_with_counts is not None:
            yield from resolve_name(source.read_with_counts)(path, counts)
        else:
            yield from resolve_name(source.read)(path)
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, PromptSetError):
            raise
        raise PromptSetError(f"source {path!r} can't be read: {error}") from error


def locate(path: str, counts: str | None = None) -> tuple[str, str | None]:
    """The file of the prompts, and that of the counts: of a folder the two of PAIR."""
    try:
        fs, place = url_to_fs(path)
        if not fs.isdir(place):
            return path, counts
        names = [f"{path.rstrip('/')}/{name}" for name in PAIR]
        if fs.isfile(url_to_fs(names[0])[1]):
            return names[0], counts or (names[1] if fs.isfile(url_to_fs(names[1])[1]) else None)
    except (OSError, ImportError, ValueError) as error:
        raise PromptSetError(f"source {path!r} can't be opened: {error}") from error
    raise PromptSetError(f"folder {path!r} holds no {PAIR[0]}; give a folder with {' and '.join(PAIR)}, or a file")
