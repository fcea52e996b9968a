"""A prompt set's own columns in an export: named so that no reader takes them for something else, typed so that it can.

One rule for every format: a reserved name gets `set_` in front; a name that ends in `_file_name` or `_file_names`, by
which Hugging Face's builders find files, loses its `_name` or `_names`. A name that is taken then gets a number.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from cluster.rows import python_rows

RESERVED = (
    *("video", "videos", "image", "images", "audio", "audios"),  # what Hugging Face's builders call a row's file
    *("key", "url", "json", "txt", "mp4", "cls"),  # WebDataset's: what it names a sample by, and the parts of one
    *("file_name", "file_names"),
    "",
)
_INTERNAL = re.compile(r"__.*__")  # WebDataset's `__key__`, `__url__`, `__local_path__` …
_FILE = re.compile(r"(.*file)_names?", re.DOTALL)


def renamed(names: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """Of a set's own columns those that have another name in an export, with it; `taken` are the export's own."""
    reserved = {name for name in names if _is_reserved(name) or name in taken}
    used, found = {*taken, *names} - reserved | {*taken}, dict[str, str]()
    for name in sorted(reserved):
        match = _FILE.fullmatch(name)
        new = wanted = match[1] if match and name not in taken else f"set_{name or 'column'}"
        number = 2
        while new in used or _is_reserved(new):
            new, number = f"{wanted}_{number}", number + 1
        used.add(new)
        found[name] = new
    return found


def _is_reserved(name: str) -> bool:
    return name in RESERVED or bool(_INTERNAL.fullmatch(name) or _FILE.fullmatch(name))


def notes_of(names: dict[str, str]) -> tuple[str, ...]:
    """What a user is told of columns that have other names."""
    return tuple(
        f"the prompt set's column {old!r} is {new!r} in this export: its name is reserved" for old, new in names.items()
    )


# --- types ---


def _retyped(type: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type with each type in it replaced; without extensions, dictionaries and maps."""
    if isinstance(type, pa.BaseExtensionType):
        return _retyped(type.storage_type, leaf)
    if pat.is_dictionary(type):
        return _retyped(type.value_type, leaf)
    if pat.is_struct(type):
        return pa.struct([own.with_type(_retyped(own.type, leaf)) for own in type])
    if pat.is_map(type):
        entry = [("key", _retyped(type.key_type, leaf)), ("value", _retyped(type.item_type, leaf))]
        return pa.list_(pa.struct(entry))
    if pat.is_fixed_size_list(type):
        return pa.list_(_retyped(type.value_type, leaf), type.list_size)
    if type.num_fields:
        return pa.list_(_retyped(type.value_type, leaf))
    return leaf(type)


def _common(type: pa.DataType) -> pa.DataType:
    """A type that Hugging Face's `datasets` has."""
    if pat.is_fixed_size_binary(type) or pat.is_binary_view(type):
        return pa.binary()
    if pat.is_string_view(type):
        return pa.string()
    if isinstance(type, pa.Decimal32Type | pa.Decimal64Type):
        return pa.decimal128(type.precision, type.scale)
    return type


def common_types(rows: pa.Table, names: Collection[str]) -> tuple[pa.Table, tuple[str, ...]]:
    """The rows with these columns as types that Hugging Face's `datasets` has, and notes on fields that are renamed:
    it looks for files in nested fields too."""
    notes = list[str]()
    for name in names:
        column = _cast(rows[name], _retyped(rows.schema.field(name).type, _common))
        if pat.is_uint64(column.type) and (pc.max(column).as_py() or 0) >= 2**63:  # `datasets` reads integers as int64
            column = column.cast(pa.decimal128(20))
        type = _renamed_fields(column.type, name, notes)
        if type != rows.schema.field(name).type:
            column = pa.chunked_array([chunk.view(type) for chunk in column.chunks], type)
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows, tuple(notes)


def _renamed_fields(type: pa.DataType, path: str, notes: list[str]) -> pa.DataType:
    if pat.is_struct(type):
        others = [own.name for own in type]
        names = renamed([name for name in others if _FILE.fullmatch(name)], ())
        for old, new in names.items():
            while new in others:
                new = names[old] = f"{new}_2"
            notes.append(f"the field {old!r} of {path!r} is {new!r} in this export: its name is reserved")
        fields = [
            pa.field(names.get(own.name, own.name), _renamed_fields(own.type, f"{path}.{own.name}", notes))
            for own in type
        ]
        return pa.struct(fields)
    if pat.is_fixed_size_list(type):
        return pa.list_(_renamed_fields(type.value_type, path, notes), type.list_size)
    return pa.list_(_renamed_fields(type.value_type, path, notes)) if pat.is_list(type) else type


def _cast(column: pa.ChunkedArray, type: pa.DataType) -> pa.ChunkedArray:
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column if column.type == type else column.cast(type)


# --- JSON ---


def _exact(type: pa.DataType) -> pa.DataType:
    """Times in nanoseconds, which Python hasn't, as text."""
    nanoseconds = pat.is_temporal(type) and not pat.is_date(type) and getattr(type, "unit", None) == "ns"
    return pa.string() if nanoseconds else type


def json_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """Each row as values that `json_bytes` can write."""
    for place, own in enumerate(rows.schema):
        column = _cast(rows.column(place), _retyped(own.type, _exact))
        rows = rows.set_column(place, own.name, column)
    return python_rows(rows)


def json_bytes(row: dict[str, Any]) -> bytes:
    """A row as strict JSON, its names sorted.

    NaN and infinities are null, bytes are base64, times ISO 8601, durations seconds, decimals text; durations in
    nanoseconds, which Python hasn't, are their number in text.
    """
    return orjson.dumps(row, default=_json, option=orjson.OPT_SORT_KEYS)


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
