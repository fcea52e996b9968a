"""Values of settings, read by the settings' types: from a command line's text and from the scalars of a YAML file.

YAML alone would rewrite text: to it 20261128_120000 is a number, `no` is false, 010 is 8, and ` #` begins a comment.

    str             the text as it is: on a command line all that follows the `=`, in a file the scalar's own text
    str or null     the same, but null is no value; a file's "null" in quotes is text
    int, float      a decimal number; 010 is 10
    bool            true or false
    a | b           one of these
    int or a        a decimal number, or the word
    list, mapping   YAML on a command line, too; each part is read by its own type
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from math import isfinite
from types import GenericAlias, NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from numina.errors import ConfigError

HOLDS = "holds"  # in a field's metadata: the kind of what the field holds, if its type says less
UNKNOWN = object()  # the kind of a key that no config class has

_NULL = "tag:yaml.org,2002:null"
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "value")}
_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_RULES: Mapping[Any, str] = {
    int: "give a whole number of decimal digits, for example 8",
    float: "give a finite decimal number, for example 0.5",
    bool: "give true or false",
    str: "give text, in a file in quotes",
}
_INT64 = 2**63
_A_MAPPING, _A_LIST = "a mapping", "a list"
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Grid:
    """A section each of whose values may be a list of values instead."""

    of: Any


def kind_at(config: type, key: str) -> Any:
    """The kind of a dotted key of a config dataclass; UNKNOWN if it has no such key.

    Raises ConfigError if the key leads into a single value or to an element of a list.
    """
    kind: Any = config
    path = key.split(".")
    for depth, name in enumerate(path):
        if not _is_section(kind) and kind is not UNKNOWN:
            outer = ".".join(path[:depth])
            whole = (
                f"give the whole list, for example {outer}=[a,b]" if _origin(kind) is list else f"set {outer} itself"
            )
            raise ConfigError(f"{key!r} is no key: {outer} has no keys of its own; {whole}")
        kind = _part(kind, name)
    return kind


def read_text(key: str, text: str, kind: Any) -> Any:
    """The value that a command line's text stands for: plain lists, mappings and scalars. Raises ConfigError.

    Raises YAMLError if a list or a mapping isn't YAML.
    """
    if isinstance(kind, Grid) and not is_dataclass(kind.of):
        return read_text(key, text, GenericAlias(list, (kind.of,)) if text.lstrip().startswith("[") else kind.of)
    if _is_section(kind) or _origin(kind) is list:
        node = yaml.compose(text, yaml.SafeLoader)
        return read_node(key, node, kind, raw=True) if node is not None else _refuse(key, text, kind)
    return _raw(key, _scalar(key, text, kind, is_null=text == "null"))


def read_node(key: str, node: yaml.Node, kind: Any, *, raw: bool = False) -> Any:
    """The value of a YAML node: plain lists, mappings and scalars. Raises ConfigError.

    In a file, ${KEY} is another key's value and ??? one that is still to be given; where text is `raw`, they are text.
    """
    if isinstance(kind, Grid) and not is_dataclass(kind.of):
        if isinstance(node, yaml.SequenceNode):
            return [read_node(key, item, kind.of, raw=raw) for item in node.value]
        return read_node(key, node, kind.of, raw=raw)
    if isinstance(node, yaml.MappingNode):
        if not _is_section(kind) and kind is not UNKNOWN:
            return _refuse(key, _A_MAPPING, kind)
        yaml.constructor.SafeConstructor().flatten_mapping(node)  # <<: *other
        return {
            (name := _name_of(key, own)): read_node(f"{key}.{name}" if key else name, value, _part(kind, name), raw=raw)
            for own, value in node.value
        }
    if isinstance(node, yaml.SequenceNode):
        if _origin(kind) is not list and kind is not UNKNOWN:
            return _refuse(key, _A_LIST, kind)
        element = UNKNOWN if kind is UNKNOWN else get_args(kind)[0]
        return [read_node(f"{key}[{place}]", item, element, raw=raw) for place, item in enumerate(node.value)]
    if node.tag not in _PLAIN_TAGS:
        return _refuse(key, f"{node.tag} {node.value}", kind)
    is_null = node.tag == _NULL
    if _is_section(kind) and is_null and not raw:
        return {}  # a section all of whose keys are comments
    if _is_section(kind) or _origin(kind) is list:
        return _refuse(key, node.value or "null", kind)
    if not raw and ("${" in node.value or node.value == "???"):
        return node.value
    if is_null and not _optional(kind)[0]:
        return _refuse(key, "null", kind)
    value = _scalar(key, node.value, kind, is_null=is_null)
    return _raw(key, value) if raw else value


def _raw(key: str, value: Any) -> Any:
    if value == "???":
        raise ConfigError(
            f"{key} is '???', which stands for a value that is still to be given; give one, a path as ./???"
        )
    return literal(value) if isinstance(value, str) else value


def literal(text: str) -> str:
    """Text as OmegaConf takes it without looking for interpolations in it."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def _scalar(key: str, text: str, kind: Any, *, is_null: bool) -> Any:
    optional, kind = _optional(kind)
    if optional and is_null:
        return None
    if _origin(kind) in (UnionType, Union):
        if text in _words(kind):
            return text
        kind = int if _WHOLE.fullmatch(text.strip()) else kind
    if kind is str or kind is UNKNOWN:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{key} is {text!r}, which isn't UTF-8; give text in UTF-8") from None
        return text
    bare = text.strip()
    if kind is bool and bare.lower() in ("true", "false") and bare in (bare.lower(), bare.upper(), bare.title()):
        return bare.lower() == "true"
    if kind is int and _WHOLE.fullmatch(bare):
        if len(bare.lstrip("+-0")) > 19 or not -_INT64 <= int(bare) < _INT64:
            raise ConfigError(f"{key} is {_shown(text)}; give a whole number of at most 64 bits")
        return int(bare)
    if kind is float and _DECIMAL.fullmatch(bare) and isfinite(number := float(bare)):
        return int(bare) if _WHOLE.fullmatch(bare) and abs(number) < 2**53 else number
    if _origin(kind) is Literal and text in get_args(kind):
        return text
    return _refuse(key, text, kind, optional)


def _refuse(key: str, given: str, kind: Any, optional: bool = False) -> Any:
    optional, kind = (optional or _optional(kind)[0]), _optional(kind)[1]
    if _origin(kind) is Literal:
        rule = f"choose from {', '.join(get_args(kind))}"
    elif _origin(kind) is list:
        rule = "give a list, for example [a,b]"
    elif _is_section(kind):
        rule = "it is a section: give its keys, for example " + (
            f"{key}.{_first_key(kind)}=…" if _first_key(kind) else f"{key}.NAME=…"
        )
    elif _origin(kind) in (UnionType, Union):
        rule = f"{_RULES[int]}, or {', '.join(_words(kind))}"
    else:
        rule = _RULES[kind]
    shown = given if given in (_A_MAPPING, _A_LIST) else _shown(given)
    raise ConfigError(f"{key} is {shown}; {rule}" + (", or null" if optional else ""))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _name_of(key: str, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{key or 'the file'} has a key that is a list or a mapping; give names as keys")
    return str(node.value)


# --- kinds: types, and what stands for one ---


def _is_section(kind: Any) -> bool:
    return (isinstance(kind, Grid) and is_dataclass(kind.of)) or is_dataclass(kind) or _origin(kind) is dict


def _part(kind: Any, name: str) -> Any:
    """The kind of one key of a section."""
    if kind is UNKNOWN:
        return UNKNOWN
    if isinstance(kind, Grid):
        part = _part(kind.of, name)
        return part if part is UNKNOWN else Grid(part)
    return get_args(kind)[1] if _origin(kind) is dict else _kinds(cast(type, kind)).get(name, UNKNOWN)


@cache
def _kinds(config: type) -> Mapping[str, Any]:
    hints = get_type_hints(config)
    return {item.name: item.metadata.get(HOLDS, hints[item.name]) for item in fields(config)}


def _first_key(kind: Any) -> str:
    kind = kind.of if isinstance(kind, Grid) else kind
    return next(iter(_kinds(cast(type, kind)))) if is_dataclass(kind) else ""


def _optional(kind: Any) -> tuple[bool, Any]:
    """Whether null is a value, and the kind without it. A number or a word is a kind of its own."""
    if _origin(kind) in (UnionType, Union):
        parts: Sequence[Any] = [part for part in get_args(kind) if part is not NoneType]
        if len(parts) == 1:
            return True, parts[0]
        assert len(parts) == len(get_args(kind)), f"{kind} is more than one kind or null"
        assert all(part is int or _origin(part) is Literal for part in parts), f"{kind} is no number or word"
    return False, kind


def _words(kind: Any) -> list[str]:
    """The words that stand beside a number."""
    return [word for part in get_args(kind) if _origin(part) is Literal for word in get_args(part)]


def _origin(kind: Any) -> Any:
    return get_origin(kind)
