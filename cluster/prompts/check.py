"""The check of a whole prompt set: its rows, and what repeats between them, at any size."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cluster.keys import SEEDS, canonical_json
from cluster.prompts.columns import checked_columns, value_problems
from cluster.prompts.files import UNREADABLE, Block, read_blocks, unreadable
from cluster.prompts.promptset import Problem, describe_problems, open_prompts, opened
from cluster.prompts.row import (
    OWN_SCHEMA,
    PromptRow,
    RawRow,
    as_bytes,
    content_texts,
    parsed,
    text_column,
)
from numina.errors import PromptSetError

if TYPE_CHECKING:
    from cluster.prompts.promptset import PromptSet


class SetCheck:
    """One pass over a prompt set that finds all that is wrong with it: in its rows, and between them.

    Of a row that was passed only hashes are held, 16 bytes each; rows whose hashes are equal are read again and
    compared. `samples` are the videos that a row is asked for: seeds that follow one another share some.
    """

    def __init__(
        self, prompts: PromptSet, max_count: int, problems: Iterable[Problem] = (), *, samples: int = 1
    ) -> None:
        self._prompts = prompts
        self._max_count = max_count
        self._samples = samples
        self._problems = list(problems)
        self._extra = checked_columns(prompts.extra_columns, [file.schema for file in prompts.files])
        self._ids, self._given, self._parsed = _Hashes(), _Hashes(), _Hashes()

    @property
    def problems(self) -> list[str]:
        """What was found, in the order of the set."""
        return [problem for _, problem in sorted(self._problems, key=itemgetter(0))]

    def read(self, columns: Sequence[str] | None = None) -> Iterator[tuple[Block, pa.RecordBatch, pa.Array]]:
        """All blocks of the set with their rows and `content_texts`; what can't be read of a file is a problem.

        So is a value of another column that could not be carried into the output, whether it is among `columns` or not.
        A row that is passed without being checked is compared with others as it is given.
        """
        for _, blocks in groupby(self._prompts.blocks, key=lambda block: id(block.file)):
            first = next(blocks)
            position = first.index
            try:
                wanted = None if columns is None else [*columns, *self._extra]
                for block, batch in read_blocks(chain([first], blocks), wanted):
                    contents = content_texts(batch)
                    self._note(block, batch, contents)
                    self._check_extra(block, batch)
                    yield block, batch if columns is None else _selected(batch, columns), contents
                    position += block.rows
            except UNREADABLE as error:
                problem = unreadable(first.file.path, first.number + position - first.index, error)
                self._problems.append((position, problem))

    def refuse(self, raw: RawRow, trouble: str) -> None:
        """Takes a prompt among the problems for what its own column can't tell."""
        self._problems.append((raw.index, raw.problem("prompt", raw.own("prompt"), trouble)))

    def row(self, raw: RawRow) -> PromptRow | None:
        """The row, checked whole; None where it has problems."""
        row, problems = parsed(raw, self._max_count)
        self._problems += [(raw.index, problem) for problem in problems]
        if row is not None:
            content = hash((row.prompt, row.negative_prompt, row.targets))
            seeds = [None] if row.seed is None else [(row.seed + sample) % SEEDS for sample in range(self._samples)]
            for seed in seeds:
                self._parsed.add_one(row.index, hash((content, row.id if seed is None else seed)))
        return row

    def find_repeats(self) -> list[tuple[int, int]]:
        """Takes rows that repeat an id or a whole row among the problems. To be called after the pass.

        Returns the samples of rows, by their numbers, whose video an earlier row or sample is.
        """
        suspects = np.array(sorted(self._ids.equal() | self._given.equal() | self._parsed.equal()), np.int64)
        ids, rows, videos = dict[str, str](), dict[bytes, str](), set[bytes]()  # places by what they hold
        shared = []
        for raw in self._rows_at(suspects):
            row, _ = parsed(raw, self._max_count)
            if row is None:
                continue
            if row.id is not None and (first := ids.setdefault(row.id, raw.place)) != raw.place:
                trouble = f"is also in {first}; ids must differ"
                self._problems.append((raw.index, raw.problem("id", row.id, trouble)))
            elif (first := rows.setdefault(_video_digest(row, 0), raw.place)) != raw.place:
                trouble = f"the same prompt, targets and seed as in {first} make the same video; "
                trouble += "drop one, or give them different ids or seeds"
                self._problems.append((raw.index, raw.problem("prompt", row.prompt, trouble)))
            for sample in range(self._samples if row.seed is not None else 0):
                if (digest := _video_digest(row, sample)) in videos:
                    shared.append((row.index, sample))
                videos.add(digest)
        return shared

    def _note(self, block: Block, batch: pa.RecordBatch, contents: pa.Array) -> None:
        """Keeps what shows a row of the same id, or of the same video, as the rows are given."""
        rows = np.arange(block.index, block.index + block.rows)
        hashes = _text_hashes(contents)
        ids, seeds = text_column(batch, "id"), _seeds(batch)
        named, seeded = _is_given(ids), _is_given(seeds)
        names = np.zeros(block.rows, np.uint64)
        names[named] = _text_hashes(ids.drop_null())
        self._ids.add(rows[named], names[named])
        self._given.add(rows[~seeded], (hashes ^ names)[~seeded])
        first = seeds.drop_null().to_numpy()
        for sample in range(self._samples):
            seed = ((first + np.uint64(sample)) % np.uint64(SEEDS)) + np.uint64(1)
            self._given.add(rows[seeded], hashes[seeded] ^ (seed * _ODD))

    def _check_extra(self, block: Block, batch: pa.RecordBatch) -> None:
        """Values that would lose their clip after it was generated."""
        for offset, name, value, trouble in value_problems(_selected(batch, self._extra), self._prompts.extra_columns):
            raw = RawRow(block, batch, offset)
            self._problems.append((raw.index, raw.problem(name, value, trouble)))

    def _rows_at(self, numbers: np.ndarray) -> Iterator[RawRow]:
        """Rows by their numbers, which ascend."""
        bounds = {
            block.index: np.searchsorted(numbers, [block.index, block.index + block.rows])
            for block in self._prompts.blocks
        }
        wanted = [block for block in self._prompts.blocks if np.ptp(bounds[block.index])]
        for block, batch in self._prompts.read(wanted, OWN_SCHEMA.names):
            for number in numbers[slice(*bounds[block.index])]:
                yield RawRow(block, batch, int(number) - block.index)


def _selected(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    return batch.select([name for name in batch.schema.names if name in columns])


class _Hashes:
    """Rows with a hash each, to find those that share one."""

    def __init__(self) -> None:
        self._rows, self._hashes = array("q"), array("Q")

    def add(self, rows: np.ndarray, hashes: np.ndarray) -> None:
        self._rows.frombytes(rows.astype(np.int64).tobytes())
        self._hashes.frombytes(hashes.astype(np.uint64).tobytes())

    def add_one(self, row: int, hash: int) -> None:
        self._rows.append(row)
        self._hashes.append(hash % 2**64)

    def equal(self) -> set[int]:
        """Rows whose hash another one has too."""
        hashes = np.frombuffer(self._hashes, np.uint64)
        order = np.argsort(hashes)
        same = np.diff(hashes[order]) == 0
        shared = order[np.append(same, False) | np.insert(same, 0, False)] if len(order) else order
        return set(np.frombuffer(self._rows, np.int64)[shared].tolist())


_ODD = np.uint64(0x9E3779B97F4A7C15)  # times an odd number, different seeds stay different


def _text_hashes(texts: pa.Array) -> np.ndarray:
    """Python's own hashes: fast, keyed by the process, and only ever a reason to look again."""
    return np.fromiter(map(hash, as_bytes(texts)), np.int64, len(texts)).view(np.uint64)


def _seeds(batch: pa.RecordBatch) -> pa.Array:
    """Seeds as uint64; what no seed can be wraps around, and is a problem elsewhere."""
    given = "seed" in batch.schema.names
    seeds = batch.column("seed") if given else pa.nulls(batch.num_rows, pa.int64())
    return seeds.cast(pa.uint64(), safe=False)


def _is_given(values: pa.Array) -> np.ndarray:
    return values.is_valid().to_numpy(zero_copy_only=False)


def _video_digest(row: PromptRow, sample: int) -> bytes:
    """What a video of the row depends on, beside the job: rows with equal digests make equal videos."""
    targets = [[target.noun, target.count] for target in row.targets]
    seed = None if row.seed is None else (row.seed + sample) % SEEDS
    name = ["seed", seed] if seed is not None else ["id", row.id]
    content = canonical_json([row.prompt, row.negative_prompt, targets, *name])
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def read_prompts(path: str, *, max_count: int, limit: int | None = None) -> Iterator[PromptRow]:
    """The rows of a prompt set in order, the first `limit` of them. They are all checked before the first is given.

    Raises one PromptSetError that lists the problems of these rows.
    """
    require_prompts(path, max_count, limit=limit)
    return open_prompts(path, limit=limit).parse(max_count)


def require_prompts(path: str, max_count: int, *, limit: int | None = None) -> int:
    """The number of rows of a prompt set (of its first `limit` rows). Raises one PromptSetError with its problems."""
    rows, problems = check_prompts(path, max_count, limit=limit)
    if problems:
        raise PromptSetError(describe_problems(path, problems))
    return rows


def check_prompts(path: str, max_count: int, *, limit: int | None = None) -> tuple[int, list[str]]:
    """Read a prompt set (its first `limit` rows) and collect all that is wrong with it; raises nothing for it.

    Returns the number of rows read and the problems; each names file, row, column, value and remedy.
    """
    try:
        prompts, problems = opened(path, limit)
    except PromptSetError as error:
        return 0, [str(error)]
    check, rows = SetCheck(prompts, max_count, problems), 0
    for block, batch, _ in check.read():
        rows += block.rows
        for offset in range(block.rows):
            check.row(RawRow(block, batch, offset))
    check.find_repeats()
    return rows, check.problems
