"""Benchmarks and lists of prompts as prompt sets: each row checked with its line's number, nothing written on error."""

import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.prompts.check import SetCheck
from cluster.prompts.columns import column_trouble
from cluster.prompts.files import Block, PromptFile
from cluster.prompts.problems import Problem, describe_problems
from cluster.prompts.promptset import opened
from cluster.prompts.row import OWN_SCHEMA, PromptRow, RawRow, parsed
from cluster.prompts.source_rows import SourceRow, said
from cluster.prompts.sources import locate, read_source, source_of
from cluster.prompts.write import publish
from cluster.rows import ROW_SCHEMA, one_value
from numina.errors import PromptError, PromptSetError
from numina.prompts.nouns import singular
from numina.prompts.targets import find_mentions

BLOCK_ROWS = 16_384
MOST_PROBLEMS = 1_000  # more aren't collected: such a file is of another form

_OWN = [*OWN_SCHEMA]


@dataclass(kw_only=True)
class Imported:
    """What an imported set holds."""

    rows: int = 0
    nouns: Counter[str] = field(default_factory=Counter)  # rows that ask for each, in singular
    counts: Counter[int] = field(default_factory=Counter)  # targets with each
    renamed: list[str] = field(default_factory=list)  # nouns that are only part of a word of their prompt


def import_prompts(
    source: str,
    output: str,
    *,
    counts: str | None = None,
    max_count: int = 20,
    force: bool = False,
    report: Callable[[int], None] = lambda rows: None,
) -> Imported:
    """Read a source (see `cluster.prompts.sources`) into a prompt set with all targets filled in; what it holds.

    Rows are read and checked a block at a time. Raises one PromptSetError with all that is wrong with the source.
    """
    path, counts = locate(source, counts)
    reader = _Reader(path=path, counts=counts, max_count=max_count, report=report)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "set.parquet"
        reader.write(place)
        if not reader.problems and not reader.found.rows:
            reader.problems.append(f"{path}: holds no prompts; a set needs at least one")
        if not reader.problems:
            reader.find_repeats(place)
        if reader.problems:
            raise PromptSetError(describe_problems(source, reader.problems))
        publish(output, place.read_bytes(), force=force)
    return reader.found


@dataclass(frozen=True, slots=True)
class _Placed(RawRow):
    """A row that is told by its line."""

    path: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.line}"


@dataclass(kw_only=True)
class _Reader:
    path: str
    counts: str | None
    max_count: int
    report: Callable[[int], None]
    problems: list[Problem] = field(default_factory=list)
    lines: "array[int]" = field(default_factory=lambda: array("q"))  # of each row
    found: Imported = field(default_factory=Imported)

    def write(self, place: Path) -> None:
        """All rows to a file; after a problem they are only looked at."""
        schema = self._schema()
        if self.problems:
            return
        source = read_source(self.path, self.counts)
        with pq.ParquetWriter(place, schema, compression="zstd") as writer:
            while rows := list(islice(source, BLOCK_ROWS)):
                batch = self._checked(rows, schema)
                if batch is not None and not self.problems:
                    writer.write_batch(batch)
                if len(self.problems) >= MOST_PROBLEMS:
                    return
                self.report(self.found.rows)

    def find_repeats(self, place: Path) -> None:
        """What repeats between the rows of a written set."""
        prompts, problems = opened(str(place), None)
        check = SetCheck(prompts, self.max_count, problems)
        for _ in check.read([own.name for own in _OWN]):
            pass
        check.find_repeats()
        for problem in check.problems:
            placed = re.sub(rf"{re.escape(str(place))}, row (\d+)", self._line_of, str(problem))
            self.problems.append(placed.replace(str(place), self.path))

    def _line_of(self, row: re.Match[str]) -> str:
        return f"{self.path}, line {self.lines[int(row[1])]}"

    def _schema(self) -> pa.Schema:
        """Those of the set's own columns that are there, and the others with a type that holds all their values."""
        if not source_of(self.path).columns:
            return pa.schema([own for own in _OWN if own.name in ("id", "prompt", "targets")])
        used, extra, rows = {"id", "prompt", "targets"}, pa.schema([]), read_source(self.path)
        while block := list(islice(rows, BLOCK_ROWS)):
            names = dict.fromkeys(name for row in block for name, value in row.values.items() if value is not None)
            used |= {name for name in names if name in OWN_SCHEMA.names}
            for name in names:
                if name in OWN_SCHEMA.names:
                    continue
                extra = self._widened(extra, name, block)
        for own in extra:
            if trouble := column_trouble(own.type):
                self.problems.append(f"{self.path}, column {own.name!r}: {trouble}")
        return pa.schema([*(own for own in _OWN if own.name in used), *extra])

    def _widened(self, extra: pa.Schema, name: str, block: Sequence[SourceRow]) -> pa.Schema:
        try:
            own = pa.schema([(name, pa.array([row.values.get(name) for row in block]).type)])
            if name in ROW_SCHEMA.names:
                raise PromptSetError(f"the output has a column of this name; rename it, e.g. 'my_{name}'")
            return pa.unify_schemas([extra, own], promote_options="permissive")
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            problem = f"{self.path}, lines {block[0].line} to {block[-1].line}, column {name!r}: {error}"
            if not any(f"column {name!r}" in str(other) for other in self.problems):
                self.problems.append(problem)
            return extra

    def _checked(self, rows: Sequence[SourceRow], schema: pa.Schema) -> pa.RecordBatch | None:
        """The rows with their targets; None where one has a problem."""
        self.problems += [problem for row in rows for problem in row.problems]
        sound = [row for row in rows if not row.problems]
        for row in sound:
            self._use_own_words(row)
        batch = self._batch(sound, schema)
        if batch is None:
            return None
        own = batch.select([name for name in schema.names if name in OWN_SCHEMA.names])
        file = PromptFile(fs=None, path=self.path, stored=schema, groups=())
        block = Block(file=file, group=0, offset=0, number=0, index=self.found.rows, rows=len(sound))
        targets = []
        for offset, row in enumerate(sound):
            checked, problems = parsed(_Placed(block, own, offset, self.path, row.line), self.max_count)
            self.problems += problems
            if checked is not None:
                self._count(checked, row.line)
                targets.append([{"noun": target.noun, "count": target.count} for target in checked.targets])
        if len(targets) < len(rows):
            return None
        place = schema.get_field_index("targets")
        return batch.set_column(place, schema.field(place), pa.array(targets, schema.field(place).type))

    def _batch(self, rows: Sequence[SourceRow], schema: pa.Schema) -> pa.RecordBatch | None:
        """The rows as Arrow has them; None where a value doesn't fit the type that its column has in the whole file."""
        try:
            return pa.RecordBatch.from_pylist([row.values for row in rows], schema=schema)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            for row in rows:
                for own in schema:
                    try:
                        one_value(value := row.values.get(own.name), own.type)
                    except PromptSetError:
                        trouble = f"doesn't fit {own.type}, which its column is from the other lines; give all one type"
                        self.problems.append(said(self.path, row.line, value, f"{trouble} (column {own.name!r})"))
            return None

    def _count(self, row: PromptRow, line: int) -> None:
        self.lines.append(line)
        self.found.rows += 1
        for target in row.targets:
            self.found.nouns[singular(target.noun.lower())] += 1
            self.found.counts[target.count] += 1

    def _use_own_words(self, row: SourceRow) -> None:
        """A noun that stands in its prompt within a hyphenated word alone ("beams" in "steel-beams") is that word."""
        for target in row.values.get("targets") or []:
            own = own_word(row.values["prompt"] or "", target["noun"])
            if own is not None:
                told = said(self.path, row.line, target["noun"], f"is counted as {own!r}, the prompt's own word")
                self.found.renamed.append(told)
                target["noun"] = own


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
