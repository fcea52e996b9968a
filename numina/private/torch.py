"""torch's private names."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from numina.private.library import Library

TORCH = Library("torch", ">=2.11,<2.14")


def mark_dynamic(x: Tensor, dim: int) -> None:
    """Tells torch.compile that this length varies, where it can be told."""
    TORCH.private(TORCH.private(torch, "_dynamo"), "maybe_mark_dynamic")(x, dim)


def mark_static(x: Tensor, dim: int) -> None:
    """Tells torch.compile that every length is a graph of its own."""
    TORCH.private(TORCH.private(torch, "_dynamo"), "mark_static")(x, dim)


def allow_graphs(number: int) -> None:
    """How many graphs torch.compile makes of one function, at least, before it gives up."""
    config = TORCH.private(torch, "_dynamo").config
    config.cache_size_limit = max(number, config.cache_size_limit)


def attention_kernels() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The kernels behind `scaled_dot_product_attention` that give log-sum-exps, too: of CPUs, cuDNN's, and the one
    that takes a mask."""
    names = ("flash_attention_for_cpu", "cudnn_attention", "efficient_attention")
    cpu, cudnn, efficient = (TORCH.private(torch.ops.aten, f"_scaled_dot_product_{name}") for name in names)
    return cpu, cudnn, efficient


def collective_sum() -> Callable[[Tensor, str, Any], Tensor]:
    """An all-reduce that is a node of a compiled graph, and is waited for where its result is first used."""
    collectives = TORCH.module("torch.distributed._functional_collectives")
    found: Callable[[Tensor, str, Any], Tensor] = TORCH.private(collectives, "all_reduce")
    return found


def joined_axes(mesh: Any) -> Any:
    """A device mesh of several axes as one axis."""
    return TORCH.private(mesh, "_flatten")()


def limit_groups(timeout: timedelta) -> None:
    """How long a collective of any process group of this process may wait, from now on."""
    import torch.distributed as dist

    limit = TORCH.private(dist.distributed_c10d, "_set_pg_timeout")
    for group in list(TORCH.private(dist.distributed_c10d, "_world").pg_map):
        limit(timeout, group)
