"""What a job asks for, in whole: what a worklist and its keys are held against."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.job.names import TaskNames
from cluster.job.prepared import PreparedJob
from cluster.job.tasks import ClipTask
from cluster.keys import RowKeys
from cluster.prompts.row import RawRow
from numina.prompts.targets import Target


def tasks_of(prepared: PreparedJob) -> Iterator[ClipTask]:
    """All videos of a job, in the order of the prompt set; what would be the same video is asked for once.

    Holds all their keys: see `worklist` for what is left of a large job.
    """
    names, known = TaskNames(prepared), set[str]()
    for block, batch in prepared.prompts.read():
        for offset, text in enumerate(names.texts(batch)):
            row = prepared.prompts.row(RawRow(block, batch, offset), prepared.job.max_count, prepared.reading)
            for task in names.tasks(row, text):
                if task.key not in known:
                    known.add(task.key)
                    yield task


def row_key(
    *,
    prompt: str,
    negative_prompt: str | None,
    targets: Sequence[Target],
    seed: int,
    config: Mapping[str, Any],
    model_revision: str,
    algorithm_version: str | int,
) -> str:
    """`RowKeys.key` of a single row."""
    keys = RowKeys(config=config, model_revision=model_revision, algorithm_version=algorithm_version)
    return keys.key(prompt=prompt, negative_prompt=negative_prompt, targets=targets, seed=seed)
