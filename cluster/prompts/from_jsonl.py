"""Prompts of a jsonl, one object a line."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from cluster.prompts.source_rows import SourceRow, read_lines, said, take


def read_jsonl(path: str) -> Iterator[SourceRow]:
    for number, text, problem in read_lines(path):
        row = SourceRow(line=number)
        try:
            values = json.loads(text, object_pairs_hook=_object) if problem is None else {}
        except _TwiceError as error:
            values, problem = {}, f"has {error} twice; keep one"
        except (ValueError, RecursionError) as error:
            values, problem = {}, f"isn't JSON ({error}); write one object a line"
        if not isinstance(values, dict):
            values, problem = {}, 'is no object; write e.g. {"prompt": "three cats"}'
        if problem:
            row.problems.append(said(path, number, text, problem))
        else:
            take(row, values, path)
        yield row


class _TwiceError(ValueError):
    """A name that an object has twice: which of its values is meant, nobody knows."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if twice:
        raise _TwiceError(repr(twice[0]))
    return dict(pairs)
