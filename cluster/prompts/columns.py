"""A prompt set's own columns beside those that mean something here: united over its files, and checked to be writable.

A value is carried as Arrow has it. What an output's readers couldn't take is refused before any clip is made: text that
isn't UTF-8, times that Python hasn't, values that don't fit the type that the files' types unite to.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pat

from cluster.prompts.files import Block
from numina.errors import PromptSetError

_YEARS = "Python's calendar has the years 1 to 9999; correct it, or make the column text"
_DAY = 86_400
_FIRST, _LAST = -719_161 * _DAY, 2_932_895 * _DAY  # seconds since 1970 that are in Python's calendar in any time zone
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


# --- types ---


def decoded(column: pa.Field) -> pa.Field:
    """A column that isn't dictionary-encoded, and without views of text and bytes, which Arrow can't sort rows of."""
    type = column.type.value_type if pat.is_dictionary(column.type) else column.type
    views = any(pat.is_string_view(own) or pat.is_binary_view(own) for own in _parts(type))
    return column.with_type(_plain(type) if views else type)


def united(one: pa.Field, other: pa.Field) -> pa.Field:
    """A column that holds what two files have under its name, as Arrow unites them. Raises pa.ArrowException."""
    if one.type == other.type:
        return one
    plain = [pa.schema([own.with_type(_plain(own.type))]) for own in (one, other)]
    return pa.unify_schemas(plain, promote_options="permissive").field(0)


def _plain(type: pa.DataType) -> pa.DataType:
    """A type of the same values that Arrow can unite: without dictionaries and views."""
    if pat.is_dictionary(type):
        return _plain(type.value_type)
    if pat.is_string_view(type):
        return pa.string()
    if pat.is_binary_view(type):
        return pa.binary()
    if pat.is_struct(type):
        return pa.struct([own.with_type(_plain(own.type)) for own in type])
    if pat.is_map(type):
        return pa.map_(_plain(type.key_type), _plain(type.item_type))
    if pat.is_fixed_size_list(type):
        return pa.list_(type.value_field.with_type(_plain(type.value_type)), type.list_size)
    if pat.is_large_list(type) or pat.is_large_list_view(type):
        return pa.large_list(type.value_field.with_type(_plain(type.value_type)))
    if pat.is_list(type) or pat.is_list_view(type):
        return pa.list_(type.value_field.with_type(_plain(type.value_type)))
    return type


def _inner(type: pa.DataType) -> list[pa.DataType]:
    """The types that a type is made of, one level down."""
    if isinstance(type, pa.BaseExtensionType):
        return [type.storage_type]
    if pat.is_dictionary(type):
        return [type.value_type]
    return [type.field(place).type for place in range(type.num_fields)]


def _parts(type: pa.DataType) -> Iterator[pa.DataType]:
    yield type
    for own in _inner(type):
        yield from _parts(own)


@lru_cache
def column_trouble(type: pa.DataType) -> str | None:
    """Why a column of this type can't be carried into the output; None where it can."""
    for own in _parts(type):
        twice = [name for name, times in Counter(own.names).items() if times > 1] if pat.is_struct(own) else []
        if twice:
            return f"has two fields of the name {twice[0]!r}; rename one"
        if pat.is_timestamp(own) and own.tz is not None:
            try:
                pa.scalar(0, pa.timestamp("s", own.tz)).as_py()
            except (pa.ArrowException, ValueError, KeyError, OSError):
                return f"has the time zone {own.tz!r}, which isn't known here; use UTC"
    try:
        pq.write_table(pa.schema([("x", type)]).empty_table(), io.BytesIO())
    except pa.ArrowException as error:
        return f"has type {type}, which can't be written to Parquet ({error}); cast or drop it"
    return None


def _is_checked(type: pa.DataType) -> bool:
    """Whether there are values of the type that can't be taken."""
    return any(_is_text(own) or _bounds(own) is not None for own in _parts(type))


def _is_text(type: pa.DataType) -> bool:
    return bool(pat.is_string(type) or pat.is_large_string(type) or pat.is_string_view(type))


@lru_cache
def is_python(type: pa.DataType) -> bool:
    """Whether Python has all values of a type as they are: it has no nanoseconds, and nothing of extensions."""
    lossy = any(isinstance(own, pa.BaseExtensionType) or "[ns" in str(own) for own in _parts(type))
    return not lossy


# --- values ---


def checked_columns(extra: pa.Schema, schemas: Sequence[pa.Schema]) -> list[str]:
    """The columns whose values must be looked at, because some could not be written or read."""
    return [
        own.name
        for own in extra
        if _is_checked(own.type)
        or any(decoded(file.field(own.name)).type != own.type for file in schemas if own.name in file.names)
    ]


def value_problems(batch: pa.RecordBatch, extra: pa.Schema) -> Iterator[tuple[int, str, Any, str]]:
    """Offset, column, value and trouble of each value in a block that can't be carried into the output."""
    for name in batch.schema.names:
        if name not in extra.names:
            continue
        column, type = batch.column(name), extra.field(name).type
        for find in (_text_trouble, _time_trouble, lambda values, type=type: _cast_trouble(values, type)):
            if find(column) is None:
                continue
            rows = [(offset, find(column.take(pa.array([offset])))) for offset in range(len(column))]
            yield from ((offset, name, _shown(column[offset]), told) for offset, told in rows if told is not None)
            break


def _text_trouble(values: pa.Array) -> str | None:
    if not any(map(_is_text, _parts(values.type))):
        return None
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return "isn't UTF-8; write the text anew, or make the column binary"
    return None


def _time_trouble(values: pa.Array) -> str | None:
    return _YEARS if any(map(_is_beyond, _leaves(values))) else None


def _leaves(values: pa.Array) -> Iterator[pa.Array]:
    """What nested values hold, with the values under nulls left out."""
    type = values.type
    if not _is_checked(type):
        return
    if isinstance(type, pa.BaseExtensionType):
        yield from _leaves(values.storage)
    elif pat.is_dictionary(type):
        yield from _leaves(values.dictionary_decode())
    elif pat.is_struct(type):
        for part in values.flatten():
            yield from _leaves(part)
    elif pat.is_map(type):
        entries = pa.struct([("key", type.key_type), ("value", type.item_type)])
        yield from _leaves(values.cast(pa.list_(entries)))
    elif type.num_fields:
        yield from _leaves(pc.list_flatten(values))
    else:
        yield values


def _bounds(type: pa.DataType) -> tuple[int, int, pa.DataType] | None:
    """The least and the largest number that Python surely has as a value of this type, and the type of the numbers."""
    if pat.is_date32(type):
        return _FIRST // _DAY, _LAST // _DAY, pa.int32()
    if pat.is_date64(type):
        return _FIRST * 1000, _LAST * 1000, pa.int64()
    if pat.is_timestamp(type):
        return _FIRST * _PER_SECOND[type.unit], _LAST * _PER_SECOND[type.unit], pa.int64()
    if pat.is_duration(type) and type.unit in ("s", "ms", "us"):
        return -(10**13) * _PER_SECOND[type.unit], 10**13 * _PER_SECOND[type.unit], pa.int64()
    return None


def _is_beyond(values: pa.Array) -> bool:
    bounds = _bounds(values.type)
    if bounds is None:
        return False
    least, most, number = bounds
    found = pc.min_max(values.view(number)).as_py()
    if found["min"] is None or (found["min"] >= least and found["max"] <= most):
        return False
    return any(not _has_python(value) for value in values)


def _has_python(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except (OverflowError, ValueError) as error:
        return "nanosecond" in str(error).lower()  # of those Python has the whole microseconds
    return True


def _cast_trouble(values: pa.Array, type: pa.DataType) -> str | None:
    try:
        _cast(values, type)
    except (pa.ArrowException, OverflowError, ValueError) as error:
        return (
            f"doesn't fit {type}, the type that the set's files give the column together ({error}); give all one type"
        )
    return None


def _cast(values: pa.Array, type: pa.DataType) -> pa.Array:
    if pat.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.type == type:
        return values
    if pat.is_decimal(type) and pat.is_integer(values.type):  # Arrow asks for places for all integers of their type
        values = values.cast(pa.decimal256(76, type.scale))
    try:
        return values.cast(type)
    except pa.ArrowNotImplementedError:  # of nested values
        return pa.array(values.to_pylist(), type)


def _shown(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (pa.ArrowException, ValueError, OverflowError):
        pass
    for type in (pa.binary(), pa.int64(), pa.int32()):
        try:
            return value.cast(type).as_py()
        except pa.ArrowException:
            continue
    return str(value.type)


def cast_batch(batch: pa.RecordBatch, extra: pa.Schema, block: Block) -> pa.RecordBatch:
    """A block with its columns in the set's types. Raises PromptSetError for the first value that doesn't fit."""
    for place, own in enumerate(batch.schema):
        if own.name not in extra.names or own.type == extra.field(own.name).type:
            continue
        try:
            column = _cast(batch.column(place), extra.field(own.name).type)
        except (pa.ArrowException, OverflowError, ValueError) as error:
            offset, name, value, told = next(
                value_problems(batch.select([own.name]), extra), (0, own.name, "", str(error))
            )
            row = f"{block.file.path}, row {block.number + offset}"
            raise PromptSetError(f"{row}, column {name!r}: {value!r}: {told}") from error
        batch = batch.set_column(place, extra.field(own.name), column)
    return batch
