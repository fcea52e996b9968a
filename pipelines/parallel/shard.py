"""How one clip is spread over the ranks of a gang, and the small collectives the method needs.

    rank = (branch · ring + ring rank) · ulysses + ulysses rank

The first axis is classifier-free guidance: the two branches of a step on different ranks, which hold the same rows. The
other two are the sequence: a rank holds a contiguous run of the clip's tokens (a frame may straddle two ranks) in all
layers but self-attention. `attention/engines.py` puts this into a model.

Names: B clips, n tokens, R ranks of the sequence, N heads, D head size.
"""

from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor

from numina.private.torch import collective_sum, limit_groups

_all_reduce = collective_sum()


@dataclass(frozen=True)
class Shard:
    """Where this rank stands in its gang; all groups are None for a single rank."""

    rank: int = 0  # in the sequence
    ranks: int = 1  # of the sequence
    group: Any = None  # those ranks
    branch: int | None = None  # 0 conditional, 1 unconditional; None: this rank runs both
    pair: Any = None  # the two ranks that hold the same rows of the two branches
    gang: Any = None  # all ranks of the gang

    @property
    def leads(self) -> bool:
        """Whether this is the gang's first rank, the one that answers for it."""
        return self.rank == 0 and self.conditional

    @property
    def conditional(self) -> bool:
        """Whether this rank runs the conditional branch: captures and guidance are made there alone."""
        return self.branch in (None, 0)

    def rows(self, tokens: int) -> slice:
        """The clip's tokens that this rank holds; where ranks don't divide them, the last ranks' reach past the end."""
        size = ceil(tokens / self.ranks)
        return slice(self.rank * size, (self.rank + 1) * size)

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This rank's rows of something all ranks hold; zeros past the end."""
        rows, tokens = self.rows(x.shape[dim]), x.shape[dim]
        part = x.narrow(dim, min(rows.start, tokens), max(0, min(rows.stop, tokens) - rows.start))
        return _lengthen(part, dim, rows.stop - rows.start)

    def present(self, tokens: int) -> int:
        """How many of this rank's rows are the clip's, and not padding."""
        rows = self.rows(tokens)
        return max(0, min(rows.stop, tokens) - rows.start)

    def heads(self, heads: int) -> slice:
        """The heads that this rank holds after `swap_rows_for_heads`; none, if there are fewer than ranks."""
        size = ceil(heads / self.ranks)
        return slice(min(heads, self.rank * size), min(heads, (self.rank + 1) * size))

    def swap_rows_for_heads(self, x: Tensor, tokens: int) -> Tensor:
        """All-to-all: own rows of all heads [..., n/R, N, D] → all rows of own heads [..., n, ⌈N/R⌉, D].

        Heads that ranks don't divide are filled up with zeros, at the end.
        """
        if self.ranks == 1:
            return x
        x = _lengthen(x, -2, ceil(x.shape[-2] / self.ranks) * self.ranks)
        sent = torch.stack(x.chunk(self.ranks, dim=-2)).contiguous()  # [R, ..., n/R, N/R, D]
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        return received.movedim(0, -4).flatten(-4, -3)[..., :tokens, :, :]

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """All ranks' parts, of one shape, joined along `dim` in rank order."""
        if self.ranks == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.ranks)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=dim)

    def gather_rows(self, x: Tensor, dim: int, tokens: int) -> Tensor:
        """All ranks' rows joined along `dim`, without what filled up the last ranks'."""
        return self.gather(x, dim).narrow(dim, 0, tokens)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks; on its way until it is first used, and a node of a compiled graph."""
        return x if self.ranks == 1 else _all_reduce(x, "sum", self.group)

    def exchange(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional prediction, from this rank's own and its pair's."""
        both = [torch.empty_like(velocity) for _ in range(2)]
        dist.all_gather(both, velocity.contiguous(), group=self.pair)
        conditional, unconditional = both
        return conditional, unconditional


ALONE = Shard()  # one rank, without a gang


def _lengthen(x: Tensor, dim: int, length: int) -> Tensor:
    """Zeros at the end of a dimension, up to `length`."""
    missing = length - x.shape[dim]
    if not missing:
        return x
    behind = x.ndim - 1 - dim % x.ndim
    return nnf.pad(x, [0, 0] * behind + [0, missing])


def limit_collectives(timeout: timedelta) -> None:
    """How long any collective of this process may wait from now on, in all of its groups; then the rank fails.

    NCCL ends the process, gloo raises: either way the gang is lost, instead of waiting for a rank that hangs.
    """
    limit_groups(timeout)
