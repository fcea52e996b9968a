"""Rows that ranks exchange, between real processes with gloo: each gets what it would have cut from the whole."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as nnf

from pipelines.video.bands import Band
from tests.pipelines.ranks import spawn

ROWS = 7  # over 3 ranks: 3, 2 and 2


def work(rank: int, folder: Path) -> None:
    band = Band.of(dist.group.WORLD, ROWS)
    assert band is not None
    assert band.rows == (3, 2, 2)
    first, count = sum(band.rows[:rank]), band.rows[rank]
    for scale in (1, 2):  # frames are higher than their latents
        for shape in ((2, 3, 4, scale * ROWS, 5), (2, 3, scale * ROWS, 5)):  # clips, and frames apart
            whole = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape) + 1
            own = whole.narrow(-2, scale * first, scale * count)
            expected = nnf.pad(whole, (0, 0, 1, 1)).narrow(-2, scale * first, scale * count + 2)
            assert torch.equal(band.with_neighbours(own), expected)
            last = own.movedim(1, -1).contiguous().movedim(-1, 1)
            assert torch.equal(band.with_neighbours(last), expected), "channels last"
            longer = torch.full((*shape[:-2], scale * count + 4, 5), -1.0)
            part = longer[..., 1:-1, :]  # rows of a larger tensor
            part[..., 1:-1, :] = own
            band.fill(part)
            assert torch.equal(part, expected)
            assert {*longer[..., [0, -1], :].unique().tolist()} == {-1.0}, "rows around were written"
            if scale == 1:
                assert torch.equal(band.cut(whole), expected)
            dim = len(shape) - 2
            assert torch.equal(band.gathered(own.contiguous(), dim), whole)
            found = band.gathered(own.contiguous(), dim, leader_only=True)
            assert torch.equal(found, whole if rank == 0 else own)
    assert Band.of(dist.group.WORLD, 2) is None, "a band without a row"
    (folder / f"{rank} done").touch()


def test_ranks_have_what_they_would_cut_from_the_whole(tmp_path: Path) -> None:
    """Uneven bands at two heights, clips and frames, in either order of memory; zeros beyond the frame."""
    spawn(work, 3, tmp_path / "ranks", tmp_path)
    assert len([*tmp_path.glob("* done")]) == 3
