"""Prompts of a csv with a header."""

import csv
import io
from collections.abc import Iterator

import fsspec

from cluster.prompts.source_rows import SourceRow, said, take


def read_csv(path: str) -> Iterator[SourceRow]:
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
        take(row, {name: cell or None for name, cell in zip(header, cells, strict=True)}, path)
    return row
