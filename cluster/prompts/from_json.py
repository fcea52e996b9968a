"""Prompts of JSON: one object or text a line, or one document with a list of them anywhere in it."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.prompts.meaning import is_prompt_name
from cluster.prompts.row import ID
from cluster.prompts.source_rows import SAVE_AS_UTF8, SourceRow, said
from cluster.prompts.text_files import look_at, read_lines
from numina.errors import PromptSetError

_EXAMPLE = 'write e.g. {"prompt": "three cats"}'
_LINES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?$")
_DEEPEST = 6  # objects in one another, on the way to a list of prompts


class _Object(dict[str, Any]):
    """An object of JSON. Of a name that it has twice nobody knows which value is meant."""

    twice: str | None = None


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        made.twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
    else:
        made.twice = next((own for value in made.values() if (own := _twice(value)) is not None), None)
    return made


def _twice(value: Any) -> str | None:
    """A name that an object within a value has twice."""
    if isinstance(value, list):
        return next((own for item in value if (own := _twice(item)) is not None), None)
    return value.twice if isinstance(value, _Object) else None


def read_json(path: str) -> Iterator[SourceRow]:
    """The rows of JSON lines or of a document, whichever the file holds."""
    if _is_lines(path):
        yield from _read_lines(path)
        return
    named_lines = _LINES.search(path.lower()) is not None
    try:
        with look_at(path).open() as stream:
            document = json.load(stream, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if named_lines:
            yield from _read_lines(path)
            return
        raise PromptSetError(f"{path}: isn't JSON ({error}); correct it, or write it as jsonl") from error
    try:
        entries = _entries(document, path)
    except PromptSetError:
        if not named_lines or not isinstance(document, dict):
            raise
        entries = [document]  # the only line
    for number, value in enumerate(entries, start=1):
        yield _row(path, number, value, "entry")


def _is_lines(path: str) -> bool:
    """Whether the first line is a whole value of JSON, and not the only line."""
    lines = (text for _, text, _ in read_lines(path) if text)
    first, second = next(lines, ""), next(lines, None)
    if second is None or (first.startswith("[") and not second.startswith("[")):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(path: str) -> Iterator[SourceRow]:
    for number, text, problem in read_lines(path):
        if problem:
            yield SourceRow(line=number, problems=[said(path, number, text, problem, SAVE_AS_UTF8)])
        elif text:
            try:
                value = json.loads(text, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                told, remedy = f"isn't JSON ({error})", "write one object a line"
                yield SourceRow(line=number, problems=[said(path, number, text, "isn't JSON", remedy, detail=told)])
                continue
            yield _row(path, number, value, "line")


def _row(path: str, number: int, value: Any, word: str) -> SourceRow:
    row = SourceRow(line=number, word=word)
    if isinstance(value, str):
        row.values = {"prompt": value}
    elif not isinstance(value, dict):
        row.problems.append(said(path, number, value, "is no object", _EXAMPLE, word=word))
    elif (twice := _twice(value)) is not None:
        told = f"has {twice!r} twice"
        row.problems.append(said(path, number, value, "has a name twice", "keep one", detail=told, word=word))
    else:
        row.values = dict(value)
    return row


# --- a document ---


def _entries(value: Any, path: str, depth: int = 0) -> list[Any]:
    """The prompts that a document holds, each a text or an object. Raises PromptSetError where there are none."""
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict) and not _has_prompt(value[0]):
            return _entries(value[0], path, depth + 1)
        return value
    if isinstance(value, dict) and depth < _DEEPEST:
        for read in (_as_row, _as_columns, _as_keyed, _as_lists):
            if (found := read(value, path, depth)) is not None:
                return found
    has = f"an object of {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else type(value).__name__
    raise PromptSetError(
        f'{path}: no list of prompts is found in it (it holds {has}); write e.g. [{{"prompt": "three cats"}}]'
    )


def _has_prompt(value: Mapping[str, Any]) -> bool:
    return any(is_prompt_name(name) and isinstance(own, str) for name, own in value.items())


def _as_row(value: dict[str, Any], path: str, depth: int) -> list[Any] | None:
    """`{"prompt": "three cats"}`."""
    return [value] if _has_prompt(value) else None


def _as_columns(value: dict[str, Any], path: str, depth: int) -> list[Any] | None:
    """`{"prompt": ["three cats", …], "seed": [1, …]}`, or the same by rows' names, as pandas writes it."""
    name = next((name for name in value if is_prompt_name(name)), None)
    if name is None:
        return None
    column = value[name]
    if isinstance(column, dict) and all(isinstance(own, str) for own in column.values()):
        columns = {other: own for other, own in value.items() if isinstance(own, dict) and own.keys() == column.keys()}
        return [{other: own[key] for other, own in columns.items()} for key in column]
    if isinstance(column, list) and all(isinstance(own, str) for own in column):
        lists = {other: own for other, own in value.items() if isinstance(own, list) and len(own) == len(column)}
        lists = {"prompt" if other == name else other: own for other, own in lists.items()}
        return [dict(zip(lists, own, strict=True)) for own in zip(*lists.values(), strict=True)]
    return None


def _as_keyed(value: dict[str, Any], path: str, depth: int) -> list[Any] | None:
    """`{"001": {"prompt": "three cats"}}`, `{"001": "three cats"}`, `{"three cats": {"cats": 3}}`."""
    own = list(value.values())
    if not own:
        return None
    if all(isinstance(item, str) for item in own):
        return [_named(key, {"prompt": item}) for key, item in value.items()]
    if not all(isinstance(item, dict) for item in own):
        return None
    if all(_has_prompt(item) for item in own):
        return [item if "id" in item else _named(key, item) for key, item in value.items()]
    if all(item and all(type(count) is int for count in item.values()) for item in own):
        return [{"prompt": key, "targets": item} for key, item in value.items()]
    return None


def _named(key: str, row: dict[str, Any]) -> dict[str, Any]:
    return {"id" if ID.fullmatch(key) else "key": key, **row}


def _as_lists(value: dict[str, Any], path: str, depth: int) -> list[Any] | None:
    """`{"prompts": […], "version": 2}`, or a list or object of prompts for each group."""
    inner = {name: own for name, own in value.items() if isinstance(own, list | dict) and own}
    named = {name: own for name, own in inner.items() if is_prompt_name(name) or name.lower() in _CONTAINERS}
    inner = named or inner
    if len(inner) == 1:
        return _entries(next(iter(inner.values())), path, depth + 1)
    if not inner or len(inner) < len(value):
        return None
    rows = []
    for group, own in inner.items():
        for item in _entries(own, path, depth + 1):
            rows.append({"group": group, **({"prompt": item} if isinstance(item, str) else item)})
    return rows


_CONTAINERS = ("data", "items", "rows", "examples", "samples", "records", "entries", "annotations")
