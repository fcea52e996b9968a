"""Benchmarks and lists of prompts as prompt sets: each row checked with its line's number.

Nothing is written where rows are bad, unless they are skipped.
"""

import json
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.prompts.alike import Alike, AlikeFinder, NearDuplicates, problem_of
from cluster.prompts.check import SetCheck, require_rows
from cluster.prompts.columns import column_trouble
from cluster.prompts.files import Block, PromptFile
from cluster.prompts.meaning import Choice, Meaning, is_unfit, meaning_of, wide
from cluster.prompts.problems import Problem, RowProblem, problem_lines
from cluster.prompts.promptset import opened
from cluster.prompts.row import CHECKED_COLUMNS, DEFAULT_READING, OWN_SCHEMA, PromptRow, RawRow, TargetReading, parsed
from cluster.prompts.source_rows import SourceRow, said
from cluster.prompts.sources import locate, read_source, source_of
from cluster.prompts.summary import SetSummary
from cluster.prompts.write import filled, place, publish, remake
from cluster.rows import one_value
from numina.errors import PromptError, PromptSetError
from numina.prompts.nouns import singular
from numina.prompts.targets import Target, find_mentions

BLOCK_ROWS = 16_384
AS_READ = Choice()

_MENTIONED_ROWS = 5  # whose lines a note names
_OWN = [*OWN_SCHEMA]


@dataclass(kw_only=True)
class Imported:
    """What an imported set holds, and what was found on the way."""

    path: str
    summary: SetSummary = field(default_factory=SetSummary)
    nouns: Counter[str] = field(default_factory=Counter)  # rows that ask for each, in singular
    counts: Counter[int] = field(default_factory=Counter)  # targets with each
    notes: list[str] = field(default_factory=list)  # how columns were understood
    renamed: list[str] = field(default_factory=list)  # nouns that are only part of a word of their prompt
    problems: list[Problem] = field(default_factory=list)
    alike: int = 0  # rows that are near-duplicates of earlier ones
    dropped: list[RowProblem] = field(default_factory=list)  # of those, the ones that were left out for it

    @property
    def rows(self) -> int:
        """Those that were written."""
        return self.summary.rows - self.summary.bad - len(self.dropped)

    def require(self, *, skip: bool = False) -> None:
        """Raises one PromptSetError with all problems, unless they are all of single rows and these are skipped."""
        require_rows(self.path, self.problems, self.summary.rows, skip=skip)


def import_prompts(
    source: str,
    output: str,
    *,
    counts: str | None = None,
    choice: Choice = AS_READ,
    max_count: int = 20,
    reading: TargetReading = DEFAULT_READING,
    skip: bool = False,
    rejected: str | None = None,
    near_duplicates: NearDuplicates = "mark",
    force: bool = False,
    report: Callable[[int], None] = lambda rows: None,
) -> Imported:
    """Read a source (see `cluster.prompts.sources`) into a prompt set with all targets filled in; what it holds.

    Rows are read and checked a block at a time. `skip` leaves bad rows out; `rejected` is a JSON lines file that lists
    all problems. Near-duplicates are marked or dropped as `look_over` does it. Raises one PromptSetError with all that
    is wrong with the source.
    """
    path, counts = locate(source, counts)
    reader = _Reader(
        path=path, counts=counts, choice=choice, max_count=max_count, reading=reading, skip=skip, report=report
    )
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "set.parquet"
        reader.write(written)
        found = reader.found
        if not found.problems and not found.summary.rows:
            found.problems.append(f"{path}: holds no prompts; a set needs at least one")
        if found.rows:
            reader.find_repeats(written)
            if near_duplicates != "ignore":
                reader.find_alike(written, drop=near_duplicates == "drop")
        if rejected is not None:
            place(rejected, problem_lines([*found.problems, *found.dropped]))
        found.require(skip=skip)
        publish(output, written.read_bytes(), force=force)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed(RawRow):
    """A row that is told by its line."""

    source: str
    word: str
    line: int

    @property
    def number(self) -> int:
        return self.line

    @property
    def place(self) -> str:
        return f"{self.source}, {self.word} {self.line}"


@dataclass(kw_only=True)
class _Reader:
    path: str
    counts: str | None
    choice: Choice
    max_count: int
    reading: TargetReading
    skip: bool
    report: Callable[[int], None]
    found: Imported = field(init=False)
    lines: "array[int]" = field(default_factory=lambda: array("q"))  # of each row that is written
    word: str = "line"
    as_text: set[str] = field(default_factory=set)  # columns that are kept as JSON
    meaning: Meaning = field(init=False)

    def __post_init__(self) -> None:
        self.found = Imported(path=self.path)

    def write(self, target: Path) -> None:
        """All good rows to a file."""
        schema = self._schema()
        if any(isinstance(problem, str) for problem in self.found.problems):
            return
        rows, seen = self._rows(), 0
        with pq.ParquetWriter(target, filled(schema.empty_table(), []).schema, compression="zstd") as writer:
            while block := list(islice(rows, BLOCK_ROWS)):
                seen += len(block)
                good = self._checked(block, schema)
                if good is not None:
                    writer.write_table(good)
                self.report(seen)

    def _rows(self) -> Iterator[SourceRow]:
        """All rows, with their values by a set's names."""
        for row in read_source(self.path, self.counts):
            self.word = row.word
            if not row.problems:
                self.meaning.take(row)
            yield row

    # --- columns ---

    def _schema(self) -> pa.Schema:
        """Those of the set's own columns that are there, and the others with a type that holds all their values."""
        rows = read_source(self.path, self.counts)
        first = list(islice(rows, BLOCK_ROWS))
        self.found.notes += [note for row in first for note in row.notes]
        self.meaning = meaning_of(self.path, first, self.choice)
        source = source_of(self.path)[0]
        typed = resolve_name(source.schema)(self.path) if source.schema else None
        used, names, extra = {"id", "prompt", "targets"}, dict[str, None](), pa.schema([])
        for block in _blocks(chain(first, rows)):
            names |= dict.fromkeys(name for row in block for name in row.values)
            for row in block:
                if not row.problems:
                    self.meaning.take(row)
            good = [row for row in block if not row.problems]
            filled_in = dict.fromkeys(name for row in good for name, value in row.values.items() if value is not None)
            used |= {name for name in filled_in if name in OWN_SCHEMA.names}
            for name in filled_in:
                if name not in OWN_SCHEMA.names and name not in self.as_text:
                    extra = self._widened(extra, name, good, typed)
        self.choice.check(self.path, names)
        self.found.notes += self.meaning.notes
        for name in sorted(self.as_text):
            told = f"column {name!r} holds values of different types, and is kept as JSON text"
            self.found.notes.append(f"{self.path}: {told}; --drop {name} leaves it out")
        others = [pa.field(own.name, pa.string()) if own.name in self.as_text else own for own in extra]
        return pa.schema([*(own for own in _OWN if own.name in used), *others])

    def _widened(self, extra: pa.Schema, name: str, block: Sequence[SourceRow], typed: pa.Schema | None) -> pa.Schema:
        """The columns with one that holds this block's values too."""
        if typed is not None:
            given = next(own for own in typed if self.meaning.name_of(own.name) == name)
            if column_trouble(given.type) is not None:
                self.as_text.add(name)
            return extra if name in extra.names else extra.append(given.with_name(name))
        values = [row.values.get(name) for row in block]
        try:
            if any(map(is_unfit, values)):
                raise TypeError(name)
            own = pa.schema([(name, pa.array(values).type)])
            together = pa.unify_schemas([extra, own], promote_options="permissive")
            type = together.field(name).type
            if wide(type) or column_trouble(type) is not None:
                raise TypeError(name)
            return together
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            self.as_text.add(name)
            return extra if name in extra.names else extra.append(pa.field(name, pa.string()))

    # --- rows ---

    def _checked(self, rows: Sequence[SourceRow], schema: pa.Schema) -> pa.Table | None:
        """The good ones of some rows, with their targets; None where there is none."""
        self.found.problems += [problem for row in rows for problem in row.problems]
        sound = [row for row in rows if not row.problems]
        for row in sound:
            self._use_own_words(row)
            for name in self.as_text & row.values.keys():
                row.values[name] = _json_text(row.values[name])
        sound, batch = self._batch(sound, schema)
        own = batch.select([name for name in schema.names if name in CHECKED_COLUMNS])
        file = PromptFile(fs=None, path=self.path, stored=schema, groups=())
        block = Block(file=file, group=0, offset=0, number=0, index=len(self.lines), rows=len(sound))
        good, offsets = list[PromptRow](), list[int]()
        for offset, row in enumerate(sound):
            raw = _Placed(block, own, offset, source=self.path, word=row.word, line=row.line)
            checked, problems = parsed(raw, self.max_count, self.reading, extra=False)
            self.found.problems += problems
            if checked is not None:
                good.append(checked)
                offsets.append(offset)
                self.lines.append(row.line)
                self._count(checked)
        self.found.summary.add([*good, *[None] * (len(rows) - len(good))])
        if not good:
            return None
        return filled(pa.Table.from_batches([batch.take(pa.array(offsets, pa.int64()))]), good)

    def _batch(self, rows: list[SourceRow], schema: pa.Schema) -> tuple[list[SourceRow], pa.RecordBatch]:
        """The rows as Arrow has them, without those with a value that doesn't fit the type of its column."""
        try:
            return rows, _record_batch(rows, schema)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            fitting = []
            for row in rows:
                if problems := [*self._misfits(row, schema)]:
                    self.found.problems += problems
                else:
                    fitting.append(row)
            return fitting, _record_batch(fitting, schema)

    def _misfits(self, row: SourceRow, schema: pa.Schema) -> Iterator[RowProblem]:
        for own in schema:
            try:
                one_value(value := row.values.get(own.name), own.type)
            except PromptSetError:
                rule = f"doesn't fit {own.type}, which its column is from the other lines"
                yield said(self.path, row.line, value, rule, "give all one type", column=own.name, word=row.word)

    def _count(self, row: PromptRow, times: int = 1) -> None:
        for target in row.targets:
            self.found.nouns[singular(target.noun.lower())] += times
            self.found.counts[target.count] += times

    def _use_own_words(self, row: SourceRow) -> None:
        """A noun that stands in its prompt within a hyphenated word alone ("beams" in "steel-beams") is that word."""
        for target in row.values.get("targets") or []:
            own = own_word(row.values["prompt"] or "", target["noun"])
            if own is not None:
                told = f"is counted as {own!r}, the prompt's own word"
                self.found.renamed.append(str(said(self.path, row.line, target["noun"], told, word=row.word)))
                target["noun"] = own

    # --- repeats ---

    def find_repeats(self, written: Path) -> None:
        """What repeats between the rows of a written set; where bad rows are skipped, they leave it again."""
        prompts, problems = opened(str(written), None)
        check = SetCheck(prompts, self.max_count, problems)
        for _ in check.read(CHECKED_COLUMNS):
            pass
        check.find_repeats()
        bad = sorted(check.bad_rows)
        for raw in check.rows_at(bad):
            row, _ = parsed(raw, self.max_count)
            if row is not None:
                self.found.summary.remove(row)
                self._count(row, -1)
        for problem in check.problems:
            self.found.problems.append(self._placed(problem, str(written)))
        if bad and self.skip:
            table = pq.read_table(written)
            left = sorted(set(range(table.num_rows)) - set(bad))
            pq.write_table(table.take(pa.array(left, pa.int64())), written, compression="zstd")
            self.lines = array("q", [self.lines[row] for row in left])

    def find_alike(self, written: Path, *, drop: bool) -> None:
        """The near-duplicates of a written set, which are marked in it or leave it."""
        source = pq.ParquetFile(written)
        columns = [name for name in ("id", "prompt", "targets") if name in source.schema_arrow.names]
        finder, number = AlikeFinder(), 0
        for batch in source.iter_batches(BLOCK_ROWS, columns=columns):
            for row in batch.to_pylist():
                targets = [Target(**target) for target in row["targets"]]
                finder.add(number, row.get("id") or f"{self.word} {self.lines[number]}", row["prompt"], targets)
                number += 1
        alike = {own.row: own for own in finder.found()}
        self.found.alike = len(alike)
        if not alike:
            return
        firsts = [None if drop or row not in alike else alike[row].name for row in range(number)]
        kept = [not drop or row not in alike for row in range(number)]
        if drop:
            self._drop(source, alike)
        with tempfile.NamedTemporaryFile(dir=written.parent, delete=False) as file:
            remake(source, file, kept, firsts)
        Path(file.name).replace(written)

    def _drop(self, source: pq.ParquetFile, alike: Mapping[int, Alike]) -> None:
        """Lists rows that are left out, and takes them out of the counts."""
        number = 0
        for batch in source.iter_batches(BLOCK_ROWS, columns=["prompt", "targets"]):
            for offset in range(batch.num_rows):
                if (own := alike.get(number + offset)) is not None:
                    line, prompt = self.lines[own.row], batch["prompt"][offset].as_py()
                    place = f"{self.path}, {self.word} {line}"
                    self.found.dropped.append(problem_of(own, place=place, row=line, prompt=prompt))
                    for target in batch["targets"][offset].as_py():
                        self.found.nouns[singular(target["noun"].lower())] -= 1
                        self.found.counts[target["count"]] -= 1
            number += batch.num_rows

    def _placed(self, problem: Problem, written: str) -> Problem:
        """A problem of the written set by the source's lines."""

        def told(text: str) -> str:
            placed = re.sub(rf"{re.escape(written)}, row (\d+)", self._line_of, text)
            return placed.replace(written, self.path)

        if isinstance(problem, str):
            return told(problem)
        line = self.lines[problem.row]
        return replace(problem, place=told(problem.place), row=line, detail=told(problem.detail))

    def _line_of(self, row: re.Match[str]) -> str:
        return f"{self.path}, {self.word} {self.lines[int(row[1])]}"


def _blocks(rows: Iterator[SourceRow]) -> Iterator[list[SourceRow]]:
    while block := list(islice(rows, BLOCK_ROWS)):
        yield block


def _record_batch(rows: Sequence[SourceRow], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array([row.values.get(own.name) for row in rows], own.type) for own in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=str)


def own_word(prompt: str, noun: str) -> str | None:
    """The hyphenated word of a prompt that a noun is a part of, where it stands nowhere by itself; else None."""
    if re.search(rf"(?<![\w-]){re.escape(noun)}(?![\w-])", prompt, re.IGNORECASE):
        return None
    hyphenated = [word for word in re.findall(r"\w+(?:-\w+)+", prompt) if _is_part(word, noun)]
    if len(hyphenated) != 1:
        return None
    try:
        find_mentions(prompt, noun)
    except PromptError:
        return hyphenated[0]
    return None


def _is_part(word: str, noun: str) -> bool:
    return singular(noun.lower()) in {singular(part) for part in word.lower().split("-")}
