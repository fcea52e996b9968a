"""Two GPUs give what one gives: every engine and sampler, on the embedded counting model, over NCCL.

Each side chooses its kernel as a job does: FlashAttention-3 in half precision where it is importable. With pytest-xdist
the cases run side by side (`-n 4`): they are small, and each has ranks of its own.
"""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.job.config import load_job
from numina.correct import correct
from numina.prompts.targets import Target
from numina.prompts.tokens import locate_tokens
from pipelines.attention.engines import attention_kernel, parallelize
from pipelines.base import GenerationConfig, VideoModel
from pipelines.models.registry import load_model
from pipelines.parallel.config import ParallelConfig
from pipelines.parallel.libraries import XFUSER, require
from pipelines.parallel.shard import ALONE, Shard
from pipelines.sampling import denoise
from pipelines.sampling.warmup import compile_blocks, warm_up
from pipelines.video.decode import split_decoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.timeout(400),
]

PROMPT = "three red circles and two blue squares moving on a grey background"
TARGETS = (Target("circles", 3), Target("squares", 2))
GENERATION = replace(load_job("testbed").generation, steps=8)
RENOISE, EULER = (replace(GENERATION, sampler=sampler) for sampler in ("renoise", "euler"))
ODD = replace(GENERATION, height=48, width=48)  # 5 × 3 × 3 tokens of the tiny checkpoint: two ranks pad
METHODS = {preset: load_job("testbed", [f"method.preset={preset}"]).method for preset in ("paper", "closed")}

WAYS = {
    "ulysses": (ParallelConfig(engine="xfuser", ulysses=2), "bfloat16", GENERATION),
    "ulysses, float32": (ParallelConfig(engine="xfuser", ulysses=2), "float32", GENERATION),
    "ulysses, padded": (ParallelConfig(engine="xfuser", ulysses=2), "float32", ODD),
    "ulysses, float8": (ParallelConfig(engine="xfuser", ulysses=2), "float8", GENERATION),
    "ring": (ParallelConfig(engine="xfuser", ring=2), "bfloat16", GENERATION),
    "ulysses, renoise": (ParallelConfig(engine="xfuser", ulysses=2), "bfloat16", RENOISE),
    "cfg": (ParallelConfig(cfg=2), "float32", GENERATION),
    "cfg, euler": (ParallelConfig(cfg=2), "bfloat16", EULER),
    "diffusers": (ParallelConfig(engine="diffusers", ulysses=2), "float32", GENERATION),
}

# Mean differences: of the first step's maps, which lie in [0, 1], and of what 8 steps make of it, which is relative.
# Ulysses and branches only move what is computed, ring attention adds partial results up in another order.
TOLERANCES = dict.fromkeys(WAYS, (1e-05, 0.01)) | {"ring": (0.1, 0.12)}
# Of 8 unguided steps of ring attention, whose partial results are rounded to bfloat16 each: how much farther from
# those in float32 than one GPU's they may be.
FARTHER = 2.0


def run_phases(model: VideoModel, shard: Shard, generation: GenerationConfig, plans: dict[str, Any]) -> dict[str, Any]:
    """Per preset what the first step shows, the clip that goes on, and the clip under the plan, given or found."""
    [text] = texts = model.encode([PROMPT], [""], generation)
    spans = locate_tokens(text.prompt, TARGETS, text.offsets)
    found: dict[str, Any] = {}
    for preset, method in METHODS.items():
        early = replace(method, identify=replace(method.identify, step=0.0))
        _, captures = denoise.identify(model, shard, texts, [spans], [1], generation, early)
        state, late = denoise.identify(model, shard, texts, [spans], [1], generation, method)
        found[f"{preset} finished"] = denoise.finish(model, state, texts, generation, shard=shard).float().cpu().numpy()
        if captures:
            found[f"{preset} responses"] = captures[0].responses
            if captures[0].components is not None:
                found[f"{preset} components"] = captures[0].components
        if preset not in plans:
            more = [Target(target.noun, target.count + 2) for target in TARGETS]
            plans[preset] = correct(late[0], more, spans, method).plan
        latents = denoise.guide(model, shard, texts, [plans[preset]], [1], generation)
        found[f"{preset} guided"] = latents.float().cpu().numpy()
    decoded = model.decode(latents)
    if decoded is not None:
        found["pixels"] = decoded.pixels.numpy()
    return found


def meet(rank: int, port: int) -> None:
    torch.cuda.set_device(rank)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("cpu:gloo,cuda:nccl")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def part() -> None:
    dist.barrier()
    dist.destroy_process_group()


def work(rank: int, port: int, way: str, checkpoint: str, plans: dict[str, Any], folder: Path) -> None:
    meet(rank, port)
    parallel, dtype, generation = WAYS[way]
    if parallel.engine == "xfuser":
        require(XFUSER)  # as a gang's ranks do, before the model is there
    model = load_model(checkpoint, dtype=dtype, device=f"cuda:{rank}")
    shard = parallelize(model, parallel)
    split_decoder(model.vae, shard.gang)
    print(f"{way:<18} rank {rank} runs on {attention_kernel(model)}", flush=True)
    np.savez(folder / f"rank{rank}.npz", **run_phases(model, shard, generation, plans))
    part()


@pytest.mark.parametrize("way", WAYS)
def test_two_gpus_give_what_one_gives(way: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Maps of the first step, the clip that goes on, guided latents under the same plan, and the decoded pixels."""
    parallel, dtype, generation = WAYS[way]
    if dtype == "float8":
        pytest.importorskip("torchao", reason="needs torchao: pip install numina-video[gpu]")
    plans: dict[str, Any] = {}
    checkpoint = str(tiny_checkpoint) if generation is ODD else "testbed"
    model = load_model(checkpoint, dtype=dtype, device="cuda:0")
    alone = run_phases(model, parallelize(model, ParallelConfig()), generation, plans)
    mp.spawn(work, (free_port(), way, checkpoint, plans, tmp_path), nprocs=2)
    apart = {}
    for rank in range(2):
        together = dict(np.load(tmp_path / f"rank{rank}.npz"))
        assert ("pixels" in together) == (rank == 0)
        assert ("paper components" in together) == (parallel.cfg == 1 or rank == 0)
        for name, value in together.items():
            apart[rank, name] = np.abs(value.astype(np.float64) - alone[name])
    for (rank, name), found in apart.items():
        print(f"{way:<18} rank {rank} {name:<18} largest {found.max():.2e} mean {found.mean():.2e}", flush=True)
    maps, clips = TOLERANCES[way]
    for (_, name), found in apart.items():
        if way == "ring" and name.endswith("finished"):
            continue
        if name.endswith(("responses", "components")):
            assert found.mean() <= maps, name
        else:
            assert found.mean() <= clips * np.abs(alone[name].astype(np.float64)).mean(), name
    if way == "ring":
        exact = run_phases(load_model(checkpoint, dtype="float32", device="cuda:0"), ALONE, generation, plans)
        together = np.load(tmp_path / "rank0.npz")
        for name in ("paper finished", "closed finished"):
            ours, usual = (np.abs(own[name].astype(np.float64) - exact[name]).mean() for own in (together, alone))
            print(f"{way:<18} {name:<18} mean from float32 {ours:.2e}, one GPU's {usual:.2e}", flush=True)
            assert ours <= FARTHER * usual, name


def compiled(rank: int, port: int, plans: dict[str, Any], folder: Path) -> None:
    meet(rank, port)
    model = load_model("testbed", dtype="bfloat16", device=f"cuda:{rank}")
    shard = parallelize(model, ParallelConfig(ulysses=2))
    np.savez(folder / f"rank{rank}.npz", **run_compiled(model, shard, plans))
    part()


def run_compiled(model: VideoModel, shard: Shard, plans: dict[str, Any]) -> dict[str, Any]:
    """The phases in compiled blocks, of which none is compiled after the warm-up."""
    compile_blocks(model)
    seconds = warm_up(model, shard, GENERATION, METHODS.values())
    print(f"rank {shard.rank} of {shard.ranks}, warm-up", {name: round(took, 1) for name, took in seconds.items()})
    with torch.compiler.set_stance("fail_on_recompile"):
        return run_phases(model, shard, GENERATION, plans)


def test_compiled_ranks_compile_nothing_after_the_warm_up(tmp_path: Path) -> None:
    """xfuser's Ulysses in compiled blocks gives what compiled blocks give on one GPU, for a prompt new to it."""
    torch._dynamo.reset()
    plans: dict[str, Any] = {}
    model = load_model("testbed", dtype="bfloat16", device="cuda:0")
    alone = run_compiled(model, parallelize(model, ParallelConfig()), plans)
    mp.spawn(compiled, (free_port(), plans, tmp_path), nprocs=2)
    together = np.load(tmp_path / "rank0.npz")
    for name in ("paper guided", "closed guided", "closed finished", "closed responses"):
        apart, size = np.abs(together[name] - alone[name]).mean(), np.abs(alone[name]).mean()
        print(f"compiled {name}: mean difference {apart:.2e} of {size:.2f}")
        assert apart <= 3e-2 * size, name
