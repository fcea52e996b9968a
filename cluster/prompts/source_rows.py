"""What readers of sources share: a row with its line, what is wrong with it, and targets in all their forms."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.prompts.problems import Problem, RowProblem

SAVE_AS_UTF8 = "save the file as UTF-8"
LONGEST_SHOWN = 80
NOUN_KEYS = ("noun", "object", "class", "name", "label", "category", "entity", "object_name", "class_name")
COUNT_KEYS = ("count", "number", "num", "quantity", "amount", "object_count")
NOUN_LISTS = ("nouns", "objects", "classes", "names", "labels", "categories", "entities")
COUNT_LISTS = ("counts", "numbers", "nums", "quantities", "amounts", "object_counts")

_WRITE_MAP = 'write {"cats": 3, "dogs": 2}'
_SEPARATORS = re.compile(r"\s*[;,|]\s*")


@dataclass(kw_only=True)
class SourceRow:
    """A row as a source has it, by the source's own names, with all that was found wrong with it."""

    line: int  # its first one, from 1; or the number of its entry or row
    word: str = "line"  # what that number counts
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)  # texts: the whole source can't be taken
    notes: list[str] = field(default_factory=list)  # what a user should know of how the source is read


def said(
    path: str,
    line: int,
    value: object,
    rule: str,
    remedy: str = "",
    *,
    column: str | None = None,
    detail: str = "",
    word: str = "line",
) -> RowProblem:
    """What is wrong in a line of a file."""
    place = f"{path}, {word} {line}"
    return RowProblem(place=place, row=line, column=column, value=value, rule=rule, remedy=remedy, detail=detail)


def line_id(number: int) -> str:
    """The id of a row that has none."""
    return f"{number:03d}"


# --- targets ---


def read_targets(value: Any) -> list[dict[str, Any]]:
    """Targets in one of their forms: a map of counts, lists of nouns and counts, a list of objects with both.

    Raises ValueError that says what is wrong, then `; ` and the remedy.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f'isn\'t JSON ({error}); write e.g. {{"cats": 3}}') from error
    return checked_pairs(_pairs(value))


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        nouns, counts = _first(value, NOUN_LISTS), _first(value, COUNT_LISTS)
        if isinstance(nouns, list) and counts is not None:
            return paired(nouns, counts)
        if (noun := _first(value, NOUN_KEYS)) is not None and (count := _first(value, COUNT_KEYS)) is not None:
            return [(noun, count)]
        return list(value.items())
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        nouns = [_first(item, NOUN_KEYS) for item in value]
        counts = [_first(item, COUNT_KEYS) for item in value]
        if None not in counts:
            return list(zip(nouns, counts, strict=True))
    raise ValueError(f"holds no mapping of counts; {_WRITE_MAP}")


def _first(value: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((value[name] for name in names if name in value), None)


def paired(nouns: Any, counts: Any) -> list[tuple[Any, Any]]:
    """Nouns and counts of two columns: lists, JSON or texts of the same length, or one of each."""
    nouns, counts = _as_list(nouns), _as_list(counts)
    if len(nouns) != len(counts):
        raise ValueError("has more or fewer counts than nouns; give one count for each noun")
    return list(zip(nouns, map(_number, counts), strict=True))


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, str):
        if value.strip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                value = json.loads(value.replace("'", '"'))  # as Python writes a list of texts
        else:
            return [part for part in _SEPARATORS.split(value.strip()) if part]
    return list(value) if isinstance(value, list | tuple) else [value]


def _number(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def checked_pairs(pairs: Sequence[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """Targets of nouns and counts. Raises ValueError like `read_targets`."""
    for noun, count in pairs:
        if not isinstance(noun, str) or not noun.strip():
            raise ValueError(f"{noun!r} is no noun; name what is to be counted")
        if not isinstance(count, int) or isinstance(count, bool):
            raise ValueError(f"{count!r} of {noun!r} is no whole number; write it in digits, without quotes")
        if not -(2**31) <= count < 2**31:
            raise ValueError(f"{count!r} of {noun!r} is no count that a video could show; correct it")
        if trouble := half_letter(noun):
            raise ValueError(f"{noun!r} {trouble}; write the text anew")
    return [{"noun": noun.strip(), "count": count} for noun, count in pairs]


def half_letter(value: Any) -> str | None:
    """Why UTF-8 can't hold a value, or a part of it; None where it can."""
    if isinstance(value, str):
        if value.isascii() or not (half := re.search("[\ud800-\udfff]", value)):
            return None
        return f"holds {half[0]!r}, half of a surrogate pair, which UTF-8 can't hold"
    parts: list[Any] = [own for pair in value.items() for own in pair] if isinstance(value, dict) else []
    parts += value if isinstance(value, list) else []
    return next((trouble for own in parts if (trouble := half_letter(own))), None)
