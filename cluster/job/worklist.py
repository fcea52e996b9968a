"""What is left of a job: which of its videos are neither committed nor given up, found in one pass over the prompts.

A finished task is recognised by the digest of its row as it is given; what isn't, is checked whole and looked up by its
key. A task is a byte in memory, whatever its prompt is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cluster.job.long_prompts import LongPrompts
from cluster.job.names import TaskNames
from cluster.job.prepared import PreparedJob
from cluster.job.tasks import ClipTask
from cluster.prompts.check import SetCheck
from cluster.prompts.files import Block
from cluster.prompts.problems import Problem, RowProblem
from cluster.prompts.row import CHECKED_COLUMNS, RawRow

if TYPE_CHECKING:
    from cluster.dataset.store import Committed


class _State(IntEnum):
    PENDING = 0
    DONE = 1
    FAILED = 2
    SHARED = 3  # an earlier task is the same video
    UNJUDGED = 4  # committed, but not known to settle what was asked
    LEFT_OUT = 5  # a bad row's, or another seed's where no count is asked for that could be searched


@dataclass(kw_only=True)
class LookedAt:
    """What the rows are whose videos are still to be made."""

    plain: int = 0  # they ask for no count
    doubtful: int = 0  # what they ask for may have been read wrongly
    skipped: int = 0  # they can't be used


@dataclass(frozen=True, kw_only=True)
class Worklist:
    """The videos of one job, or of one shard of it, that are still to be made."""

    asked: int  # videos of the whole set, all shards
    total: int  # of this shard
    done: int  # of this shard, committed already
    failed: int  # of this shard, given up already
    left_out: int  # of this shard, asked for but not made: `rows.skipped`, and plain rows' further seeds
    rows: LookedAt  # rows of this shard that aren't done
    rejected: Sequence[Problem]  # of this shard, where bad rows are skipped
    _prepared: PreparedJob
    _states: np.ndarray  # [rows of the shard, tasks of a row]

    @property
    def left(self) -> int:
        """Videos of this shard that are neither there nor given up."""
        return self.total - self.done - self.failed

    def tasks(self, *, shuffle: int | None = None) -> Iterator[ClipTask]:
        """The tasks in the order of the prompt set; with a `shuffle` seed in another one, that of the seed.

        A block of rows is in memory at a time. Two drivers that shuffle differently meet little. Raises PromptSetError
        when the prompt set was changed since.
        """
        prepared, names, part = self._prepared, TaskNames(self._prepared), _Part(*self._prepared.job.part)
        order = None if shuffle is None else np.random.default_rng(shuffle)
        pending = (self._states == _State.PENDING) | (self._states == _State.UNJUDGED)
        left = pending.any(axis=1)
        blocks = [block for block in prepared.prompts.blocks if left[part.rows(block)].any()]
        if order is not None:
            blocks = [blocks[place] for place in order.permutation(len(blocks))]
        for block, batch in prepared.prompts.read(blocks):
            rows = np.flatnonzero(left[part.rows(block)])
            if order is not None:
                order.shuffle(rows)
            texts = names.texts(batch.take(pa.array(part.offsets(block)[rows])))
            for row, text in zip(rows + part.rows(block).start, texts, strict=True):
                raw = RawRow(block, batch, part.number(row) - block.index)
                asked = prepared.prompts.row(raw, prepared.job.max_count, prepared.reading)
                slots = np.flatnonzero(pending[row]).tolist()
                for slot, task in zip(slots, names.tasks(asked, text, slots), strict=True):
                    yield replace(task, there=True) if self._states[row, slot] == _State.UNJUDGED else task


def open_worklist(
    prepared: PreparedJob,
    committed: Committed,
    given_up: Committed,
    settled: frozenset[bytes] = frozenset(),
    *,
    report: Callable[[int], None] = lambda rows: None,
    found: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Worklist | None:
    """What is left of a job, or of its shard, when so much is committed, given up and, of what is verified, settled.

    Checks all rows that are still to be made, and that no two rows of the set repeat an id or a video; raises one
    PromptSetError with what is wrong, unless bad rows are skipped. `report` is given the number of rows that were
    passed, now and then; `found` is called for rows that are left, unless the job won't start; None is returned once
    `stopped` says so.
    """
    names, part, job = TaskNames(prepared), _Part(*prepared.job.part), prepared.job
    check = SetCheck(prepared.prompts, job.max_count, samples=job.samples, reading=prepared.reading)
    rows, further = LookedAt(), np.array([trial.attempt > 0 for _, trial in names.slots])
    goes_on = True  # the job, as far as is known
    long = LongPrompts(job, prepared.model, prepared.rules)
    states = np.zeros((part.size(prepared.prompts.rows), len(names.slots)), np.uint8)
    for block, batch, contents in check.read(CHECKED_COLUMNS):
        if stopped():
            return None
        own = states[part.rows(block)]
        offsets = part.offsets(block)
        texts = names.texts(batch, contents)[part.first(block) :: part.count]
        for slot in range(len(names.slots)):
            digests, verified = names.digests(slot, texts), names.slots[slot][1].verified
            done = settled if verified else committed.tasks
            own[:, slot] = _recognised(digests, done, given_up.tasks, committed.tasks if verified else frozenset())
        for place in np.flatnonzero((own == _State.PENDING).any(axis=1)):
            if stopped():
                return None
            raw = RawRow(block, batch, int(offsets[place]))
            row = check.row(raw)
            if row is not None and (trouble := long.problem(row)):
                check.refuse(raw, trouble, rule="a noun of its targets isn't among the text encoder's tokens")
                row = None
            if row is None:
                goes_on = job.prompts_bad == "skip"
                continue
            rows.plain += not row.targets
            rows.doubtful += bool(row.doubts)
            if not row.targets:
                own[place, further & (own[place] == _State.PENDING)] = _State.LEFT_OUT
            if committed.keys or given_up.keys:
                for slot in np.flatnonzero(own[place] == _State.PENDING).tolist():
                    [task] = names.tasks(row, texts[place], [slot])
                    there = committed.keys if task.verified else frozenset()
                    done = frozenset() if task.verified else committed.keys
                    own[place, slot] = _recognised([bytes.fromhex(task.key)], done, given_up.keys, there)[0]
            if goes_on and (own[place] == _State.PENDING).any():
                found()
        if (own == _State.UNJUDGED).any() and goes_on:
            found()
        report(block.index + block.rows)
    long.finish()
    shared = check.find_repeats()
    for number in filter(part.has, check.require(bad=job.prompts_bad)):
        own = states[number // part.count]
        left = (own == _State.PENDING) | (own == _State.UNJUDGED)
        own[left] = _State.LEFT_OUT
        rows.skipped += bool(left.any())
    for number, sample in shared:
        if part.has(number):
            states[number // part.count, names.slots_of(sample)] = _State.SHARED
    return Worklist(
        asked=prepared.asked - len(shared) * len(prepared.trials),
        total=int(np.count_nonzero((states != _State.SHARED) & (states != _State.LEFT_OUT))),
        done=int(np.count_nonzero(states == _State.DONE)),
        failed=int(np.count_nonzero(states == _State.FAILED)),
        left_out=int(np.count_nonzero(states == _State.LEFT_OUT)),
        rows=rows,
        rejected=[own for own in check.problems if isinstance(own, RowProblem) and part.has(own.row)],
        _prepared=prepared,
        _states=states,
    )


def _recognised(
    names: Sequence[bytes], done: frozenset[bytes], given_up: frozenset[bytes], unjudged: frozenset[bytes]
) -> np.ndarray:
    """The state of each task, by the first of these sets that has its name."""
    states = np.full(len(names), np.uint8(_State.PENDING))
    for state, known in ((_State.UNJUDGED, unjudged), (_State.FAILED, given_up), (_State.DONE, done)):
        if known:
            states[np.fromiter(map(known.__contains__, names), bool, len(names))] = state
    return states


@dataclass(frozen=True)
class _Part:
    """Every `count`-th row of a set from row `index` on; they are numbered anew."""

    index: int
    count: int

    def size(self, rows: int) -> int:
        """How many of so many first rows."""
        return (rows - self.index + self.count - 1) // self.count if rows > self.index else 0

    def has(self, number: int) -> bool:
        return number % self.count == self.index

    def number(self, row: int) -> int:
        """Of a row in the set."""
        return int(row) * self.count + self.index

    def first(self, block: Block) -> int:
        """The offset of a block's first row of the part; beyond the block where it has none."""
        return (self.index - block.index) % self.count

    def offsets(self, block: Block) -> np.ndarray:
        return np.arange(self.first(block), block.rows, self.count)

    def rows(self, block: Block) -> slice:
        return slice(self.size(block.index), self.size(block.index + block.rows))
