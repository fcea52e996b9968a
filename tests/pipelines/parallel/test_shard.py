"""Ranks: real processes with gloo give what one process gives."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.errors import ConfigError
from numina.prompts.tokens import TokenSpans, locate_tokens
from pipelines.attention import engines
from pipelines.attention.engines import AXES, TokenSplit, UspSelfAttention, _place, attention_kernel, parallelize
from pipelines.attention.kernels import FLASH_3_FP8, FlashSelfAttention
from pipelines.base import Text
from pipelines.models.wan import WanModel
from pipelines.parallel.config import MemoryConfig, ParallelConfig
from pipelines.parallel.shard import ALONE, Shard, limit_collectives
from pipelines.sampling import denoise
from tests.pipelines.conftest import BATCH_TARGETS, GENERATION, NEGATIVES, PROMPTS, SEEDS
from tests.pipelines.ranks import spawn
from tests.pipelines.sampling.test_denoise import some_plan

SHORT = replace(GENERATION, steps=4)
METHOD = MethodConfig(
    identify=IdentifyConfig(source="clusters"), guide=GuideConfig(anchor=1)
)  # all that captures can show, and states kept for anchoring

FEW = replace(SHORT, sampler="renoise", steps=3, sigmas=[0.99, 0.8, 0.5])

FUSED = MethodConfig(identify=IdentifyConfig(source="fused", blocks=2, head="mean"))


def affinities(
    model: WanModel, shard: Shard, texts: Sequence[Text], spans: Sequence[Sequence[TokenSpans]]
) -> dict[str, np.ndarray]:
    """What the fused reading takes off the ranks; of coordinates their products, for axes may be turned."""
    _, captures = denoise.identify(model, shard, texts, spans, SEEDS, SHORT, FUSED)
    flat = [capture.coordinates.reshape(80, -1).astype(np.float32) for capture in captures]
    found = {"affinities": np.stack([own @ own.T for own in flat]), "shares": captures[0].responses} if captures else {}
    return found | ({"peaks": np.concatenate([capture.peaks for capture in captures])} if captures else {})


def run_phases(model: WanModel, shard: Shard) -> dict[str, np.ndarray]:
    """A batch's identification, continuation and guidance (with the overwrite rule, which needs a collective)."""
    texts = model.encode(PROMPTS, NEGATIVES, SHORT)
    spans = [locate_tokens(text.prompt, own, text.offsets) for text, own in zip(texts, BATCH_TARGETS, strict=True)]
    state, captures = denoise.identify(model, shard, texts, spans, SEEDS, SHORT, METHOD)
    plans = [some_plan(own, METHOD.guide, variant) for variant, own in enumerate(spans)]
    part = denoise.finish(model, state.take([2, 1]), [texts[2], texts[1]], SHORT, shard=shard)
    guided = denoise.guide(model, shard, texts[:2], plans[:2], SEEDS[:2], SHORT)
    path = [earlier.take([0, 1]) for earlier in state.path]
    anchored = denoise.guide(model, shard, texts[:2], plans[:2], SEEDS[:2], SHORT, path=path)
    found = {"finished": part.numpy(), "guided": guided.numpy(), "anchored": anchored.numpy()}
    found["renoised"] = denoise.finish(model, denoise.start(model, SEEDS, FEW), texts, FEW, shard=shard).numpy()
    found["renoised, guided"] = denoise.guide(model, shard, texts[:2], plans[:2], SEEDS[:2], FEW).numpy()
    found |= affinities(model, shard, texts, spans)
    if captures:
        found |= {
            "responses": np.concatenate([capture.responses for capture in captures]),
            "components": np.stack([capture.components for capture in captures]),
            "deviations": np.array([capture.deviation for capture in captures]),
        }
    return found


def with_an_engine(rank: int, ways: Sequence[ParallelConfig], checkpoint: Path, folder: Path) -> None:
    for number, parallel in enumerate(ways):
        model = WanModel.load(checkpoint)
        shard = parallelize(model, parallel)
        np.savez(folder / f"{number}-rank{rank}.npz", **run_phases(model, shard))


@pytest.fixture(scope="module")
def alone(tiny_model: WanModel) -> dict[str, np.ndarray]:
    """What one process gives."""
    return run_phases(tiny_model, ALONE)


def close(name: str) -> float:
    """How near a result must be to one process's: 1e-4 in float32; affinities are products in half precision."""
    return 2e-2 if name == "affinities" else 1e-4


def agree(folder: Path, alone: dict[str, np.ndarray], ranks: int, capturing: int, number: int = 0) -> None:
    """Every rank's results are one process's within 1e-4 in float32; the first `capturing` ranks have captures."""
    for rank in range(ranks):
        together = np.load(folder / f"{number}-rank{rank}.npz")
        assert ("responses" in together) == (rank < capturing)
        for name in together:
            np.testing.assert_allclose(together[name], alone[name], atol=close(name), err_msg=f"{name}, rank {rank}")


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_what_one_process_gives(
    alone: dict[str, np.ndarray], tiny_checkpoint: Path, tmp_path: Path, ranks: int
) -> None:
    """A batch's captured maps, chosen heads' images and latents, plain, guided and anchored; Ulysses, and branches.

    With 4 Ulysses ranks of 20 tokens each and frames of 16, frames straddle ranks. With two branches, those of the
    conditional one capture and guide, and all ranks have the clip.
    """
    ways = [ParallelConfig(ulysses=ranks), ParallelConfig(cfg=2, ulysses=ranks // 2)]
    spawn(with_an_engine, ranks, tmp_path, ways, tiny_checkpoint, tmp_path)
    for number, parallel in enumerate(ways):
        agree(tmp_path, alone, ranks, capturing=parallel.sequence_ranks, number=number)


def padded(rank: int, checkpoint: Path, folder: Path) -> None:
    """Ranks that divide neither tokens nor heads, under an attention that, as USP does, leaves padding's keys out."""
    model = WanModel.load(checkpoint)
    ranks = dist.get_world_size()
    mesh = init_device_mesh("cpu", (1, ranks, 1), mesh_dim_names=AXES)
    shard = _place(mesh, ParallelConfig(ring=ranks))
    split = TokenSplit(shard)
    split.attach(model.seams)

    def whole_keys(query: Tensor, key: Tensor, value: Tensor, attention_kwargs: dict[str, int] | None) -> Tensor:
        assert attention_kwargs == {"valid_kv_len": 80}
        key, value = (shard.gather_rows(x, dim=2, tokens=80) for x in (key, value))
        return nnf.scaled_dot_product_attention(query, key, value)

    for block in range(model.depth):
        model.self_attention(block).processor = UspSelfAttention(whole_keys, model.seams.project, split, "sdpa")
    np.savez(folder / f"0-rank{rank}.npz", **run_phases(model, shard))


def test_padded_ranks_give_what_one_process_gives(
    alone: dict[str, np.ndarray], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """80 tokens over 3 ranks, the last with one row of padding, and 4 heads, of which the last rank scores none."""
    spawn(padded, 3, tmp_path, tiny_checkpoint, tmp_path)
    agree(tmp_path, alone, 3, capturing=3)


def test_rows_and_heads_are_everyones_once() -> None:
    """Every token and every head is some rank's, whatever the number of ranks; padding lies past the end."""
    for ranks in range(1, 9):
        shards = [Shard(rank=rank, ranks=ranks) for rank in range(ranks)]
        x = torch.arange(1, 12)
        own = torch.cat([shard.own(x, 0) for shard in shards])
        assert own.tolist() == [*range(1, 12), *[0] * (len(own) - 11)]
        assert sum(shard.present(11) for shard in shards) == 11
        assert [head for shard in shards for head in range(12)[shard.heads(12)]] == list(range(12))
        assert len({shard.rows(11).stop - shard.rows(11).start for shard in shards}) == 1


def left_alone(rank: int, folder: Path) -> None:
    limit_collectives(timedelta(seconds=2))
    if rank == 0:
        with pytest.raises(RuntimeError, match=r"[Tt]imed out|[Tt]imeout"):
            dist.all_reduce(torch.ones(1))
        (folder / "noticed").touch()
    limit_collectives(timedelta(seconds=60))
    while not (folder / "noticed").exists():
        pass


def test_a_silent_rank_is_noticed_in_time(tmp_path: Path) -> None:
    """A collective that another rank doesn't enter fails after the limit that was set."""
    with pytest.raises(
        Exception, match=r"barrier|Connection|[Tt]imed out|closed|reset"
    ):  # the group is broken after it
        spawn(left_alone, 2, tmp_path, tmp_path)
    assert (tmp_path / "noticed").exists()


def test_a_group_of_another_size_is_refused(tiny_model: WanModel, tmp_path: Path) -> None:
    """Degrees and processes must agree, before the model is touched."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match="is 4 in a process group of 1 ranks"):
            parallelize(tiny_model, ParallelConfig(cfg=2, ulysses=2))
    finally:
        dist.destroy_process_group()


def test_the_attention_kernel_is_chosen_by_name(tiny_checkpoint: Path) -> None:
    """`parallel.attention` sets it in every block, and one that isn't there is an error with a remedy."""
    model = WanModel.load(tiny_checkpoint)
    assert attention_kernel(model) == "native"
    assert parallelize(model, ParallelConfig(attention="_native_math")) == ALONE
    chosen = {model.self_attention(block).processor._attention_backend.value for block in range(model.depth)}
    assert chosen == {"_native_math"}
    assert attention_kernel(model) == "_native_math"
    with pytest.raises(ConfigError, match=r"parallel\.attention is 'horovod': .*use auto"):
        parallelize(model, ParallelConfig(attention="horovod"))


def test_flash_attention_3_is_only_where_it_can_run(tiny_checkpoint: Path) -> None:
    """By itself it is left out on a CPU; asked for, that is an error that says why."""
    model = WanModel.load(tiny_checkpoint)
    before = attention_kernel(model)
    parallelize(model, ParallelConfig())
    assert attention_kernel(model) == before
    with pytest.raises(ConfigError, match=r"'flash_3': FlashAttention-3 runs on NVIDIA GPUs alone; use auto"):
        parallelize(model, ParallelConfig(attention="flash_3"))


def test_flash_attention_3_is_called_with_what_diffusers_attends_to(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projected, normalised and rotated as diffusers does it: with PyTorch's attention as the kernel, the output is the
    same. (The real kernel: tests/gpu/test_true_scale.py.)"""

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        attended = [x.transpose(1, 2) for x in (query, key, value)]
        return nnf.scaled_dot_product_attention(*attended).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", SimpleNamespace(flash_attn_func=kernel))
    model = WanModel.load(tiny_checkpoint)
    latents = model.noise([0], GENERATION)
    text = torch.randn(1, model.text_tokens, model.text_width)
    with torch.inference_mode():
        own = model.predict(latents, torch.tensor(500.0), text)
        flash = FlashSelfAttention(model.seams.project)
        for attention in model.seams.attentions:
            attention.processor = flash
        assert attention_kernel(model) == "flash_3"
        torch.testing.assert_close(model.predict(latents, torch.tensor(500.0), text), own)


def test_attention_in_8_bits_is_scaled_by_clip_and_head(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gets 8-bit floats with one scale for each clip's head, which bring back what was rounded: attention in
    their precision is near the exact one, though one head's keys are a thousand times another's. Chosen by itself where
    the linear layers are in 8 bits, too, or by name."""

    def kernel(*parts: torch.Tensor, q_descale: Tensor, k_descale: Tensor, v_descale: Tensor) -> torch.Tensor:
        assert {part.dtype for part in parts} == {torch.float8_e4m3fn}
        scales = [scale[:, None, :, None] for scale in (q_descale, k_descale, v_descale)]
        attended = [(x.float() * scale).transpose(1, 2) for x, scale in zip(parts, scales, strict=True)]
        return nnf.scaled_dot_product_attention(*attended).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", SimpleNamespace(flash_attn_func=kernel))
    monkeypatch.setattr(engines, "flash3_lacks", lambda device, dtype: None)
    model = WanModel.load(tiny_checkpoint)
    for float8, name, chosen in ((False, "auto", "flash_3"), (True, "flash_3", "flash_3"), (True, "auto", FLASH_3_FP8)):
        parallelize(model, ParallelConfig(attention=name), float8=float8)
        assert attention_kernel(model) == chosen
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 40, 2, 16) for _ in range(3))
    scale = torch.tensor([[1.0, 1000.0], [0.001, 1.0]])[:, None, :, None]
    flash = FlashSelfAttention(lambda *_: (query / scale, key * scale, value), FLASH_3_FP8)
    found = flash(SimpleNamespace(to_out=[torch.nn.Identity()] * 2), torch.zeros(2, 40, 32))
    exact = nnf.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)
    assert 0 < (found - exact.flatten(2)).norm() / exact.norm() < 0.1


def test_config_refuses_what_no_engine_does() -> None:
    """Unknown engines, kinds of sharding and impossible degrees are errors with a remedy."""
    with pytest.raises(ConfigError, match="choose from auto, single"):
        ParallelConfig(engine="horovod")
    for name in ("cfg", "ulysses", "ring", "gangs", "batch"):
        with pytest.raises(ConfigError, match=rf"parallel\.{name} is 0"):
            ParallelConfig(**{name: 0})
    with pytest.raises(ConfigError, match=r"memory\.shard is 'fsdp'"):
        MemoryConfig(shard="fsdp")
    with pytest.raises(ConfigError, match=r"memory\.text_encoder is 'cpu'"):
        MemoryConfig(text_encoder="cpu")
