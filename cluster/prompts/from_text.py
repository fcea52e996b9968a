"""Prompts of a text, one a line, and of a text with a jsonl of the counts beside it."""

import re
from collections.abc import Callable, Iterator
from itertools import islice, pairwise, zip_longest

from cluster.prompts.source_rows import SAVE_AS_UTF8, SourceRow, line_id, read_targets, said
from cluster.prompts.text_files import read_lines

_LOOKED_AT = 200  # lines, to see whether they are numbered
_MARKED = 0.8  # of them, at least, for a mark to be none of the prompt's own words
_NUMBER = re.compile(r"(?:prompt\s*)?[#(\[]?(\d{1,7})(?:[.):\]](?:\s+|(?=[^\W\d]))|\s-\s+)(?=\S)", re.IGNORECASE)
_BULLET = re.compile(r"[-*•–]\s+(?=\S)")
_QUOTED = re.compile(r"""(["“'])(.*)(["”'])[,;]?""")

_Mark = tuple[str, Callable[[str], str]]
"""What lines begin with, in words, and a line without it."""


def read_text(path: str) -> Iterator[SourceRow]:
    """A row for each line that isn't blank. Numbers, bullets and quotes around all lines are left out, and told."""
    marks, notes = _marks(path)
    for number, text, problem in read_lines(path):
        if not text:
            continue
        row = SourceRow(line=number, values={"id": line_id(number), "prompt": without(text, marks)}, notes=notes)
        notes = []
        if problem:
            row.problems.append(said(path, number, text, problem, SAVE_AS_UTF8))
        yield row


def read_pair(path: str, counts: str) -> Iterator[SourceRow]:
    """Both files line by line; where one ends before the other, that is told once."""
    marks, notes = _marks(path)
    for prompt, line in zip_longest(read_lines(path), read_lines(counts)):
        if prompt is None or line is None:
            longer, number = (path, prompt[0]) if prompt is not None else (counts, line[0])
            shorter = counts if line is None else path
            rule, remedy = f"{shorter} ends before it", "both files must have the same lines, one for each prompt"
            yield SourceRow(line=number, problems=[f"{longer}, line {number}: {rule}; {remedy}"])
            return
        number, text, problem = prompt
        row = SourceRow(line=number, values={"id": line_id(number), "prompt": without(text, marks)}, notes=notes)
        notes = []
        if problem or not text:
            remedy = SAVE_AS_UTF8 if problem else "write a prompt or drop the line"
            row.problems.append(said(path, number, text, problem or "is empty", remedy))
        number, text, wrong = line
        remedy = SAVE_AS_UTF8
        try:
            row.values["targets"] = read_targets(text) if wrong is None else None
        except ValueError as error:
            wrong, _, remedy = str(error).rpartition("; ")
        if wrong:
            row.problems.append(said(counts, number, text, wrong, remedy))
        yield row


def without(text: str, marks: list[_Mark]) -> str:
    """A line without what all lines have around their prompts."""
    for _, strip in marks:
        text = strip(text)
    return text


def _marks(path: str) -> tuple[list[_Mark], list[str]]:
    lines = [text for _, text, _ in islice(read_lines(path), _LOOKED_AT) if text]
    marks: list[_Mark] = []
    for mark in (_number_mark, _bullet_mark, _quote_mark):
        if found := mark(lines):
            marks.append(found)
            lines = [found[1](line) for line in lines]
    return marks, [f"{path}: {told} left out of the prompts" for told, _ in marks]


def _number_mark(lines: list[str]) -> _Mark | None:
    """Numbers that ascend are no counts: `1. a cat`, `12) two dogs`."""
    numbers = [int(match[1]) for match in map(_NUMBER.match, lines) if match]
    if not _is_common(len(numbers), lines) or any(later <= number for number, later in pairwise(numbers)):
        return None
    return "the numbers at the lines' beginnings are", lambda text: _NUMBER.sub("", text, count=1)


def _bullet_mark(lines: list[str]) -> _Mark | None:
    if not _is_common(sum(bool(_BULLET.match(line)) for line in lines), lines):
        return None
    return "the bullets at the lines' beginnings are", lambda text: _BULLET.sub("", text, count=1)


def _quote_mark(lines: list[str]) -> _Mark | None:
    if not _is_common(sum(bool(_QUOTED.fullmatch(line)) for line in lines), lines):
        return None
    return "the quotes around the lines are", lambda text: match[2] if (match := _QUOTED.fullmatch(text)) else text


def _is_common(number: int, lines: list[str]) -> bool:
    return bool(lines) and number >= _MARKED * len(lines)
