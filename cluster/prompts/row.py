"""One row of a prompt set: as it stands in its file, as text that says what is asked, and checked."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from cluster.keys import canonical_json
from cluster.prompts.columns import is_python
from cluster.prompts.files import Block
from cluster.prompts.problems import RowProblem
from cluster.rows import TARGETS
from numina.errors import PromptError
from numina.prompts.reading import Doubt, Doubtful, read_prompt
from numina.prompts.targets import Target, check_targets, find_mentions

OWN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("targets", TARGETS),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
    ]
)
"""The columns of a set that mean something here, as we write them."""

ENHANCED = "enhanced_prompt"
"""A column of its own that the strategy `prompt_enhancement` generates with, where a set has it."""

TARGETS_BY = "targets_by"
"""A column that says what filled a row's targets: given, rules, llm or local."""
TARGETS_DOUBTS = "targets_doubts"
"""A column with the reasons to doubt targets that were read from the prompt, each as `code: words of the prompt`."""
TARGETS_RULES = "targets_rules"
"""A column with the targets that the rules read, where a language model read others."""
CHECKED_COLUMNS = (*OWN_SCHEMA.names, ENHANCED, TARGETS_DOUBTS)
"""The columns that a row is checked by."""

ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TEXT_TYPE = pa.large_string()
_NULL = pa.scalar("-", _TEXT_TYPE)


@dataclass(frozen=True, kw_only=True)
class TargetReading:
    """How targets are taken from prompts that none are given for."""

    articles: bool = True  # whether "a" and "an" count as one
    doubtful: Literal["keep", "plain", "refuse"] = "keep"  # a row with doubts: as read, without counts, or a bad row


DEFAULT_READING = TargetReading()


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One row of a prompt set, checked."""

    index: int  # row number in the whole set
    id: str | None
    prompt: str
    targets: tuple[Target, ...]  # (): no count is asked for
    negative_prompt: str | None
    seed: int | None
    extra: dict[str, Any] = field(default_factory=dict)  # the set's other columns
    original_prompt: str | None = None  # where `prompt` was rewritten
    doubts: tuple[Doubtful, ...] = ()  # about targets that were read from the prompt
    given: bool = False  # whether the set gives the targets

    def __getstate__(self) -> dict[str, Any]:
        """Values of Arrow go to other processes as columns: pickled scalars are Python's, without nanoseconds."""
        extra = {name: pa.repeat(own, 1) if isinstance(own, pa.Scalar) else own for name, own in self.extra.items()}
        return {**self.__dict__, "extra": extra}

    def __setstate__(self, state: dict[str, Any]) -> None:
        extra = {name: own[0] if isinstance(own, pa.Array) else own for name, own in state["extra"].items()}
        self.__dict__.update(state, extra=extra)


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in its file, read when it is asked for."""

    block: Block
    batch: pa.RecordBatch
    offset: int  # in the block
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # columns of the block that are Python's already

    @property
    def index(self) -> int:
        """Its number in the set."""
        return self.block.index + self.offset

    @property
    def number(self) -> int:
        """What a list of bad rows calls it: its number in the set."""
        return self.index

    @property
    def place(self) -> str:
        """Its file, and its number there."""
        return f"{self.block.file.path}, row {self.block.number + self.offset}"

    def own(self, name: str) -> Any:
        """The value of one of OWN_SCHEMA's columns, None where there is no such column."""
        if (values := self.values.get(name)) is not None:
            return values[self.offset]
        place = self.batch.schema.get_field_index(name)
        return self.batch.column(place)[self.offset].as_py() if place >= 0 else None

    def extra(self) -> dict[str, Any]:
        """The other columns."""
        names = [name for name in self.batch.schema.names if name not in OWN_SCHEMA.names]
        return {name: python_value(self.batch.column(name)[self.offset]) for name in names}

    def problem(self, column: str, value: object, rule: str, remedy: str, detail: str = "") -> RowProblem:
        """What is wrong with it."""
        return RowProblem(
            place=self.place, row=self.number, column=column, value=value, rule=rule, remedy=remedy, detail=detail
        )


def raw_rows(block: Block, batch: pa.RecordBatch) -> Iterator[RawRow]:
    """All rows of a block, with the columns that they are checked by as Python has them: faster than one by one."""
    values = dict[str, Sequence[Any]]()
    for name in CHECKED_COLUMNS:
        place = batch.schema.get_field_index(name)
        try:
            values[name] = batch.column(place).to_pylist() if place >= 0 else _Nones()
        except UnicodeDecodeError:
            continue  # told by the row that has it
    for offset in range(batch.num_rows):
        yield RawRow(block, batch, offset, values)


class _Nones(Sequence[None]):
    """A column that isn't there."""

    def __getitem__(self, place: Any) -> Any:
        return None

    def __len__(self) -> int:
        return 0


def python_value(scalar: pa.Scalar) -> Any:
    """The value as Python has it; what Python hasn't, e.g. a nanosecond, stays pyarrow's."""
    if not is_python(scalar.type):
        return scalar
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return scalar


def parsed(
    raw: RawRow, max_count: int, reading: TargetReading = DEFAULT_READING, *, extra: bool = True
) -> tuple[PromptRow | None, list[RowProblem]]:
    """The row, or None and what is wrong with it. Without `extra` it has none of the set's other columns."""
    try:
        id, prompt, given, negative, seed = (raw.own(name) for name in OWN_SCHEMA.names)
    except UnicodeDecodeError as error:
        rule, remedy = "has text that isn't UTF-8", "write the file again"
        return None, [raw.problem("prompt", error.object, rule, remedy, f"has text that isn't UTF-8 ({error})")]
    problems = []
    if id is not None and not ID.fullmatch(id):
        rule = "must be 1 to 128 of A-Z a-z 0-9 . _ -"
        problems.append(raw.problem("id", id, rule, "change it, or leave it null"))
    if seed is not None and not 0 <= seed < 2**63:
        problems.append(raw.problem("seed", seed, "must be 0 to 2**63 - 1", "change it, or leave it null"))
    asked = Asked()
    if prompt is None or not prompt.strip():
        problems.append(raw.problem("prompt", prompt, "is empty", "write a prompt or drop the row"))
    else:
        try:
            asked = asked_of(prompt, given, max_count, reading, raw.own(TARGETS_DOUBTS))
        except _BrokenRuleError as error:
            column, value = ("prompt", prompt) if given is None else ("targets", given)
            problems.append(raw.problem(column, value, error.rule, error.remedy, str(error)))
    if asked.targets and (enhanced := raw.own(ENHANCED)) is not None:
        try:
            _require(enhanced, asked.targets, max_count)
        except _BrokenRuleError as error:
            remedy = f"{error.remedy}; correct it, or leave it null"
            problems.append(raw.problem(ENHANCED, enhanced, error.rule, remedy, str(error)))
    if problems or prompt is None:
        return None, problems
    return PromptRow(
        index=raw.index,
        id=id,
        prompt=prompt,
        targets=asked.targets,
        negative_prompt=negative,
        seed=seed,
        extra=raw.extra() if extra else {},
        doubts=asked.doubts,
        given=given is not None,
    ), []


# --- targets ---


@dataclass(frozen=True)
class Asked:
    """The targets of a row, and the doubts about them."""

    targets: tuple[Target, ...] = ()
    doubts: tuple[Doubtful, ...] = ()


def asked_of(
    prompt: str,
    given: list[dict[str, Any] | None] | None,
    max_count: int,
    reading: TargetReading = DEFAULT_READING,
    doubts: list[str | None] | None = None,
) -> Asked:
    """The given targets with the doubts that the set has about them, or what is read from the prompt.

    Raises PromptError where the given ones can't be asked for, or a doubtful row is refused.
    """
    if given is None:
        read = read_prompt(prompt, articles=reading.articles, max_count=max_count)
        asked = Asked(read.targets, read.doubts)
    else:
        asked = Asked(tuple(_target(item) for item in given), doubts_from(doubts))
        if asked.targets:
            _require(prompt, asked.targets, max_count)
    if asked.doubts and reading.doubtful == "refuse":
        reasons = "; ".join(f"{own.doubt.told} ({own.text})" for own in asked.doubts)
        raise _BrokenRuleError(
            f"its targets are doubtful: {reasons}", "its targets are doubtful", "give its targets, or reword the prompt"
        )
    return Asked((), asked.doubts) if asked.doubts and reading.doubtful == "plain" else asked


def doubts_from(texts: list[str | None] | None) -> tuple[Doubtful, ...]:
    """Doubts from what the column TARGETS_DOUBTS holds; those of a code that isn't known here are passed over."""
    if not isinstance(texts, list):
        return ()
    parts = [text.partition(": ") for text in texts if isinstance(text, str)]
    return tuple(Doubtful(Doubt(code), words) for code, _, words in parts if code in _CODES)


def doubt_texts(doubts: Sequence[Doubtful]) -> list[str]:
    """Doubts as the column TARGETS_DOUBTS holds them."""
    return [f"{own.doubt.value}: {own.text}" for own in doubts]


_CODES = frozenset(doubt.value for doubt in Doubt)


class _BrokenRuleError(PromptError):
    """A row's targets can't be asked for: the rule in words for all rows, and what mends it."""

    def __init__(self, message: str, rule: str, remedy: str) -> None:
        super().__init__(message)
        self.rule, self.remedy = rule, remedy


def _require(prompt: str, targets: tuple[Target, ...], max_count: int) -> None:
    """Raises _BrokenRuleError unless all targets can be asked of the prompt."""
    try:
        check_targets(prompt, targets, max_count=max_count)
    except (PromptError, TypeError) as error:
        detail, _, remedy = str(error).rpartition(": ")
        if any(not 1 <= target.count <= max_count for target in targets):
            rule, remedy = f"a count must be from 1 to {max_count}", "correct it, or drop the target"
            raise _BrokenRuleError(str(error), rule, remedy) from error
        rule = "a noun isn't in the prompt" if _lacks(prompt, targets) else "two targets are one noun"
        raise _BrokenRuleError(detail or str(error), rule, remedy) from error


def _lacks(prompt: str, targets: tuple[Target, ...]) -> bool:
    """Whether a target's noun isn't in the prompt."""
    try:
        for target in targets:
            find_mentions(prompt, target.noun)
    except (PromptError, TypeError):
        return True
    return False


def _target(item: dict[str, Any] | None) -> Target:
    if item is None or not item["noun"] or item["count"] is None:
        rule, remedy = "a target needs both a noun and a count", "fill them in, or drop it"
        raise _BrokenRuleError(f"the target {item} needs both a noun and a count", rule, remedy)
    return Target(noun=item["noun"], count=item["count"])


# --- what was asked, as text ---


def content_texts(batch: pa.RecordBatch) -> pa.Array:
    """Of each row prompt, negative prompt and targets as they are given: equal texts for equal values alone.

    Texts come with their length in bytes before them, so that no value can pass for a separator; null is `-`.
    """
    return _joined(_counted(batch, "prompt"), _counted(batch, "negative_prompt"), _target_texts(batch))


def row_texts(batch: pa.RecordBatch, contents: pa.Array | None = None) -> list[bytes]:
    """Of each row all that decides its videos, as it is given: `content_texts`, id, seed and, where the set has them,
    the enhanced prompt and the doubts about given targets; no other columns."""
    contents = content_texts(batch) if contents is None else contents
    seeds = text_column(batch, "seed").fill_null(_NULL)
    more = [_counted(batch, ENHANCED)] if ENHANCED in batch.schema.names else []
    more += [_doubts(batch)] if TARGETS_DOUBTS in batch.schema.names else []
    return as_bytes(_joined(_counted(batch, "id"), seeds, contents, *more))


def text_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """One of the set's own columns as text; nulls where there is none."""
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, _TEXT_TYPE)
    return _as_text(batch.column(name))


def _as_text(values: pa.Array) -> pa.Array:
    if pat.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.string()).cast(_TEXT_TYPE) if not pat.is_large_string(values.type) else values


def _counted(batch: pa.RecordBatch, name: str) -> pa.Array:
    return _with_length(text_column(batch, name))


def _with_length(texts: pa.Array) -> pa.Array:
    lengths = pc.binary_length(texts).cast(_TEXT_TYPE)
    return pc.binary_join_element_wise(lengths, texts, pa.scalar(":", _TEXT_TYPE)).fill_null(_NULL)


def _joined(*texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(*texts, pa.scalar(",", _TEXT_TYPE))


def _target_texts(batch: pa.RecordBatch) -> pa.Array:
    """`2[4:cats,3;4:dogs,1]` for each row."""
    if "targets" not in batch.schema.names or pat.is_null(batch.schema.field("targets").type):
        return pa.nulls(batch.num_rows, _TEXT_TYPE).fill_null(_NULL)
    lists = batch.column("targets")
    lengths = pc.list_value_length(lists)
    starts = np.concatenate([[0], np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False))])
    items = pc.list_flatten(lists)
    nouns = _with_length(_as_text(pc.struct_field(items, "noun")))
    counts = _as_text(pc.struct_field(items, "count")).fill_null(_NULL)
    each = pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), _joined(nouns, counts))
    listed = pc.binary_join(each, pa.scalar(";", _TEXT_TYPE))
    marks = [lengths.cast(_TEXT_TYPE), pa.scalar("[", _TEXT_TYPE), listed, pa.scalar("]", _TEXT_TYPE)]
    return pc.binary_join_element_wise(*marks, pa.scalar("", _TEXT_TYPE)).fill_null(_NULL)


def _doubts(batch: pa.RecordBatch) -> pa.Array:
    """The doubts of each row, in one text."""
    values = [canonical_json(doubt_texts(doubts_from(own))) for own in batch.column(TARGETS_DOUBTS).to_pylist()]
    return pa.array(values, _TEXT_TYPE)


def as_bytes(texts: pa.Array) -> list[bytes]:
    """Texts in UTF-8."""
    return cast(list[bytes], texts.cast(pa.large_binary()).to_pylist())
