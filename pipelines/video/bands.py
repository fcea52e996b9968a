"""Frames shared out by rows: each rank of a group has a band of them, and what it needs of the others' comes from them.

Names: B clips, C channels, f frames, H W rows and columns. Heights are those of the latents times any scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor

HALO = 1  # rows that a convolution needs of each neighbour: all kernels of Wan's decoders are 3 rows high


def shares(height: int, ranks: int) -> tuple[int, ...]:
    """Rows of each rank: as even as they can be, the first ones with one more."""
    return tuple(height // ranks + (rank < height % ranks) for rank in range(ranks))


@dataclass(frozen=True)
class Band:
    """One rank's rows. Every method that talks to other ranks is called by all of them, with tensors of one dtype."""

    group: Any
    rank: int  # in the group
    rows: tuple[int, ...]  # latent, of every rank

    @classmethod
    def of(cls, group: Any, height: int) -> "Band | None":
        """This rank's of so many latent rows; None where a band would be thinner than what its neighbours need."""
        ranks = dist.get_world_size(group)
        if height // ranks < HALO:
            return None
        return cls(group, dist.get_rank(group), shares(height, ranks))

    def cut(self, latents: Tensor) -> Tensor:
        """[..., h, w] → this rank's rows with its neighbours', zeros beyond the frame. Nothing is exchanged."""
        first = sum(self.rows[: self.rank])
        return nnf.pad(latents, (0, 0, HALO, HALO)).narrow(-2, first, self.rows[self.rank] + 2 * HALO)

    def with_neighbours(self, x: Tensor) -> Tensor:
        """[B, C, ..., H, W] → [B, C, ..., H + 2, W]: a copy with a row of each neighbour; see `fill`."""
        x = nnf.pad(x, (0, 0, HALO, HALO))
        self.fill(x)
        return x

    def fill(self, x: Tensor) -> None:
        """Writes the neighbours' nearest rows into the first and the last row of [B, C, ..., H + 2, W], in place.

        Beyond the frame they become zeros, as a convolution pads. One exchange.
        """
        rows = x.movedim(1, -1)  # channels last: there, a row is one piece of memory
        last = rows.shape[-3] - 1
        sent, received = {}, {}
        for rank, outer, inner in ((self.rank - 1, 0, HALO), (self.rank + 1, last, last - HALO)):
            if 0 <= rank < len(self.rows):
                sent[rank] = rows.select(-3, inner).contiguous()
                received[rank] = rows.select(-3, outer), sent[rank].new_empty(sent[rank].shape)
            else:
                rows.select(-3, outer).zero_()
        self._exchange(sent, {rank: row for rank, (_, row) in received.items()})
        for place, row in received.values():
            place.copy_(row)

    def gathered(self, own: Tensor, dim: int, *, leader_only: bool = False) -> Tensor:
        """All ranks' bands joined along a dimension, on every rank; or on the first, and others keep their own.

        `own` is contiguous. One exchange; bands of different heights need no padding.
        """
        ranks = range(len(self.rows))
        receivers = ranks[:1] if leader_only else ranks
        scale = own.shape[dim] // self.rows[self.rank]
        bands = [own]
        if self.rank in receivers:
            shapes = ((*own.shape[:dim], scale * count, *own.shape[dim + 1 :]) for count in self.rows)
            bands = [own if rank == self.rank else own.new_empty(shape) for rank, shape in enumerate(shapes)]
        others = [rank for rank in ranks if rank != self.rank]
        self._exchange(
            {rank: own for rank in others if rank in receivers},
            {rank: bands[rank] for rank in others if self.rank in receivers},
        )
        return torch.cat(bands, dim)

    def _exchange(self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor]) -> None:
        """To and from ranks, as one batch: NCCL then uses the group's own communicator."""
        ops = [dist.P2POp(dist.isend, row, group=self.group, group_peer=rank) for rank, row in sent.items()]
        ops += [dist.P2POp(dist.irecv, row, group=self.group, group_peer=rank) for rank, row in received.items()]
        for transfer in dist.batch_isend_irecv(ops):
            transfer.wait()
