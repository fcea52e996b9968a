"""Prompts of a text, one a line, and of a text with a jsonl of the counts beside it."""

from collections.abc import Iterator
from itertools import zip_longest

from cluster.prompts.source_rows import SourceRow, line_id, read_lines, read_targets, said


def read_text(path: str) -> Iterator[SourceRow]:
    for number, text, problem in read_lines(path):
        problem = problem or ("is empty; write a prompt or drop the line" if not text else None)
        problems = [said(path, number, text, problem)] if problem else []
        yield SourceRow(line=number, values={"id": line_id(number), "prompt": text}, problems=problems)


def read_pair(path: str, counts: str) -> Iterator[SourceRow]:
    """Both files line by line; where one ends before the other, that is told once."""
    for row, line in zip_longest(read_text(path), read_lines(counts)):
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
