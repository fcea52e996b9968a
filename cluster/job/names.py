"""Digests, seeds and keys of a job's videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from cluster.job.config import ALGORITHM_VERSION
from cluster.job.prepared import PreparedJob
from cluster.job.strategy import ENHANCEMENT, Trial, attempt_digest, attempt_seed
from cluster.job.tasks import ClipTask, enhanced
from cluster.keys import RowKeys, TaskDigests, canonical_json, sample_seed
from cluster.prompts.row import TARGETS_DOUBTS, PromptRow, row_texts

_FIRST_READING = ["numerals+articles", "keep", 20]


class TaskNames:
    """Digests and keys of a job's videos. `slots` are what each row is asked for: trials of each of its samples."""

    def __init__(self, prepared: PreparedJob) -> None:
        self._job, self._rules = prepared.job, prepared.rules
        self._reading = [prepared.job.targets_from, prepared.job.targets_doubtful, prepared.job.max_count]
        self.slots = list(product(range(prepared.job.samples), prepared.trials))
        self._settings: dict[tuple[str, float], dict[str, Any]] = {
            (base, strength): {
                "config": prepared.job.row_config(base, prepared.dtype, strength),
                "model_revision": prepared.model.revision,
                "algorithm_version": ALGORITHM_VERSION,
            }
            for strategy in prepared.job.all_strategies
            for base, strength in product([strategy.base], strategy.strengths)
        }
        self._keys = {name: RowKeys(**settings) for name, settings in self._settings.items()}
        # A prompt without counts is rewritten to itself: this tells its row from the one of the strategy without.
        self._plain_keys = {
            (base, strength): RowKeys(**settings | {"config": settings["config"] | {"rewritten": True}})
            for (base, strength), settings in self._settings.items()
            if ENHANCEMENT in base
        }
        self._digests = {
            (sample, base): self._chains(sample, base)
            for sample, base in product(range(prepared.job.samples), {trial.base for trial in prepared.trials})
        }

    def _chains(self, sample: int, base: str) -> TaskDigests:
        more: dict[str, Any] = {"enhanced": self._rules} if ENHANCEMENT in base else {}
        return TaskDigests(**self._settings[base, 1.0], job_seed=self._job.seed, sample=sample, **more)

    def texts(self, batch: pa.RecordBatch, contents: pa.Array | None = None) -> list[bytes]:
        """Of rows `prompts.row.row_texts` and, where their targets depend on it, how these are taken from prompts.

        Nothing is added for the settings that every older output had.
        """
        texts = row_texts(batch, contents)
        if self._reading == _FIRST_READING:
            return texts
        mark = canonical_json(self._reading).encode()
        return [text + mark if depends else text for text, depends in zip(texts, _is_read(batch), strict=True)]

    def slots_of(self, sample: int) -> list[int]:
        """Where a sample's tasks are, by all strategies."""
        return [slot for slot, (own, _) in enumerate(self.slots) if own == sample]

    def digests(self, slot: int, texts: Sequence[bytes]) -> list[bytes]:
        """Of rows' tasks in one slot, from their `texts`."""
        sample, trial = self.slots[slot]
        chains = self._digests[sample, trial.base].of(texts)
        return [attempt_digest(chain, trial.attempt, trial.strength) for chain in chains]

    def tasks(self, row: PromptRow, text: bytes, slots: Sequence[int] | None = None) -> Iterator[ClipTask]:
        """A row's tasks, all or those in some slots."""
        for slot in range(len(self.slots)) if slots is None else slots:
            sample, trial = self.slots[slot]
            asked = enhanced(row, self._rules) if ENHANCEMENT in trial.base else row
            [chain] = self._digests[sample, trial.base].of([text])
            yield self._task(asked, sample, trial, chain)

    def attempts(self, task: ClipTask) -> list[ClipTask]:
        """All attempts of a verified task's chain, the first one first."""
        return [
            self._task(task.row, task.sample, Trial(task.strategy, attempt, strength, verified=True), chain)
            for chain in [bytes.fromhex(task.chain)]
            for attempt, strength in enumerate(self._job.verify.strengths)
        ]

    def _task(self, row: PromptRow, sample: int, trial: Trial, chain: bytes) -> ClipTask:
        original = row.original_prompt or row.prompt
        first = sample_seed(row.seed, row.id, original, sample, self._job.seed)
        seed = attempt_seed(first, trial.attempt, trial.strength)
        keys = self._keys if row.targets else self._keys | self._plain_keys
        key = keys[trial.base, trial.strength].key(
            prompt=row.prompt, negative_prompt=row.negative_prompt, targets=row.targets, seed=seed
        )
        return ClipTask(
            key=key,
            digest=attempt_digest(chain, trial.attempt, trial.strength).hex(),
            row=row,
            sample=sample,
            seed=seed,
            strategy=trial.base,
            attempt=trial.attempt,
            strength=trial.strength,
            chain=chain.hex(),
            verified=trial.verified,
        )


def _is_read(batch: pa.RecordBatch) -> np.ndarray:
    """Of each row whether its targets are read from its prompt, or there are doubts about the given ones."""
    given = batch.column("targets").is_valid() if "targets" in batch.schema.names else pa.nulls(batch.num_rows)
    read: np.ndarray = ~np.asarray(given.cast(pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False))
    if TARGETS_DOUBTS in batch.schema.names and pat.is_list(batch.schema.field(TARGETS_DOUBTS).type):
        doubts = pc.list_value_length(batch.column(TARGETS_DOUBTS)).fill_null(0)
        read |= doubts.to_numpy(zero_copy_only=False) > 0
    return read
