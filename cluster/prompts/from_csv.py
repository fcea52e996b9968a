"""Prompts of a csv with a header."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence

import fsspec

from cluster.prompts.source_rows import SourceRow, said, take


def read_csv(path: str) -> Iterator[SourceRow]:
    with fsspec.open(path, "rb") as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        lines = csv.reader(text, skipinitialspace=_has_spaces(path))
        line = 1
        try:
            header = next(lines, None)
            if header is None:
                return
            header = [name.strip() for name in header]
            if problem := _header_problem(header):
                yield SourceRow(line=1, problems=[said(path, 1, _shown(",".join(header)), problem)])
                return
            line = lines.line_num + 1
            for cells in lines:
                if cells:
                    yield _csv_row(path, line, header, cells)
                line = lines.line_num + 1
        except csv.Error as error:
            yield SourceRow(line=line, problems=[said(path, line, "line", f"isn't csv ({error}); correct it")])


def _has_spaces(path: str) -> bool:
    """Whether a space follows the header's commas: then it follows those of the rows too, and is no part of a cell."""
    with fsspec.open(path, "rb") as stream:
        first = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="").readline()
    return ", " in first


def _header_problem(header: Sequence[str]) -> str | None:
    if not _is_text(",".join(header)):
        return "isn't UTF-8; save the file as UTF-8"
    twice = [name for name, times in Counter(header).items() if times > 1]
    return f"has the column {twice[0]!r} {header.count(twice[0])} times; keep one, or rename one" if twice else None


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _shown(text: str) -> str | bytes:
    return text if _is_text(text) else text.encode("utf-8", "surrogateescape")


def _csv_row(path: str, line: int, header: list[str], cells: list[str]) -> SourceRow:
    row = SourceRow(line=line)
    text = ",".join(cells)
    if not _is_text(text):
        row.problems.append(said(path, line, _shown(text), "isn't UTF-8; save the file as UTF-8"))
    elif len(cells) != len(header):
        problem = f"has {len(cells)} cells, the header has {len(header)}; put text with commas in quotes"
        row.problems.append(said(path, line, text, problem))
    else:
        take(row, {name: cell or None for name, cell in zip(header, cells, strict=True)}, path)
    return row
