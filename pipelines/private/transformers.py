"""transformers' private names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from numina.private.library import Library

TRANSFORMERS = Library("transformers", ">=5.17,<5.24")


def from_config(kind: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """A model as its config describes it, in a dtype."""
    module: nn.Module = TRANSFORMERS.private(kind, "_from_config")(config, dtype=dtype)
    return module


def dtype_plan(module: Any, dtype: torch.dtype) -> Mapping[str, torch.dtype]:
    """Globs of the names of tensors that a model of `dtype` keeps in another one, and that."""
    plan: Mapping[str, torch.dtype] = TRANSFORMERS.private(module, "_get_dtype_plan")(dtype)
    return plan


def ignored_keys(module: Any) -> Sequence[str]:
    """Patterns of tensors that files may hold and the model doesn't."""
    return TRANSFORMERS.private(module, "_keys_to_ignore_on_load_unexpected") or ()
