"""What is wrong with a prompt set: with a row's value, or with a file or column as a whole."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_PROBLEMS = 20
SHOWN_RULES = 10

_LONGEST_SHOWN = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProblem:
    """A value of one row that breaks a rule: the row is bad, the others aren't."""

    place: str  # file and row, or file and line
    row: int  # its number in the set or, in a source that is imported, its line
    column: str | None  # None: the row as a whole
    value: object
    rule: str  # in words that are the same for all rows that break it
    remedy: str = ""
    detail: str = ""  # the rule in this row's own words

    def __str__(self) -> str:
        column = f", column {self.column!r}" if self.column else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.place}{column}: {_shown(self.value)}: {self.detail or self.rule}{remedy}"

    def record(self) -> dict[str, Any]:
        """What a line of REJECTED.jsonl holds."""
        named = {"place": self.place, "row": self.row, "column": self.column, "value": self.value, "rule": self.rule}
        return named | {"remedy": self.remedy} | ({"detail": self.detail} if self.detail else {})


Problem = RowProblem | str
"""A text is about a file or a column as a whole: no row of it can be taken."""


def describe_problems(path: str, problems: Sequence[Problem]) -> str:
    """The problems of a set as one message: the first 20, how many break each rule, and how the rest can be had."""
    lines = [f"prompt set {path!r} has {len(problems)} problem{'s' if len(problems) != 1 else ''}:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    rejected = [problem for problem in problems if isinstance(problem, RowProblem)]
    if rejected and len(rejected) == len(problems):
        bad = len({problem.row for problem in rejected})
        lines.append(
            f"{bad} bad row{'s' if bad != 1 else ''} can be left out, with --skip of numina prompts check and import, "
            f"or prompts_bad=skip of numina run: {by_rule(rejected)}"
        )
    if len(problems) > 1:
        lines.append("--rejected FILE.jsonl of numina prompts check and import lists all problems")
    return "\n".join(lines)


def by_rule(problems: Iterable[RowProblem]) -> str:
    """`12 × prompt is empty, 3 × id must be …`: how often each rule is broken, the commonest first."""
    numbers = Counter(f"{problem.column or 'row'} {problem.rule}" for problem in problems)
    shown = [f"{number} × {rule}" for rule, number in numbers.most_common(SHOWN_RULES)]
    return ", ".join(shown) + (f", and {len(numbers) - SHOWN_RULES} other rules" if len(numbers) > SHOWN_RULES else "")


def problem_lines(problems: Iterable[Problem]) -> bytes:
    """All problems as JSON lines: row, column, value, rule, remedy."""
    lines = []
    for problem in problems:
        if isinstance(problem, RowProblem):
            record = problem.record()
        else:
            rule, _, remedy = problem.rpartition("; ")
            record = {"place": None, "row": None, "column": None, "value": None}
            record |= {"rule": rule or remedy, "remedy": remedy if rule else ""}
        lines.append(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 1]}…"
