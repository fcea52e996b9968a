"""Muon: momentum whose matrix updates are orthogonalised, https://kellerjordan.github.io/posts/muon/.

PyTorch's own takes 2-D parameters only and one at a time; here convolutions are flattened to matrices, and all of one
shape are orthogonalised together, which is what makes a step of a small model cheap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor) -> Tensor:
    """Semi-orthogonal matrices near those of [n, rows, columns], by five quintic Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """`lr` is the size of a singular value of the update, times sqrt(rows / columns) for tall matrices."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update, with Nesterov momentum."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter.grad)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                by_shape[(update.shape[0], update.shape[1])].append((parameter, update))
            for (rows, columns), entries in by_shape.items():
                updates = orthogonalise(torch.stack([update for _, update in entries]))
                step = -group["lr"] * max(1.0, rows / columns) ** 0.5
                for (parameter, _), update in zip(entries, updates, strict=True):
                    parameter.add_(update.view_as(parameter), alpha=step)
