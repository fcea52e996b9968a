"""Prompts of a jsonl, one object a line."""

import json
from collections.abc import Iterator

from cluster.prompts.source_rows import SourceRow, read_lines, said, take


def read_jsonl(path: str) -> Iterator[SourceRow]:
    for number, text, problem in read_lines(path):
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
            take(row, values, path)
        yield row
