"""Ranks: real processes with gloo give what one process gives."""

from dataclasses import replace
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
from tests.pipelines.conftest import BATCH_TARGETS, GENERATION, NEGATIVES, PROMPTS, SEEDS
from tests.pipelines.test_denoise import some_plan

SHORT = replace(GENERATION, steps=4)
METHOD = MethodConfig(identify=IdentifyConfig(source="clusters"))


def run_phases(model: WanModel, shard: Shard) -> dict[str, np.ndarray]:
    """A batch's identification, continuation and guidance (with the overwrite rule, which needs a collective)."""
    texts = model.encode(PROMPTS, NEGATIVES, SHORT)
    spans = [locate_tokens(text.prompt, own, text.offsets) for text, own in zip(texts, BATCH_TARGETS, strict=True)]
    state, captures = denoise.identify(model, shard, texts, spans, SEEDS, SHORT, METHOD)
    plans = [some_plan(own, GuideConfig(), variant) for variant, own in enumerate(spans)]
    part = denoise.finish(model, state.take([2, 1]), [texts[2], texts[1]], SHORT)
    guided = denoise.guide(model, shard, texts[:2], plans[:2], SEEDS[:2], SHORT)
    return {
        "responses": np.concatenate([capture.responses for capture in captures]),
        "components": np.stack([capture.components for capture in captures]),
        "finished": part.numpy(),
        "guided": guided.numpy(),
    }


def work(rank: int, ranks: int, checkpoint: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    model = WanModel.load(checkpoint)
    shard = parallelize(model, ParallelConfig(ulysses=ranks))
    np.savez(folder / f"rank{rank}.npz", **run_phases(model, shard))
    dist.barrier()  # who leaves while others still talk to it may take them, or itself, down
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_what_one_process_gives(
    tiny_model: WanModel, tiny_checkpoint: Path, tmp_path: Path, ranks: int
) -> None:
    """A batch's captured maps, chosen heads' images and latents agree within 1e-4 in float32, on every rank.

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
    with pytest.raises(ConfigError, match=r"parallel\.batch is 0"):
        ParallelConfig(batch=0)
