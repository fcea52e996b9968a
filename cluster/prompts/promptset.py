"""Prompt sets: Parquet with one row per prompt, read a block of rows at a time, checked whole before any work.

| column | type | |
|---|---|---|
| `id` | string | optional, unique, 1 to 128 of `A-Z a-z 0-9 . _ -` |
| `prompt` | string | required |
| `targets` | list of {noun: string, count: integer} | read from the prompt when null or absent; empty: no count |
| `negative_prompt` | string | optional |
| `seed` | integer, not negative | derived from the row when null or absent |
| any other | any | carried into the output unchanged |

A set is one file, a folder of `*.parquet` at any depth, or a glob; local, or a URL that fsspec knows (`s3://…`,
`https://…`, where a folder's ends in `/`); `cluster.prompts.find` says which files of a folder are read. Large, view
and dictionary strings and all integer widths are accepted. Where files give another column different types, it has the
one that Arrow unites them to. Row numbers count from 0.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pyarrow as pa
import pyarrow.types as pat

from cluster.prompts.columns import cast_batch, column_trouble, decoded, united
from cluster.prompts.files import UNREADABLE, Block, PromptFile, blocks_of, read_blocks, read_footers
from cluster.prompts.find import find_files
from cluster.prompts.problems import Problem, describe_problems
from cluster.prompts.row import (
    DEFAULT_READING,
    ENHANCED,
    OWN_SCHEMA,
    PromptRow,
    RawRow,
    TargetReading,
    parsed,
    raw_rows,
)
from cluster.rows import ROW_SCHEMA
from numina.errors import PromptSetError

ANY_COUNT = 2**31 - 1

Numbered = tuple[int, Problem]
"""What is wrong, after the number of the row that it is told at."""


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """A prompt set whose files were found and whose columns were checked. None of its rows is held."""

    path: str
    files: tuple[PromptFile, ...]
    extra_columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """The set's columns beside OWN_SCHEMA's, with the types that their values have in all files together."""
    limit: int | None = None  # rows that count, the first ones
    implied_ids: dict[int, dict[int, str]] = field(default_factory=dict, compare=False)
    """Of blocks, by their index, the ids of rows that repeat others, by their offsets: found by `SetCheck`."""

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All rows of the set, a few MB at a time, in order."""
        return tuple(blocks_of(self.files, self.limit))

    @property
    def rows(self) -> int:
        """How many there are, from the files' footers."""
        return self.blocks[-1].index + self.blocks[-1].rows if self.blocks else 0

    def read(
        self, blocks: Iterable[Block] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Block, pa.RecordBatch]]:
        """Blocks (all) with their rows, one at a time in memory, in the types of `extra_columns`.

        Raises PromptSetError for what can't be read.
        """
        try:
            for block, batch in read_blocks(self.blocks if blocks is None else blocks, columns):
                batch = cast_batch(batch, self.extra_columns, block)
                yield block, with_ids(batch, self.implied_ids.get(block.index, {}))
        except UNREADABLE as error:
            raise PromptSetError(f"prompt set {self.path!r} can't be read on: {error}") from error

    def parse(
        self,
        max_count: int,
        reading: TargetReading = DEFAULT_READING,
        *,
        bad: Literal["refuse", "skip"] = "refuse",
    ) -> Iterator[PromptRow]:
        """All rows, or all but the bad ones. Raises PromptSetError at the first bad one where they aren't skipped; a
        set that was checked before has none."""
        for block, batch in self.read():
            for raw in raw_rows(block, batch):
                row, problems = parsed(raw, max_count, reading)
                if row is not None:
                    yield row
                elif bad == "refuse":
                    raise PromptSetError(describe_problems(self.path, problems))

    def row(self, raw: RawRow, max_count: int, reading: TargetReading = DEFAULT_READING) -> PromptRow:
        """One of the rows that were read. Raises PromptSetError with its problems."""
        row, problems = parsed(raw, max_count, reading)
        if row is None:
            raise PromptSetError(describe_problems(self.path, problems))
        return row


def with_ids(batch: pa.RecordBatch, ids: Mapping[int, str]) -> pa.RecordBatch:
    """A block with these ids in the rows that have none, by their offsets."""
    if not ids:
        return batch
    place = batch.schema.get_field_index("id")
    given = batch.column(place).to_pylist() if place >= 0 else [None] * batch.num_rows
    column = pa.array([ids.get(offset, id) for offset, id in enumerate(given)], pa.string())
    return batch.append_column("id", column) if place < 0 else batch.set_column(place, "id", column)


def open_prompts(path: str, *, limit: int | None = None) -> PromptSet:
    """The set at a path or URL, its first `limit` rows. Reads the footers of its files, and no row.

    Raises one PromptSetError with all that is wrong with files and columns.
    """
    prompts, problems = opened(path, limit)
    if problems:
        raise PromptSetError(describe_problems(path, [problem for _, problem in problems]))
    return prompts


# --- files ---


def opened(path: str, limit: int | None) -> tuple[PromptSet, list[Numbered]]:
    """The set of those files that can be read, and what is wrong with the others; none beyond row `limit` is opened.

    Raises PromptSetError when there are none at all.
    """
    files, problems, rows = list[PromptFile](), list[Numbered](), 0
    extra = _Extra()
    for file in read_footers(find_files(path, texts=[own.name for own in OWN_SCHEMA if _is_text(own.type)])):
        wrong = [file] if isinstance(file, str) else _column_problems(file) or extra.unite(file)
        problems += [(rows, problem) for problem in wrong]
        if not isinstance(file, str) and not wrong:
            files.append(file)
            rows += file.rows
        if limit is not None and rows >= limit:
            break
    if not rows and not problems:
        problems.append((0, f"{path}: holds no rows; a prompt set needs at least one"))
    return PromptSet(path=path, files=tuple(files), extra_columns=extra.schema, limit=limit), problems


class _Extra:
    """The columns of all files beside OWN_SCHEMA's, united as files are added."""

    def __init__(self) -> None:
        self.schema = pa.schema([])
        self._first = dict[str, str]()  # the file that first had a column

    def unite(self, file: PromptFile) -> list[str]:
        """Adds a file's; what is wrong with them."""
        found = []
        for own in file.schema:
            if own.name in OWN_SCHEMA.names:
                continue
            place, own = self.schema.get_field_index(own.name), decoded(own)
            try:
                if place < 0:
                    self.schema = self.schema.append(own)
                else:
                    self.schema = self.schema.set(place, united(self.schema.field(place), own))
            except pa.ArrowException:
                there, first = self.schema.field(place).type, self._first[own.name]
                told = f"has type {own.type}, in {first} it has {there}; write all files with one type"
                found.append(f"{file.path}, column {own.name!r}: {told}")
            self._first.setdefault(own.name, file.path)
        return found


# --- columns ---


def _is_text(type: pa.DataType) -> bool:
    return bool(pat.is_string(type) or pat.is_large_string(type) or pat.is_string_view(type))


def _is_targets(type: pa.DataType) -> bool:
    if not (pat.is_list(type) or pat.is_large_list(type) or pat.is_fixed_size_list(type)):
        return False
    if not pat.is_struct(type.value_type):
        return False
    fields = {own.name: decoded(own).type for own in type.value_type}
    return _is_text(fields.get("noun", pa.null())) and bool(pat.is_integer(fields.get("count", pa.null())))


@dataclass(frozen=True)
class _Kind:
    accepts: Callable[[pa.DataType], bool]
    name: str
    remedy: str


_TEXT = _Kind(_is_text, "string", "cast it to string")
_KINDS = {
    "id": _TEXT,
    "prompt": _TEXT,
    "targets": _Kind(_is_targets, "list<struct<noun: string, count: int>>", "cast it, or leave the column out"),
    "negative_prompt": _TEXT,
    "seed": _Kind(pat.is_integer, "int64", "cast it to an integer type (in pandas: .astype('Int64'))"),
    ENHANCED: _TEXT,
}


def _column_problems(file: PromptFile) -> list[str]:
    """What is wrong with a file's columns; its rows can be read only if nothing is."""
    found, schema = [], file.schema
    if "prompt" not in schema.names:
        found.append(
            f"{file.path}: has no column 'prompt' (it has {schema.names}); name the column with the prompts so"
        )
    for name, times in Counter(schema.names).items():
        told = None
        if name in file.partitions and name in file.stored.names:
            told = f"its folder {name}=… gives it this column, and it has one of its own; drop one of them"
        elif times > 1:
            told = f"there {times} times; keep one"
        elif name in ROW_SCHEMA.names and name not in _KINDS:
            where = " (the name of its folder gives it this column)" if name in file.partitions else ""
            told = f"the output has a column of this name; rename it, e.g. 'my_{name}'{where}"
        elif name in _KINDS:
            own = decoded(schema.field(name)).type
            nothing = pat.is_null(own) and name != "prompt"
            if not nothing and not _KINDS[name].accepts(own):
                told = f"has type {own}, must be {_KINDS[name].name}; {_KINDS[name].remedy}"
        elif name.strip() in _KINDS:
            told = f"a space in the name keeps it from being {name.strip()!r}; rename it"
        else:
            told = column_trouble(schema.field(name).type)
        if told is not None:
            found.append(f"{file.path}, column {name!r}: {told}")
    return found
