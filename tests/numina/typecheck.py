"""The type checker that tests put on numina's signatures."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int where a float is asked for is fine, as for mypy
