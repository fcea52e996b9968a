"""Prompt sets with a column of enhanced prompts: by rule, or by a language model whose answers are kept as they come.

OUT                    the set with `enhanced_prompt`, and `enhanced_by`: endpoint, local, rules or testbed
OUT.answers.jsonl      each answer of a model, as `cluster.prompts.answers` keeps it
"""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from cluster.prompts.answers import Answers, Record, answers_path
from cluster.prompts.check import checked_set
from cluster.prompts.promptset import PromptSet
from cluster.prompts.row import ENHANCED, PromptRow, RawRow
from cluster.prompts.write import in_schema, set_schema, write_set
from pipelines.rewriting.llm import INSTRUCTIONS, Writer, rewritten
from pipelines.rewriting.rules import enhance_prompt

ENHANCED_BY = "enhanced_by"

Report = Callable[[int, int], None]

_ADDED = (ENHANCED, ENHANCED_BY)


def enhance_set(
    source: str,
    output: str,
    *,
    rules: str = "general",
    writer: Writer | None = None,
    at_once: int = 8,
    max_count: int = 20,
    force: bool = False,
    report: Report = lambda done, total: None,
) -> dict[str, int]:
    """Write a set with its prompts enhanced by `rules`, or by a language model; how many rows each wrote.

    `at_once` conversations are held side by side. A prompt that asks for no count stays as it is. Raises
    PromptSetError when the set has problems, NuminaError when the model can't be asked any more: what was answered is
    kept, the same call goes on.
    """
    prompts = checked_set(source, max_count)
    by: dict[str, int] = {}
    batches = _enhanced(
        prompts, _writer(rules, writer, output, at_once), max_count, by, lambda done: report(done, prompts.rows)
    )
    write_set(output, _schema(prompts), batches, force=force)
    return by


def _writer(
    rules: str, writer: Writer | None, output: str, at_once: int
) -> Callable[[Sequence[PromptRow]], list[Record]]:
    if writer is None:
        name = "rules" if rules == "general" else rules
        return lambda rows: [_record(enhance_prompt(row.prompt, row.targets, rules), name) for row in rows]

    def content(row: PromptRow) -> list[object]:
        targets = [[target.noun, target.count] for target in row.targets]
        return [row.prompt, targets, writer.name, writer.model, INSTRUCTIONS]

    return Answers(
        answers_path(output),
        ask=lambda row: _record(*rewritten(writer, row.prompt, row.targets)),
        content=content,
        columns=_ADDED,
        at_once=at_once,
    ).of


def _record(prompt: str, by: str) -> Record:
    return {ENHANCED: prompt, ENHANCED_BY: by}


def _enhanced(
    prompts: PromptSet,
    write: Callable[[Sequence[PromptRow]], list[Record]],
    max_count: int,
    by: dict[str, int],
    report: Callable[[int], None],
) -> Iterator[pa.RecordBatch]:
    done = 0
    schema = _schema(prompts)
    for block, batch in prompts.read():
        rows = [prompts.row(RawRow(block, batch, offset), max_count) for offset in range(block.rows)]
        written = write(rows)
        for record in written:
            by[record[ENHANCED_BY]] = by.get(record[ENHANCED_BY], 0) + 1
        table = pa.Table.from_batches([batch]).select([name for name in batch.schema.names if name not in _ADDED])
        for name in _ADDED:
            table = table.append_column(name, pa.array([record[name] for record in written], pa.string()))
        done += len(rows)
        report(done)
        yield from in_schema(table, schema).cast(schema).combine_chunks().to_batches()


def _schema(prompts: PromptSet) -> pa.Schema:
    return pa.schema([*set_schema(prompts, _ADDED), *(pa.field(name, pa.string()) for name in _ADDED)])
