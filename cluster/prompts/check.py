"""The check of a whole prompt set: its rows, and what repeats between them, at any size."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from cluster.keys import SEEDS, canonical_json
from cluster.prompts.columns import checked_columns, value_problems
from cluster.prompts.files import UNREADABLE, Block, read_blocks, unreadable
from cluster.prompts.problems import Problem, RowProblem, describe_problems
from cluster.prompts.promptset import Numbered, opened, with_ids
from cluster.prompts.row import (
    CHECKED_COLUMNS,
    DEFAULT_READING,
    PromptRow,
    RawRow,
    TargetReading,
    as_bytes,
    content_texts,
    parsed,
    raw_rows,
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
        self,
        prompts: PromptSet,
        max_count: int,
        problems: Iterable[Numbered] = (),
        *,
        samples: int = 1,
        reading: TargetReading = DEFAULT_READING,
    ) -> None:
        self._prompts = prompts
        self._max_count = max_count
        self._samples = samples
        self._reading = reading
        self._problems = list(problems)
        self._extra = checked_columns(prompts.extra_columns, [file.schema for file in prompts.files])
        self._ids, self._given, self._parsed = _Hashes(), _Hashes(), _Hashes()
        self._repeats = Repeats()

    @property
    def problems(self) -> list[Problem]:
        """What was found, in the order of the set."""
        return [problem for _, problem in sorted(self._problems, key=itemgetter(0))]

    @property
    def bad_rows(self) -> frozenset[int]:
        """The rows that have problems, by their numbers in the set."""
        return frozenset(number for number, problem in self._problems if isinstance(problem, RowProblem))

    def require(self, *, bad: Literal["refuse", "skip"] = "refuse") -> frozenset[int]:
        """The rows to pass over. To be called after `find_repeats`.

        Raises one PromptSetError with all problems, unless bad rows are skipped and some rows are good.
        """
        require_rows(self._prompts.path, self.problems, self._prompts.rows, skip=bad == "skip")
        return self.bad_rows

    def read(self, columns: Sequence[str] | None = None) -> Iterator[tuple[Block, pa.RecordBatch, pa.Array]]:
        """All blocks of the set with their rows and `content_texts`; what can't be read of a file is a problem.

        So is a value of another column that could not be carried into the output, whether it is among `columns` or not.
        A row that is passed without being checked is compared with others as it is given. Rows without an id that
        repeat an earlier one have one of their own, from then on in all that the set reads.
        """
        for _, blocks in groupby(self._prompts.blocks, key=lambda block: id(block.file)):
            first = next(blocks)
            position = first.index
            try:
                wanted = None if columns is None else [*columns, *self._extra]
                for block, batch in read_blocks(chain([first], blocks), wanted):
                    contents = content_texts(batch)
                    self._check_extra(block, batch)
                    if implied := self._repeats.ids(block, batch, contents):
                        self._prompts.implied_ids[block.index] = implied
                        batch = with_ids(batch, implied)
                    self._note(block, batch, contents)
                    yield block, batch if columns is None else _selected(batch, columns), contents
                    position += block.rows
            except UNREADABLE as error:
                problem = unreadable(first.file.path, first.number + position - first.index, error)
                self._problems.append((position, problem))

    def refuse(self, raw: RawRow, trouble: str, rule: str = "can't be used by this job", remedy: str = "") -> None:
        """Takes a prompt among the problems for what its own column can't tell; `trouble` is in the row's own words."""
        self._problems.append((raw.index, raw.problem("prompt", raw.own("prompt"), rule, remedy, trouble)))

    def row(self, raw: RawRow, *, extra: bool = True) -> PromptRow | None:
        """The row, checked whole; None where it has problems. Without `extra` it has none of the other columns."""
        row, problems = parsed(raw, self._max_count, self._reading, extra=extra)
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
        suspects = sorted(self._ids.equal() | self._given.equal() | self._parsed.equal())
        bad = self.bad_rows
        ids, rows, videos = dict[str, str](), dict[bytes, str](), set[bytes]()  # places by what they hold
        shared = []
        for raw in self.rows_at(suspects):
            row, _ = parsed(raw, self._max_count, self._reading)
            if row is None or row.index in bad:
                continue
            if row.id is not None and (first := ids.setdefault(row.id, raw.place)) != raw.place:
                told = f"is also in {first}"
                problem = raw.problem("id", row.id, "is in another row too", "ids must differ", told)
                self._problems.append((raw.index, problem))
            elif (first := rows.setdefault(_video_digest(row, 0), raw.place)) != raw.place:
                told = f"the same prompt, targets and seed as in {first} make the same video"
                rule = "the same prompt, targets and seed as in another row make the same video"
                remedy = "drop one, or give them different ids or seeds"
                self._problems.append((raw.index, raw.problem("prompt", row.prompt, rule, remedy, told)))
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
            raw, (told, _, remedy) = RawRow(block, batch, offset), trouble.rpartition("; ")
            rule = "doesn't fit the type of its column" if told.startswith("doesn't fit") else told
            self._problems.append((raw.index, raw.problem(name, value, rule, remedy, told)))

    def rows_at(self, ascending: Sequence[int]) -> Iterator[RawRow]:
        """Rows by their numbers."""
        numbers = np.array(ascending, np.int64)
        bounds = {
            block.index: np.searchsorted(numbers, [block.index, block.index + block.rows])
            for block in self._prompts.blocks
        }
        wanted = [block for block in self._prompts.blocks if np.ptp(bounds[block.index])]
        for block, batch in self._prompts.read(wanted, CHECKED_COLUMNS):
            for number in numbers[slice(*bounds[block.index])]:
                yield RawRow(block, batch, int(number) - block.index)


def require_rows(path: str, problems: Sequence[Problem], rows: int, *, skip: bool) -> None:
    """Raises one PromptSetError with all problems of a set of so many rows, unless some rows are good and the others
    are skipped."""
    if skip and not any(isinstance(problem, str) for problem in problems):
        if len({problem.row for problem in problems if isinstance(problem, RowProblem)}) < rows:
            return
        problems = [f"{path}: all {rows} rows are bad; correct some", *problems]
    if problems:
        raise PromptSetError(describe_problems(path, problems))


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


class Repeats:
    """Ids for rows that have neither id nor seed and repeat an earlier such row: they are videos of their own.

    An id depends on what the row asks for and how often it came before, not on its place. Eight bytes a row are held;
    that two different rows share them is as likely as 3 in 10⁸ for a million rows, and gives one of them an id.
    """

    def __init__(self) -> None:
        self._seen = np.zeros(0, np.uint64)  # ascending
        self._times = dict[int, int]()  # of what came more than once

    def ids(self, block: Block, batch: pa.RecordBatch, contents: pa.Array) -> dict[int, str]:
        """The ids of a block's rows that repeat an earlier row, by their offsets. Blocks come in order, each once."""
        nameless = ~_is_given(text_column(batch, "id")) & ~_is_given(_seeds(batch))
        offsets = np.flatnonzero(nameless)
        if not len(offsets):
            return {}
        texts = as_bytes(contents.filter(pa.array(nameless)))
        digests = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
        hashes = np.frombuffer(b"".join(digests), np.uint64)
        firsts = np.unique(hashes, return_index=True)[1]
        repeated = np.ones(len(hashes), bool)
        repeated[firsts] = False
        places = np.searchsorted(self._seen, hashes)
        repeated[places < len(self._seen)] |= (
            self._seen[places[places < len(self._seen)]] == (hashes[places < len(self._seen)])
        )
        found = {}
        for place in np.flatnonzero(repeated).tolist():
            value = int(hashes[place])
            self._times[value] = times = self._times.get(value, 1) + 1
            found[int(offsets[place])] = f"{digests[place].hex()}-{times}"
        new = np.sort(hashes[~repeated])
        self._seen = np.insert(self._seen, np.searchsorted(self._seen, new), new)
        return found


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


def read_prompts(
    path: str, *, max_count: int, limit: int | None = None, reading: TargetReading = DEFAULT_READING
) -> Iterator[PromptRow]:
    """The rows of a prompt set in order, the first `limit` of them. They are all checked before the first is given.

    Raises one PromptSetError that lists the problems of these rows.
    """
    return checked_set(path, max_count, limit=limit, reading=reading).parse(max_count, reading)


def require_prompts(
    path: str, max_count: int, *, limit: int | None = None, reading: TargetReading = DEFAULT_READING
) -> int:
    """The number of rows of a prompt set (of its first `limit` rows). Raises one PromptSetError with its problems."""
    return checked_set(path, max_count, limit=limit, reading=reading).rows


def checked_set(
    path: str, max_count: int, *, limit: int | None = None, reading: TargetReading = DEFAULT_READING
) -> PromptSet:
    """A set whose rows were all checked. Raises one PromptSetError with its problems."""
    prompts, check = _checked(path, max_count, limit, reading)
    check.require()
    return prompts


def check_prompts(
    path: str, max_count: int, *, limit: int | None = None, reading: TargetReading = DEFAULT_READING
) -> tuple[int, list[Problem]]:
    """Read a prompt set (its first `limit` rows) and collect all that is wrong with it; raises nothing for it.

    Returns the number of rows read and the problems; each names file, row, column, value and remedy.
    """
    try:
        prompts, check = _checked(path, max_count, limit, reading)
    except PromptSetError as error:
        return 0, [str(error)]
    return prompts.rows, check.problems


def _checked(path: str, max_count: int, limit: int | None, reading: TargetReading) -> tuple[PromptSet, SetCheck]:
    """A set, and the check of it after its pass."""
    prompts, problems = opened(path, limit)
    check = SetCheck(prompts, max_count, problems, reading=reading)
    for block, batch, _ in check.read(CHECKED_COLUMNS):
        for raw in raw_rows(block, batch):
            check.row(raw, extra=False)
    check.find_repeats()
    return prompts, check
