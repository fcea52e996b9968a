"""Numbers that no setting can have, whichever it is: one check for all of them, when a configuration is loaded."""

from math import isfinite
from typing import Any

from numina.errors import ConfigError

LARGEST_FLOAT = 3.4028234663852886e38  # of 32 bits, in which models and arrays compute
LARGEST_INT = 2**63 - 1  # of 64 bits, as columns and seeds have


def check_numbers(settings: Any, key: str = "") -> None:
    """Raises ConfigError, with the key, for a number among nested settings that isn't finite or too large to compute
    with. Each class of settings then checks its own ranges."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            check_numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(settings, list):
        for place, value in enumerate(settings):
            check_numbers(value, f"{key}[{place}]")
    elif isinstance(settings, float) and not isfinite(settings):
        raise ConfigError(f"{key} is {settings}; it must be a finite number: correct it, or leave it out")
    elif isinstance(settings, float) and abs(settings) > LARGEST_FLOAT:
        raise ConfigError(f"{key} is {settings:g}; numbers of 32 bits end at {LARGEST_FLOAT:.2g}: give a smaller one")
    elif isinstance(settings, int) and abs(settings) > LARGEST_INT:
        raise ConfigError(f"{key} is {settings}; whole numbers end at 2**63 - 1: give a smaller one")
