"""Ranks: real processes with gloo give what one process gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.errors import ConfigError
from numina.tokens import locate_tokens
from pipelines import denoise
from pipelines.base import Grid
from pipelines.parallel import ParallelConfig, Shard, check_divides, parallelize
from pipelines.wan import WanModel
from tests.pipelines.conftest import GENERATION, PROMPT, TARGETS
from tests.pipelines.test_denoise import some_plan

METHOD = MethodConfig(identify=IdentifyConfig(source="clusters"))


def run_phases(model: WanModel, shard: Shard) -> dict[str, np.ndarray]:
    """Identification, continuation and guidance (with the overwrite rule, which needs a collective)."""
    text = model.encode(PROMPT, "", GENERATION)
    spans = locate_tokens(text.prompt, TARGETS, text.offsets)
    state, capture = denoise.identify(model, shard, text, spans, 1, GENERATION, METHOD)
    return {
        "responses": capture.responses,
        "components": capture.components,
        "finished": denoise.finish(model, state, text, GENERATION).numpy(),
        "guided": denoise.guide(model, shard, text, some_plan(spans, GuideConfig()), 1, GENERATION).numpy(),
    }


def work(rank: int, ranks: int, checkpoint: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    model = WanModel.load(checkpoint)
    shard = parallelize(model, ParallelConfig(ulysses=ranks))
    np.savez(folder / f"rank{rank}.npz", **run_phases(model, shard))
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_what_one_process_gives(
    tiny_model: WanModel, tiny_checkpoint: Path, tmp_path: Path, ranks: int
) -> None:
    """Captured maps, chosen heads' images and latents agree within 1e-4 in float32, on every rank.

    With 4 ranks of 20 tokens each and frames of 16, frames straddle ranks.
    """
    mp.spawn(work, (ranks, tiny_checkpoint, tmp_path), nprocs=ranks)
    alone = run_phases(tiny_model, Shard())
    for rank in range(ranks):
        together = np.load(tmp_path / f"rank{rank}.npz")
        for name, value in alone.items():
            np.testing.assert_allclose(together[name], value, atol=1e-4, err_msg=f"{name} on rank {rank} of {ranks}")


def test_ranks_that_do_not_divide_are_refused() -> None:
    """The error names the degrees that do."""
    check_divides(2, heads=12, grid=Grid(5, 4, 4))
    with pytest.raises(ConfigError, match=r"ulysses=3 doesn't divide .* use one of 1, 2, 4"):
        check_divides(3, heads=4, grid=Grid(5, 4, 4))
    with pytest.raises(ConfigError, match=r"use one of 1, 3$"):
        check_divides(2, heads=12, grid=Grid(1, 3, 3))  # heads divide, tokens don't


def test_config_refuses_what_no_engine_does() -> None:
    """Unknown engines and impossible degrees are errors with a remedy."""
    with pytest.raises(ConfigError, match="choose one of"):
        ParallelConfig(engine="horovod")
    with pytest.raises(ConfigError, match="use diffusers"):
        ParallelConfig(engine="single", ulysses=2)
    with pytest.raises(ConfigError, match="at least 1"):
        ParallelConfig(ulysses=0)
