"""The values that a setting may have, from its own `Literal`: nothing beside the field repeats them."""

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from numina.errors import ConfigError


@cache
def choices_of(config: Hashable) -> Mapping[str, tuple[Any, ...]]:
    """By the name of each field of a dataclass that is a `Literal`, its values."""
    return {name: get_args(hint) for name, hint in get_type_hints(config).items() if get_origin(hint) is Literal}


def check_choices(section: str, config: Any) -> None:
    """Raises ConfigError where such a field of `config` holds another value; `section` is its place in a job, "" the
    job itself."""
    for name, choices in choices_of(config.__class__).items():
        if (value := getattr(config, name)) not in choices:
            key = f"{section}.{name}" if section else name
            raise ConfigError(f"{key} is {value!r}; choose from {', '.join(choices)}")
