"""Prompt sets with their targets filled in: by rule, or by a language model whose answers are kept as they come.

OUT                    the set with `targets`, and `targets_by`: given, rules, llm or local
OUT.answers.jsonl      each answer of a model, as `cluster.prompts.answers` keeps it

Targets that the set gives stay. Beside what a model reads, `targets_rules` has what the rules read, where that differs;
where a model's answer can't be used, the rules' reading stands, with a doubt.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from cluster.prompts.answers import Answers, Record, answers_path
from cluster.prompts.check import checked_set
from cluster.prompts.promptset import PromptSet
from cluster.prompts.row import (
    DEFAULT_READING,
    TARGETS_BY,
    TARGETS_DOUBTS,
    TARGETS_RULES,
    PromptRow,
    RawRow,
    TargetReading,
    doubt_texts,
)
from cluster.prompts.summary import SetSummary
from cluster.prompts.write import in_schema, set_schema, with_columns, write_set
from cluster.rows import TARGETS, plain_value
from numina.prompts.reading import Doubt, Doubtful, Reading, Target, read_prompt
from pipelines.rewriting.asking import INSTRUCTIONS, Answer, asked_targets, same_targets
from pipelines.rewriting.llm import Writer


@dataclass(kw_only=True)
class Annotated:
    """What a set's targets come from."""

    by: Counter[str] = field(default_factory=Counter)  # rows by what filled their targets
    differ: int = 0  # rows of which the rules read something else than the model
    summary: SetSummary = field(default_factory=SetSummary)


def annotate_set(
    source: str,
    output: str,
    *,
    writer: Writer | None = None,
    at_once: int = 8,
    max_count: int = 20,
    reading: TargetReading = DEFAULT_READING,
    force: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Annotated:
    """Write a set with its targets read by rule or, with a `writer`, by a language model.

    `at_once` conversations are held side by side. Raises PromptSetError when the set has problems, NuminaError when
    the model can't be asked any more: what was answered is kept, the same call goes on.
    """
    prompts = checked_set(source, max_count, reading=reading)
    annotated = Annotated()
    ask = None if writer is None else _asker(writer, output, at_once, max_count)
    batches = _annotated(prompts, ask, max_count, reading, annotated, lambda done: report(done, prompts.rows))
    write_set(output, _schema(prompts), batches, force=force)
    return annotated


_Ask = Callable[[Sequence[PromptRow]], list[tuple[str, Answer]]]
"""The answers about some rows, each with the model's name."""


def _asker(writer: Writer, output: str, at_once: int, max_count: int) -> _Ask:
    def ask(row: PromptRow) -> Record:
        answer = asked_targets(writer, row.prompt, max_count)
        targets = None if answer.targets is None else [[own.noun, own.count] for own in answer.targets]
        return {"targets": targets, "told": answer.told}

    def answer(record: Record) -> Answer:
        targets = record["targets"]
        return Answer(None if targets is None else tuple(Target(*own) for own in targets), record["told"])

    answers = Answers(
        answers_path(output),
        ask=ask,
        content=lambda row: [row.prompt, max_count, writer.name, writer.model, INSTRUCTIONS],
        columns=("targets", "told"),
        at_once=at_once,
    )
    return lambda rows: [(writer.name, answer(record)) for record in answers.of(rows)]


@dataclass(frozen=True, kw_only=True)
class _Filled:
    """A row's targets, and what its columns say of them."""

    row: PromptRow
    by: str
    rules: tuple[Target, ...] | None = None  # what the rules read, where that is something else


def _annotated(
    prompts: PromptSet,
    ask: _Ask | None,
    max_count: int,
    reading: TargetReading,
    annotated: Annotated,
    report: Callable[[int], None],
) -> Iterator[pa.RecordBatch]:
    schema = _schema(prompts)
    for block, batch in prompts.read():
        rows = [prompts.row(RawRow(block, batch, offset), max_count, reading) for offset in range(block.rows)]
        rows = [row if _is_given(row) else _by_rules(row, max_count, reading) for row in rows]
        missing = [row for row in rows if not row.given]
        answers = dict(zip((row.index for row in missing), ask(missing) if ask else [], strict=False))
        filled = [_filled(row, answers.get(row.index)) for row in rows]
        annotated.by.update(own.by for own in filled)
        annotated.differ += sum(own.rules is not None for own in filled)
        annotated.summary.add(own.row for own in filled)
        report(block.index + block.rows)
        table = with_columns(pa.Table.from_batches([batch]), _columns(filled))
        yield from in_schema(table, schema).cast(schema).combine_chunks().to_batches()


def _is_given(row: PromptRow) -> bool:
    """Whether somebody gave the row's targets: those that rules or a model filled in are read anew."""
    return row.given and row.extra.get(TARGETS_BY) in (None, "given")


def _by_rules(row: PromptRow, max_count: int, reading: TargetReading) -> PromptRow:
    read = Reading(row.targets, row.doubts)
    if row.given:
        read = read_prompt(row.prompt, articles=reading.articles, max_count=max_count)
    return replace(row, targets=read.targets, doubts=read.doubts, given=False)


def _filled(row: PromptRow, answer: tuple[str, Answer] | None) -> _Filled:
    if answer is None:
        return _Filled(row=row, by="given" if row.given else "rules")
    name, said = answer
    if said.targets is None:
        doubts = (*row.doubts, Doubtful(Doubt.ANSWER, said.told))
        return _Filled(row=replace(row, doubts=doubts), by="rules")
    differs = not same_targets(said.targets, row.targets)
    read = replace(row, targets=said.targets, doubts=())
    return _Filled(row=read, by=name, rules=row.targets if differs else None)


def _columns(filled: Sequence[_Filled]) -> dict[str, pa.Array]:
    rules = [None if own.rules is None else plain_value(list(own.rules)) for own in filled]
    return {
        "targets": pa.array([plain_value(list(own.row.targets)) for own in filled], TARGETS),
        TARGETS_BY: pa.array([own.by for own in filled], pa.string()),
        TARGETS_DOUBTS: pa.array([doubt_texts(own.row.doubts) for own in filled], pa.list_(pa.string())),
        TARGETS_RULES: pa.array(rules, TARGETS),
    }


def _schema(prompts: PromptSet) -> pa.Schema:
    return with_columns(set_schema(prompts).empty_table(), _columns([])).schema
