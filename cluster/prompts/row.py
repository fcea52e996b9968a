"""One row of a prompt set: as it stands in its file, as text that says what is asked, and checked."""

import re
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from cluster.prompts.columns import is_python
from cluster.prompts.files import Block
from cluster.rows import TARGETS
from numina.errors import PromptError
from numina.prompts.targets import Target, check_targets, parse_targets

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

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LONGEST_SHOWN = 120
_TEXT_TYPE = pa.large_string()
_NULL = pa.scalar("-", _TEXT_TYPE)


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One row of a prompt set, checked."""

    index: int  # row number in the whole set
    id: str | None
    prompt: str
    targets: tuple[Target, ...]
    negative_prompt: str | None
    seed: int | None
    extra: dict[str, Any] = field(default_factory=dict)  # the set's other columns
    original_prompt: str | None = None  # where `prompt` was rewritten

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

    @property
    def index(self) -> int:
        """Its number in the set."""
        return self.block.index + self.offset

    @property
    def place(self) -> str:
        """Its file, and its number there."""
        return f"{self.block.file.path}, row {self.block.number + self.offset}"

    def own(self, name: str) -> Any:
        """The value of one of OWN_SCHEMA's columns, None where there is no such column."""
        place = self.batch.schema.get_field_index(name)
        return self.batch.column(place)[self.offset].as_py() if place >= 0 else None

    def extra(self) -> dict[str, Any]:
        """The other columns."""
        names = [name for name in self.batch.schema.names if name not in OWN_SCHEMA.names]
        return {name: _python(self.batch.column(name)[self.offset]) for name in names}

    def problem(self, column: str, value: object, trouble: str) -> str:
        """One line on what is wrong with it."""
        shown = repr(value)
        shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 1]}…"
        return f"{self.place}, column {column!r}: {shown}: {trouble}"


def _python(scalar: pa.Scalar) -> Any:
    """The value as Python has it; what Python hasn't, e.g. a nanosecond, stays pyarrow's."""
    if not is_python(scalar.type):
        return scalar
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return scalar


def parsed(raw: RawRow, max_count: int) -> tuple[PromptRow | None, list[str]]:
    """The row, or None and what is wrong with it."""
    try:
        id, prompt, given, negative, seed = (raw.own(name) for name in OWN_SCHEMA.names)
    except UnicodeDecodeError as error:
        return None, [f"{raw.place}: has text that isn't UTF-8 ({error}); write the file again"]
    problems = []
    if id is not None and not _ID.fullmatch(id):
        problems.append(raw.problem("id", id, "must be 1 to 128 of A-Z a-z 0-9 . _ -; change it, or leave it null"))
    if seed is not None and not 0 <= seed < 2**63:
        problems.append(raw.problem("seed", seed, "must be 0 to 2**63 - 1; change it, or leave it null"))
    targets: tuple[Target, ...] = ()
    if prompt is None or not prompt.strip():
        problems.append(raw.problem("prompt", prompt, "is empty; write a prompt or drop the row"))
    else:
        try:
            targets = given_or_parsed(prompt, given, max_count)
        except PromptError as error:
            problems.append(raw.problem(*(("prompt", prompt) if given is None else ("targets", given)), str(error)))
    extra = raw.extra()
    if targets and (enhanced := extra.get(ENHANCED)) is not None:
        try:
            check_targets(enhanced, targets, max_count=max_count)
        except (PromptError, TypeError) as error:
            problems.append(raw.problem(ENHANCED, enhanced, f"{error}; correct it, or leave it null"))
    if problems or prompt is None:
        return None, problems
    return PromptRow(
        index=raw.index,
        id=id,
        prompt=prompt,
        targets=targets,
        negative_prompt=negative,
        seed=seed,
        extra=extra,
    ), []


def given_or_parsed(prompt: str, given: list[dict[str, Any] | None] | None, max_count: int) -> tuple[Target, ...]:
    """The given targets, or those parsed from the prompt; () asks for no count. Raises PromptError."""
    targets = tuple(parse_targets(prompt)) if given is None else tuple(_target(item) for item in given)
    if targets:
        check_targets(prompt, targets, max_count=max_count)
    return targets


def _target(item: dict[str, Any] | None) -> Target:
    if item is None or not item["noun"] or item["count"] is None:
        raise PromptError(f"the target {item} needs both a noun and a count; fill them in, or drop it")
    return Target(noun=item["noun"], count=item["count"])


# --- what was asked, as text ---


def content_texts(batch: pa.RecordBatch) -> pa.Array:
    """Of each row prompt, negative prompt and targets as they are given: equal texts for equal values alone.

    Texts come with their length in bytes before them, so that no value can pass for a separator; null is `-`.
    """
    return _joined(_counted(batch, "prompt"), _counted(batch, "negative_prompt"), _target_texts(batch))


def row_texts(batch: pa.RecordBatch, contents: pa.Array | None = None) -> list[bytes]:
    """Of each row all that decides its videos, as it is given: `content_texts`, id, seed and, where the set has it,
    the enhanced prompt; no other columns."""
    contents = content_texts(batch) if contents is None else contents
    seeds = text_column(batch, "seed").fill_null(_NULL)
    enhanced = [_counted(batch, ENHANCED)] if ENHANCED in batch.schema.names else []
    return as_bytes(_joined(_counted(batch, "id"), seeds, contents, *enhanced))


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


def as_bytes(texts: pa.Array) -> list[bytes]:
    """Texts in UTF-8."""
    return cast(list[bytes], texts.cast(pa.large_binary()).to_pylist())
