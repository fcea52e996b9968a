"""What readers of sources share: a line with its number, a row by what its columns mean, targets in all their forms."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec

from cluster.prompts.row import ENHANCED, OWN_SCHEMA

PROMPT_NAMES = ("prompt", "text", "caption")
LONGEST_SHOWN = 80
DEEPEST = 32  # lists and objects in one another: Parquet's readers end at some depth


@dataclass(kw_only=True)
class SourceRow:
    """A row as a source has it, with all that was found wrong with it."""

    line: int  # its first one, from 1
    values: dict[str, Any] = field(default_factory=dict)  # of OWN_SCHEMA's columns and any others
    problems: list[str] = field(default_factory=list)


def read_lines(path: str) -> Iterator[tuple[int, str, str | None]]:
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


def take(row: SourceRow, values: dict[str, Any], path: str) -> None:
    """Sort a row's values by what they mean. `Targets` and ` targets ` are `targets`, where there is no other."""
    values = _named(values)
    for given, value in values.items():
        if trouble := _unfit(given) or _unfit(value):
            row.problems.append(said(path, row.line, value, f"{trouble} (column {given!r})"))
            return
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
    for own in ("prompt", "negative_prompt", ENHANCED):
        if not isinstance(row.values.get(own), str | None):
            row.problems.append(said(path, row.line, row.values[own], f"is no text; {own} must be a string"))
    row.problems += _converted(row, path)


def _named(values: dict[str, Any]) -> dict[str, Any]:
    known = {*PROMPT_NAMES, *OWN_SCHEMA.names, ENHANCED}
    named = dict[str, Any]()
    for name, value in values.items():
        meant = name.strip().lower()
        named[meant if meant in known and meant not in values and meant not in named else name] = value
    return named


def _unfit(value: Any, depth: int = 0) -> str | None:
    """Why Arrow or UTF-8 can't hold a value; None where they can."""
    if depth > DEEPEST:
        return f"is nested more than {DEEPEST} deep; flatten it, or write it as text"
    if isinstance(value, str):
        half = (
            next((letter for letter in value if "\ud800" <= letter <= "\udfff"), None) if not value.isascii() else None
        )
        return (
            f"holds {half!r}, half of a surrogate pair, which UTF-8 can't hold; write the text anew" if half else None
        )
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "is beyond 64-bit integers; write it as text"
    parts: list[Any] = [own for pair in value.items() for own in pair] if isinstance(value, dict) else []
    parts += value if isinstance(value, list) else []
    return next((trouble for own in parts if (trouble := _unfit(own, depth + 1))), None)


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
            row.values["seed"] = seed = int(given)
            if not -(2**63) <= seed < 2**63:
                raise ValueError
        except (TypeError, ValueError):
            yield said(path, row.line, given, "is no seed; write a whole number from 0 to 2**63 - 1, or leave it out")


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
        if not -(2**31) <= count < 2**31:
            raise ValueError(f"{count!r} of {noun!r} is no count that a video could show; correct it")
        if trouble := _unfit(noun):
            raise ValueError(f"{noun!r} {trouble}")
    return [{"noun": noun, "count": count} for noun, count in pairs]


def line_id(number: int) -> str:
    """The id of a row that has none."""
    return f"{number:03d}"


def said(path: str, line: int, value: object, trouble: str) -> str:
    """One line on what is wrong in a line of a file."""
    shown = value if isinstance(value, str) else repr(value)
    shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[: LONGEST_SHOWN - 1]}…"
    return f"{path}, line {line}: {shown!r}: {trouble}"
