"""A row: its columns, the key that names it, and the seed it is made from."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from numina.errors import PromptSetError
from numina.stage import Stage

STAGES = (Stage.ENCODE, Stage.IDENTIFY, Stage.LAYOUT, Stage.GUIDE, Stage.DENOISE, Stage.DECODE, Stage.WRITE)
"""The stages whose seconds a row has, in the order of its `timings`."""

TARGETS = pa.list_(pa.struct([("noun", pa.string()), ("count", pa.int32())]))
IDENTIFIED = pa.list_(pa.struct([("noun", pa.string()), ("frames", pa.list_(pa.int32())), ("count", pa.int32())]))
SPANS = pa.list_(
    pa.struct([("stage", pa.string()), ("place", pa.string()), ("began", pa.float64()), ("seconds", pa.float64())])
)
DETECTED = pa.list_(pa.struct([("noun", pa.string()), ("frames", pa.list_(pa.int32()))]))

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("file_name", pa.string()),
        ("prompt", pa.string()),
        ("original_prompt", pa.string()),  # null unless the strategy rewrote it
        ("negative_prompt", pa.string()),
        ("targets", TARGETS),
        ("strategy", pa.string()),  # what generated it: `Strategy.base`
        ("sample", pa.int32()),
        ("attempt", pa.int32()),  # 0: the sample's own seed; later ones follow from it
        ("strength", pa.float64()),  # factor on the guidance; other than 1 where a retry is guided more
        ("chain", pa.string()),  # the same for all attempts of a sample: the first one's task digest
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("code_version", pa.string()),
        ("config_hash", pa.string()),
        ("task_digest", pa.string()),  # what was asked, before targets were read from the prompt: `TaskDigests`
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),
        ("steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("engine", pa.string()),
        ("ulysses", pa.int32()),
        ("ring", pa.int32()),
        ("cfg", pa.int32()),
        ("cache", pa.string()),
        ("identified", IDENTIFIED),
        ("guided", pa.bool_()),
        ("shortfall", pa.list_(pa.int32())),
        ("layout_file", pa.string()),
        ("latents_file", pa.string()),  # null where they weren't asked for: `JobConfig.latents`
        ("timings", pa.struct([(stage, pa.float64()) for stage in STAGES])),
        ("spans", SPANS),  # when and where each stage ran; `began` in seconds since the epoch, by the driver's clock
        ("gpu_seconds", pa.float64()),  # rank_seconds on GPUs, null on CPUs
        ("rank_seconds", pa.float64()),  # that its gang was busy with the clip, times its ranks; null in older rows
        ("retries", pa.int32()),
        ("peak_memory_bytes", pa.int64()),
        ("video_sha256", pa.string()),
        ("committed_at", pa.timestamp("us", tz="UTC")),
        ("gpu_name", pa.string()),  # null on CPUs; this and what follows is null in older rows
        ("torch_version", pa.string()),
        ("attention_kernel", pa.string()),  # of self-attention, by its engine's name for it
        ("confidences", pa.list_(pa.float64())),  # of each target's identified count; null where the reading tells none
        ("left_alone", pa.string()),  # why a clip whose counts are wrong wasn't guided; null where it was, or is right
        ("lost_seconds", pa.float64()),  # rank_seconds of its tries that failed or were handed back; null in older rows
    ]
)
"""The columns of every row; the prompt set's own columns follow them. A missing one is null, unless REQUIRED."""

REQUIRED = ("key", "file_name", "prompt", "targets", "strategy", "seed", "video_sha256")

UNIQUE = pa.list_(pa.struct([("noun", pa.string()), ("count", pa.int32())]))

EVALUATION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("judge", pa.string()),
        ("detected", DETECTED),  # null where the judge doesn't count, or there was no video
        ("count_accuracy", pa.float64()),  # null where the judge doesn't count
        ("problem", pa.string()),  # missing | unreadable: …; null where the video could be judged
        ("unique", UNIQUE),  # objects of the whole clip; null without tracks
        ("clip_score", pa.float64()),
        ("temporal_consistency", pa.float64()),
        ("settings", pa.string()),  # the judge's, as canonical JSON
        ("seconds", pa.float64()),  # of judging, a clip's share of its batch
        ("chain", pa.string()),  # the row's own, so that a job knows without it which samples are settled
        ("attempt", pa.int32()),
        ("strength", pa.float64()),
        (
            "embedding",
            pa.list_(pa.float16()),
        ),  # of the clip, length 1: CLIP's, or else a thumbnail's; null in older ones
    ]
)
"""The columns of all judges' verdicts."""


def asks_no_count(table: pa.Table) -> pa.ChunkedArray:
    """Of each row whether its prompt asks for no count: it has no targets, and its clip is a plain one."""
    return pc.equal(pc.list_value_length(table["targets"]), 0)


def plain_value(value: Any) -> Any:
    """Dataclasses and tuples as the dicts and lists that pyarrow knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return value


def one_value(value: Any, type: pa.DataType | None) -> pa.Array:
    """A value of Python or Arrow as a column of one row, in a type (None: its own).

    Raises PromptSetError where it doesn't fit: such values come from a prompt set.
    """
    try:
        if not isinstance(value, pa.Scalar):
            return pa.array([value], type=type)
        column = pa.repeat(value, 1)
        return column if type is None or column.type == type else column.cast(type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise PromptSetError(f"{value!r} can't be written as {type} ({error}); correct it in the prompt set") from error


def python_rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows as Python values, with and without pandas alike.

    What Python's types can't hold is text: nanoseconds, years after 9999, bytes that aren't UTF-8 where text is meant.
    """
    names, columns = table.column_names, [_values(column) for column in table.columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    if not _has_nanoseconds(column.type):
        with suppress(*_NOT_IN_PYTHON):
            values: list[Any] = column.to_pylist()
            return values
    return [_value(scalar) for scalar in column]


_NOT_IN_PYTHON = (ValueError, OverflowError, KeyError, pa.ArrowException)  # KeyError: of a time zone that isn't known


def _has_nanoseconds(type: pa.DataType) -> bool:
    if pat.is_dictionary(type):
        return _has_nanoseconds(type.value_type)
    inner = [type.field(place).type for place in range(type.num_fields)]
    return (pat.is_temporal(type) and getattr(type, "unit", "") == "ns") or any(map(_has_nanoseconds, inner))


def _value(scalar: pa.Scalar) -> Any:
    """One value, whatever it is made of."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, (pa.DictionaryScalar, pa.ExtensionScalar, pa.UnionScalar)):
        return _value(scalar.value)
    if isinstance(scalar, pa.MapScalar):
        return [tuple(map(_value, pair.values())) for pair in scalar.values]
    if isinstance(scalar, pa.ListScalar):
        return [_value(item) for item in scalar.values]
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(item) for name, item in scalar.items()}
    try:
        if getattr(scalar.type, "unit", "") == "ns":
            scalar = scalar.cast(_in_microseconds(scalar.type))  # refuses to cut off nanoseconds
        return scalar.as_py()
    except _NOT_IN_PYTHON:
        return _as_text(scalar)


def _in_microseconds(type: pa.DataType) -> pa.DataType:
    if pat.is_timestamp(type):
        return pa.timestamp("us", type.tz)
    return pa.duration("us") if pat.is_duration(type) else pa.time64("us")


def _as_text(scalar: pa.Scalar) -> str:
    if isinstance(scalar, pa.StringScalar):
        return str(scalar.as_buffer().to_pybytes().decode(errors="replace"))
    if pat.is_duration(scalar.type):
        return f"{scalar.value} {scalar.type.unit}"
    with suppress(*_NOT_IN_PYTHON):
        text = str(scalar.cast(pa.string()).as_py())
        if not text.startswith("<"):  # "<value out of range: …>"
            return text.replace(" ", "T", 1)
    return f"{scalar.value} {getattr(scalar.type, 'unit', 'days')} since 1970-01-01"


def check_row(row: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    missing = [name for name in REQUIRED if row.get(name) is None]
    unknown = sorted(row.keys() - set(ROW_SCHEMA.names))
    taken = sorted(extra.keys() & set(ROW_SCHEMA.names))
    stages = sorted((row.get("timings") or {}).keys() - set(STAGES))
    if missing or unknown or taken or stages:
        raise ValueError(
            f"a row lacks {missing}, has the unknown columns {unknown} (a prompt set's own go under 'extra'), "
            f"extra columns with a name of the output's own {taken}, "
            f"unknown timings {stages} (known: {list(map(str, STAGES))})"
        )
