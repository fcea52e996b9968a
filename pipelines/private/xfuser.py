"""xfuser's private names. It is imported by whoever calls, and handed over: it can't be imported without a GPU."""

from typing import Any

from numina.private.library import Library

XFUSER = Library("xfuser", "==0.7.0")


def set_runtime(runtime_state: Any, state: Any) -> None:
    """Makes `state` what `get_runtime_state` gives."""
    XFUSER.private(runtime_state, "_RUNTIME")
    runtime_state._RUNTIME = state


def give_flash3(backends: Any, package: Any) -> None:
    """Gives xDiT's attention of that name FlashAttention-3's functions. By itself it looks for another build, and once:
    when it is imported, by whomever."""
    XFUSER.private(backends, "_flash_attn_3_call")
    backends.flash_attn_func_3 = package.flash_attn_func
    backends.flash_attn_varlen_func_3 = package.flash_attn_varlen_func
