"""xfuser's private names. It is imported by whoever calls, and handed over: it can't be imported without a GPU."""

from typing import Any

from numina.private.library import Library

XFUSER = Library("xfuser", "==0.7.0")


def set_runtime(runtime_state: Any, state: Any) -> None:
    """Makes `state` what `get_runtime_state` gives."""
    XFUSER.private(runtime_state, "_RUNTIME")
    runtime_state._RUNTIME = state
