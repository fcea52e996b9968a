"""The settings of a config dataclass: their keys, types, defaults, units and meanings.

A field's meaning is written once, as a comment beside the field or above it, with its unit first, in brackets:

    step_timeout: float = 120.0  # [s] that a rank may be silent

`inspect` reads the comments from the source files, which wheels carry too.
"""

import inspect
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

REQUIRED = object()  # in place of a default


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of a configuration; a section holds the keys that follow under its own."""

    key: str  # dotted: method.guide.add
    kind: str  # its type in YAML's words: int, float or null, a | b | c; "section"
    default: Any  # None for null and for sections; REQUIRED where there is none
    unit: str  # "" where it has none
    meaning: str

    @property
    def is_section(self) -> bool:
        return self.kind == "section"

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED

    @property
    def text(self) -> str:
        """Unit and meaning, as a comment shows them."""
        return f"[{self.unit}] {self.meaning}" if self.unit else self.meaning


def settings_of(config: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a nested config dataclass, sections before their keys, in the order of its fields.

    The keys of listed dataclasses, such as model.loras, follow the list: model.loras[].path.
    """
    hints: dict[str, Any] = get_type_hints(config)
    meanings = _comments(config)
    for item in fields(config):
        key, kind = prefix + item.name, hints[item.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield Setting(key=key, kind="section", default=None, unit="", meaning=_purpose(kind))
            yield from settings_of(kind, f"{key}.")
            continue
        unit, meaning = _split(meanings.get(item.name, ""))
        yield Setting(key=key, kind=_kind(kind), default=_default(item), unit=unit, meaning=meaning)
        if get_origin(kind) is list and is_dataclass(get_args(kind)[0]):
            yield from settings_of(get_args(kind)[0], f"{key}[].")


def _default(item: "Field[Any]") -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return REQUIRED if item.default is MISSING else item.default


def _kind(kind: Any) -> str:
    """A type in YAML's words."""
    if get_origin(kind) in (UnionType, Union):
        return " or ".join(_kind(part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    if get_origin(kind) is list:
        return "list"
    if get_origin(kind) is dict:
        return "mapping"
    return "null" if kind is NoneType else str(kind.__name__)


def _purpose(config: type) -> str:
    """The first line of a config's docstring."""
    return (config.__doc__ or "").splitlines()[0].rstrip(".")


def _split(comment: str) -> tuple[str, str]:
    """A comment's unit and meaning."""
    if comment.startswith("["):
        unit, _, meaning = comment[1:].partition("]")
        return unit, meaning.strip()
    return "", comment


@cache
def _comments(config: type) -> Mapping[str, str]:
    """Each field's comment: the lines above it and the one beside it, joined."""
    found, comments = dict[str, str](), list[str]()
    name, depth = "", 0  # the first word of a statement, and how deep it is indented
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(config)).readline):
        if token.type == tokenize.COMMENT:
            comments.append(token.string.lstrip("# "))
        elif token.type == tokenize.NAME:
            name = name or token.string
        elif token.type in (tokenize.INDENT, tokenize.DEDENT):
            depth += 1 if token.type == tokenize.INDENT else -1
        elif token.type == tokenize.NEWLINE:
            if depth == 1:
                found[name] = " ".join(comments)
            name, comments = "", []
    return found
