"""The prompts that a race runs on, in an order that has nothing to do with the set's own: its first ones are a fair
sample, however the set is sorted."""

import hashlib
import heapq
from collections.abc import Sequence

import pyarrow as pa

from cluster.job.config import JobConfig
from cluster.job.prepared import prompt_path
from cluster.prompts.promptset import open_prompts
from cluster.prompts.row import TargetReading, parsed, raw_rows
from cluster.prompts.write import write_set
from numina.errors import PromptSetError

SPARE = 4  # rows that are looked at for each one that is asked for: some ask for no count, or can't be used

Sampled = tuple[str | None, str, tuple[tuple[str, int], ...]]
"""A prompt's id, text and targets: what its clips under all candidates have in common."""


def draw_sample(job: JobConfig, number: int, place: str) -> list[Sampled]:
    """Writes a sample of the job's prompts that ask for counts, `number` at most, as a prompt set at a place.

    A row's rank is a hash of the job's seed, its id and its prompt: the same set gives the same order, and rows that
    are added to it don't change the order of the others. Raises PromptSetError if no row can be used.
    """
    path = prompt_path(job.prompts)
    prompts = open_prompts(path, limit=job.limit)
    ranked = (
        (_rank(job.seed, raw.own("id"), raw.own("prompt")), raw.index)
        for block, batch in prompts.read()
        for raw in raw_rows(block, batch)
    )
    chosen = {index: rank for rank, index in heapq.nsmallest(SPARE * number, ranked)}
    blocks = [own for own in prompts.blocks if any(own.index <= index < own.index + own.rows for index in chosen)]
    reading = TargetReading(articles=job.targets_from == "numerals+articles", doubtful=job.targets_doubtful)
    found: dict[Sampled, tuple[bytes, pa.RecordBatch]] = {}
    for block, batch in prompts.read(blocks):
        for raw in raw_rows(block, batch):
            row = parsed(raw, job.max_count, reading)[0] if raw.index in chosen else None
            if row is not None and row.targets:
                key = row.id, row.prompt, tuple((target.noun, target.count) for target in row.targets)
                found.setdefault(key, (chosen[raw.index], batch.slice(raw.offset, 1)))
    if not found:
        raise PromptSetError(
            f"prompt set {path!r}: no row that was looked at asks for a count; give prompts with counts"
        )
    sample: Sequence[Sampled] = sorted(found, key=lambda key: found[key][0])[:number]
    table = pa.concat_tables(
        [pa.Table.from_batches([found[key][1]]) for key in sample], promote_options="default"
    ).combine_chunks()
    write_set(place, table.schema, table.to_batches(), force=True)
    return list(sample)


def _rank(seed: int, id: str | None, prompt: str | None) -> bytes:
    return hashlib.blake2b(f"{seed}\0{id or ''}\0{prompt or ''}".encode(), digest_size=8).digest()
