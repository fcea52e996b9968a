"""DeepSpeed's private names. It is imported by whoever calls, and handed over: that takes seconds."""

from collections import defaultdict
from typing import Any

from numina.private.library import Library

DEEPSPEED = Library("deepspeed", "==0.19.8")


def share(shares: Any, parameter: Any) -> None:
    """Makes a parameter one that `deepspeed.zero.Init` keeps in shares."""
    DEEPSPEED.private(shares, "_convert_to_deepspeed_param")(parameter)


def build_no_ops(deepspeed: Any) -> None:
    """Keeps DeepSpeed from looking for a compiler and building a collective for CPUs, which takes a minute."""
    vars(deepspeed.ops).setdefault("__compatible_ops__", defaultdict(bool))
