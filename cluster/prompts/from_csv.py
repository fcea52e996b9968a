"""Prompts of a csv or tsv: with commas, semicolons, tabs or bars between the cells, with or without a header."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from cluster.prompts.meaning import is_known_name
from cluster.prompts.source_rows import SAVE_AS_UTF8, SourceRow, said
from cluster.prompts.text_files import TextFile, is_text, look_at, shown

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NONE = "\x1f"  # of a file with one column, whose text may have commas
_LOOKED_AT = 50  # rows
_AGREE = 0.8  # of the rows, at least, that have as many cells as the first one, where no name in it is known
LONGEST_CELL = 1 << 24  # characters
_SEPARATOR = re.compile(r"sep=(.?)", re.IGNORECASE)  # Excel's own line for it


def read_csv(path: str) -> Iterator[SourceRow]:
    """A row for each line, or more lines in quotes."""
    csv.field_size_limit(LONGEST_CELL)
    file = look_at(path)
    delimiter, told = _delimiter(file)
    notes = [f"{path}: cells are separated by {_DELIMITERS.get(delimiter, repr(delimiter))}"] if told else []
    header, is_data = list[str](), False
    for line, cells in _lines(file, delimiter):
        if isinstance(cells, str):
            yield SourceRow(line=line, problems=[f"{path}, line {line}: {cells}"])
            return
        if not header:
            header, is_data = _header(cells)
            if is_data:
                notes.append(f"{path}: has no header; its columns are {', '.join(header)}")
            elif problem := _header_problem(header):
                yield SourceRow(line=line, problems=[f"{path}, line {line}: {shown(','.join(header))!r}: {problem}"])
                return
        if is_data or header != [cell.strip() for cell in cells]:
            yield _csv_row(path, line, header, cells, delimiter, notes)
            notes = []


def _lines(file: TextFile, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The cells of each line that isn't blank, with its number; at last, perhaps, why the others can't be read."""
    with file.open() as text:
        lines = csv.reader(text, delimiter=delimiter, skipinitialspace=f"{delimiter} " in _first_line(file))
        line = 1
        try:
            for cells in lines:
                if any(cell.strip() for cell in cells) and not (line == 1 and _SEPARATOR.fullmatch("".join(cells))):
                    yield line, cells
                line = lines.line_num + 1
        except csv.Error as error:
            yield line, f"isn't csv ({error}); correct it"


def _first_line(file: TextFile) -> str:
    return next((line for line in file.head_text.splitlines() if line.strip()), "")


def _delimiter(file: TextFile) -> tuple[str, bool]:
    """What separates the cells, and whether that is worth a word: it isn't what the file's name says."""
    expected = "\t" if re.search(r"\.tsv(\.\w+)?$", file.path.lower()) else ","
    if (match := _SEPARATOR.fullmatch(_first_line(file).strip())) and match[1]:
        return match[1], match[1] != expected
    best, choice = (False, 0.0, 0), _NONE
    for delimiter in dict.fromkeys([expected, *_DELIMITERS]):
        rows = [row for row in _sample(file, delimiter) if any(row)]
        if not rows or len(rows[0]) < 2:
            continue
        agree = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        score = (any(map(is_known_name, rows[0])), agree, len(rows[0]))
        if score > best and (score[0] or agree >= _AGREE):
            best, choice = score, delimiter
    return choice, choice not in (expected, _NONE)


def _sample(file: TextFile, delimiter: str) -> list[list[str]]:
    try:
        rows = list(islice(csv.reader(io.StringIO(file.head_text, newline=""), delimiter=delimiter), _LOOKED_AT + 1))
    except csv.Error:
        return []
    return rows[:_LOOKED_AT] if len(rows) > 1 else rows


def _header(cells: Sequence[str]) -> tuple[list[str], bool]:
    """The names of the columns, and whether the first line has data and no names."""
    names = [cell.strip() for cell in cells]
    if any(map(is_known_name, names)):
        return names, False
    if len(names) == 1:
        return ["prompt"], True
    looks_like_data = any(not name or len(name.split()) > 4 or re.fullmatch(r"-?\d+([.,]\d+)?", name) for name in names)
    return [f"column_{place}" for place in range(1, len(names) + 1)] if looks_like_data else names, looks_like_data


def _header_problem(header: Sequence[str]) -> str | None:
    if not is_text(",".join(header)):
        return f"isn't UTF-8; {SAVE_AS_UTF8}"
    twice = [name for name, times in Counter(header).items() if times > 1]
    return f"has the column {twice[0]!r} {header.count(twice[0])} times; keep one, or rename one" if twice else None


def _csv_row(path: str, line: int, header: list[str], cells: list[str], delimiter: str, notes: list[str]) -> SourceRow:
    row = SourceRow(line=line, notes=notes)
    text = delimiter.join(cells)
    while len(cells) > len(header) and not cells[-1].strip():
        cells = cells[:-1]
    if not is_text(text):
        row.problems.append(said(path, line, shown(text), "isn't UTF-8", SAVE_AS_UTF8))
    elif len(cells) != len(header):
        rule, detail = (
            "has more or fewer cells than the header",
            f"has {len(cells)} cells, the header has {len(header)}",
        )
        row.problems.append(said(path, line, text, rule, "put text with commas in quotes", detail=detail))
    else:
        row.values = {name: cell or None for name, cell in zip(header, cells, strict=True)}
    return row
