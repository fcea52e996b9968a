"""Prompts in the forms that benchmarks come in, read line by line: text, text with noun counts beside it, csv, jsonl.

| form | |
|---|---|
| txt | a prompt on each line |
| txt and jsonl | the same, and the targets of each line |
| csv, jsonl | `prompt` (or `text`, `caption`), and where they are there `id`, `targets`, `negative_prompt`, `seed` |

Targets are `{"cats": 3, "dogs": 2}`, `{"nouns": […], "counts": […]}` or `[{"noun": …, "count": …}]`, in csv as JSON.
Other columns are carried. Without an id a row gets its line's number: `001`.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from numina.errors import PromptSetError

PROMPT_NAMES = ("prompt", "text", "caption")
PAIR = ("prompts.txt", "noun_counts.jsonl")
"""The files of a counting benchmark's folder."""

_OWN = ("id", "negative_prompt")
_LONGEST_SHOWN = 80


@dataclass(kw_only=True)
class SourceRow:
    """A row as a source has it, with all that was found wrong with it."""

    line: int  # its first one, from 1
    values: dict[str, Any] = field(default_factory=dict)  # of OWN_SCHEMA's columns and any others
    problems: list[str] = field(default_factory=list)


def read_source(path: str, counts: str | None = None) -> Iterator[SourceRow]:
    """The rows of a source in its order, one at a time in memory; `counts` is the jsonl beside a txt.

    Raises PromptSetError for a form that isn't known, or a file that can't be read.
    """
    path, counts = locate(path, counts)
    suffix = path.rsplit(".", 1)[-1].lower()
    readers = {"txt": _read_text, "csv": _read_csv, "jsonl": _read_jsonl, "ndjson": _read_jsonl}
    if suffix not in readers:
        raise PromptSetError(f"source {path!r} is none of {', '.join(readers)}; rename it, or write it as one of them")
    if counts is not None and suffix != "txt":
        raise PromptSetError(f"--counts goes with a txt; {path!r} has its targets in a column of its own")
    try:
        yield from _read_pair(path, counts) if counts is not None else readers[suffix](path)
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


def read_targets(value: Any) -> list[dict[str, Any]]:
    """Targets in one of the three forms. Raises ValueError that says what is wrong."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f'isn\'t JSON ({error}); write e.g. {{"cats": 3}}') from error
    if isinstance(value, Mapping) and set(value) == {"nouns", "counts"} and isinstance(value["nouns"], list):
        if not isinstance(value["counts"], list) or len(value["nouns"]) != len(value["counts"]):
            raise ValueError("has more or fewer counts than nouns; give one count for each noun")
        pairs = list(zip(value["nouns"], value["counts"], strict=True))
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list) and all(
        isinstance(item, Mapping) and {"noun", "count"} <= set(item) for item in value
    ):
        pairs = [(item["noun"], item["count"]) for item in value]
    else:
        raise ValueError('holds no mapping of counts; write {"cats": 3, "dogs": 2}')
    for noun, count in pairs:
        if not isinstance(noun, str) or not noun.strip():
            raise ValueError(f"{noun!r} is no noun; name what is to be counted")
        if not isinstance(count, int) or isinstance(count, bool):
            raise ValueError(f"{count!r} of {noun!r} is no whole number; write it in digits, without quotes")
    return [{"noun": noun, "count": count} for noun, count in pairs]


# --- lines ---


def _lines(path: str) -> Iterator[tuple[int, str, str | None]]:
    """Each line with its number, without what it ends with, and what is wrong with it; none that are blank at the
    end."""
    blank = list[tuple[int, str, str | None]]()
    with fsspec.open(path, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                text, problem = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(), None
            except UnicodeDecodeError as error:
                text, problem = repr(raw), f"isn't UTF-8 ({error.reason}); save the file as UTF-8"
            if text:
                yield from blank
                blank.clear()
                yield number, text, problem
            else:
                blank.append((number, text, problem))


def _read_text(path: str) -> Iterator[SourceRow]:
    for number, text, problem in _lines(path):
        problem = problem or ("is empty; write a prompt or drop the line" if not text else None)
        problems = [said(path, number, text, problem)] if problem else []
        yield SourceRow(line=number, values={"id": line_id(number), "prompt": text}, problems=problems)


def _read_pair(path: str, counts: str) -> Iterator[SourceRow]:
    """Both files line by line; where one ends before the other, that is told once."""
    for row, line in zip_longest(_read_text(path), _lines(counts)):
        if row is None or line is None:
            longer, number = (path, row.line) if line is None else (counts, line[0])
            shorter = counts if line is None else path
            problem = f"{shorter} ends before it; both files must have the same lines, one for each prompt"
            yield SourceRow(line=number, problems=[said(longer, number, "line", problem)])
            return
        number, text, wrong = line
        try:
            row.values["targets"] = read_targets(text) if wrong is None else None
        except ValueError as error:
            wrong = str(error)
        if wrong:
            row.problems.append(said(counts, number, text, wrong))
        yield row


def _read_jsonl(path: str) -> Iterator[SourceRow]:
    for number, text, problem in _lines(path):
        row = SourceRow(line=number)
        try:
            values = json.loads(text) if problem is None else {}
        except ValueError as error:
            values, problem = {}, f"isn't JSON ({error}); write one object a line"
        if not isinstance(values, dict):
            values, problem = {}, 'is no object; write e.g. {"prompt": "three cats"}'
        if problem:
            row.problems.append(said(path, number, text, problem))
        else:
            _take(row, values, path)
        yield row


def _read_csv(path: str) -> Iterator[SourceRow]:
    with fsspec.open(path, "rb") as stream:
        lines = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=""))
        header = next(lines, None)
        if header is None:
            return
        line = lines.line_num + 1
        try:
            for cells in lines:
                if cells:
                    yield _csv_row(path, line, header, cells)
                line = lines.line_num + 1
        except csv.Error as error:
            yield SourceRow(line=line, problems=[said(path, line, "line", f"isn't csv ({error}); correct it")])


def _csv_row(path: str, line: int, header: list[str], cells: list[str]) -> SourceRow:
    row = SourceRow(line=line)
    text = ",".join(cells)
    if not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text):
        row.problems.append(said(path, line, text.encode("utf-8", "replace"), "isn't UTF-8; save the file as UTF-8"))
    elif len(cells) != len(header):
        problem = f"has {len(cells)} cells, the header has {len(header)}; put text with commas in quotes"
        row.problems.append(said(path, line, text, problem))
    else:
        _take(row, {name: cell or None for name, cell in zip(header, cells, strict=True)}, path)
    return row


def _take(row: SourceRow, values: dict[str, Any], path: str) -> None:
    """Sort a row's values by what they mean."""
    name = next((name for name in PROMPT_NAMES if name in values), None)
    if name is None:
        problem = f"has no prompt (it has {sorted(values)}); name it one of {', '.join(PROMPT_NAMES)}"
        row.problems.append(said(path, row.line, "row", problem))
        return
    values = dict(values)
    row.values["prompt"] = values.pop(name)
    for own in ("id", "targets", "negative_prompt", "seed"):
        row.values[own] = values.pop(own, None)
    row.values |= values
    if row.values["id"] is None:
        row.values["id"] = line_id(row.line)
    row.values["id"] = str(row.values["id"])
    for own in ("prompt", "negative_prompt"):
        if not isinstance(row.values[own], str | None):
            row.problems.append(said(path, row.line, row.values[own], f"is no text; {own} must be a string"))
    row.problems += _converted(row, path)


def _converted(row: SourceRow, path: str) -> Iterator[str]:
    if row.values["targets"] is not None:
        given = row.values["targets"]
        try:
            row.values["targets"] = read_targets(given)
        except ValueError as error:
            yield said(path, row.line, given, f"{error} (targets)")
    if row.values["seed"] is not None:
        given = row.values["seed"]
        try:
            if isinstance(given, bool | float):
                raise ValueError
            row.values["seed"] = int(given)
        except (TypeError, ValueError):
            yield said(path, row.line, given, "is no seed; write a whole number, or leave it out")


def line_id(number: int) -> str:
    """The id of a row that has none."""
    return f"{number:03d}"


def said(path: str, line: int, value: object, trouble: str) -> str:
    """One line on what is wrong in a line of a file."""
    shown = value if isinstance(value, str) else repr(value)
    shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 1]}…"
    return f"{path}, line {line}: {shown!r}: {trouble}"
