"""Sharding: spread over ranks, or in host memory, a model gives what it gives whole. Real ranks with gloo."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from numina.errors import ConfigError
from pipelines.attention.engines import parallelize
from pipelines.checkpoints import sharding
from pipelines.models.registry import load_model
from pipelines.models.wan import WanModel
from pipelines.parallel.config import MemoryConfig, ParallelConfig
from pipelines.parallel.shard import Shard
from tests.pipelines.checkpoints.test_loading import CPU, contents, error_of, files_opened, memory_to_load, save_larger
from tests.pipelines.conftest import GENERATION, NEGATIVES, PROMPTS, SEEDS
from tests.pipelines.parallel.test_shard import close, run_phases
from tests.pipelines.ranks import processes, spawn

RANKS = 2
SHARDINGS = ("zero3", "zero3_offload")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ENGINES = {"branches": ParallelConfig(cfg=2), "rows": ParallelConfig(ulysses=2)}


def outputs(model: WanModel, times: int) -> list[torch.Tensor]:
    """Encodings and predictions; DeepSpeed records the order of layers first, and gathers ahead of them later."""
    found = []
    for _ in range(times):
        texts = model.encode(PROMPTS, NEGATIVES, GENERATION)
        text = torch.cat([text.conditional for text in texts])
        with torch.inference_mode():
            found += [text, model.predict(model.noise(SEEDS, GENERATION), torch.tensor([900]), text)]
    return found


def worst(whole: WanModel, sharded: WanModel, times: int = 3) -> float:
    expected = outputs(whole, 1) * times
    return max((a - b).abs().max().item() for a, b in zip(expected, outputs(sharded, times), strict=True))


def look_at(sharded: WanModel, whole: WanModel) -> dict[str, Any]:
    """What a rank holds of each module, by number of elements, and what calls it sees."""
    error = worst(whole, sharded)
    found: dict[str, Any] = {"error": error}
    for name in ("transformer", "text_encoder"):
        module, other = getattr(sharded.pipeline, name), getattr(whole.pipeline, name)
        found[name] = {
            "all": sum(parameter.numel() for parameter in other.parameters()),
            "own": sum(parameter.ds_tensor.numel() for parameter in module.parameters()),
            "gathered": sum(parameter.numel() for parameter in module.parameters()),
            "same dtypes": {key: value.dtype for key, value in contents(module).items()}
            == {key: value.dtype for key, value in contents(other).items()},
            "same class": type(module) is type(other) and module.dtype == other.dtype,
        }
    return found


def shard_in_gang(rank: int, checkpoint: Path, joint: Path, larger: Path, folder: Path) -> None:
    found: dict[str, Any] = {}
    with files_opened() as opened:
        sharding.PERSISTENT = 0  # all is let go, however small
        for dtype in DTYPES:
            whole = load_model(str(checkpoint), dtype=dtype)
            for shard in SHARDINGS:
                sharded = load_model(str(checkpoint), dtype=dtype, memory=MemoryConfig(shard=shard))
                found[f"{shard} {dtype}"] = look_at(sharded, whole)
        for name, parallel in ENGINES.items():
            sharded = load_model(str(checkpoint), memory=MemoryConfig(shard="zero3"))
            np.savez(folder / f"{name}{rank}.npz", **run_phases(sharded, parallelize(sharded, parallel)))
        sharding.PERSISTENT = 100_000
        kept = load_model(str(checkpoint), memory=MemoryConfig(shard="zero3"))
        found["kept"] = worst(load_model(str(checkpoint)), kept)
        found["joint"] = worst(load_model(str(joint)), load_model(str(joint), memory=MemoryConfig(shard="zero3")))
    found["opened"] = len(opened)
    found["other device"] = error_of(lambda: sharding.import_deepspeed(torch.device("cuda")))
    found["grown"] = memory_to_load(larger, "zero3")
    torch.save(found, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def folder(twin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks found, each in files of its own."""
    folder = tmp_path_factory.mktemp("sharded")
    checkpoints = twin("wan2.1-1.3b"), twin("cogvideox-5b"), save_larger(folder / "larger")
    spawn(shard_in_gang, RANKS, folder / "ranks", *checkpoints, folder)
    return folder


@pytest.fixture(scope="module")
def gang(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard", SHARDINGS)
def test_a_sharded_model_gives_what_the_whole_one_gives(gang: list[dict[str, Any]], shard: str, dtype: str) -> None:
    """Encodings and predictions within 1e-5 on every rank, parameters used outside their layer's forward and float32
    ones in a bfloat16 model among them; the modules are of diffusers' and transformers' own classes."""
    for rank in gang:
        found = rank[f"{shard} {dtype}"]
        assert found["error"] < 1e-5
        for name in ("transformer", "text_encoder"):
            assert found[name]["same dtypes"]
            assert found[name]["same class"]


@pytest.mark.parametrize("shard", SHARDINGS)
def test_each_rank_holds_its_share(gang: list[dict[str, Any]], shard: str) -> None:
    """Half of every parameter, and after a forward nothing else."""
    for rank in gang:
        for name in ("transformer", "text_encoder"):
            found = rank[f"{shard} float32"][name]
            assert found["all"] / 2 <= found["own"] < found["all"] / 2 * 1.01
            assert found["gathered"] == 0


def test_small_parameters_may_stay(gang: list[dict[str, Any]]) -> None:
    """With DeepSpeed's own threshold nothing of what is computed changes."""
    assert all(rank["kept"] < 1e-5 for rank in gang)


def test_another_family_is_sharded_alike(gang: list[dict[str, Any]]) -> None:
    """CogVideoX: encodings and predictions of the whole model."""
    assert all(rank["joint"] < 1e-5 for rank in gang)


def test_only_the_first_rank_opens_weights(gang: list[dict[str, Any]]) -> None:
    """Sharded, too, the others get their shares from it."""
    assert [rank["opened"] > 0 for rank in gang] == [True, False]


def test_no_rank_ever_holds_the_whole(gang: list[dict[str, Any]]) -> None:
    """While they load, ranks take half of the module's size, a bucket and a large tensor."""
    for rank in gang:
        assert 0.45 < rank["grown"] < 0.95


@pytest.mark.parametrize("engine", ENGINES)
def test_sharded_ranks_capture_and_guide_as_one_process_does(folder: Path, tiny_model: WanModel, engine: str) -> None:
    """Looking on, guidance and going on, with branches or rows on different ranks, under ZeRO-3: within 1e-4."""
    alone = run_phases(tiny_model, Shard())
    for rank in range(RANKS):
        together = np.load(folder / f"{engine}{rank}.npz")
        assert ("responses" in together) == (rank == 0 or engine == "rows")
        for name in together:
            np.testing.assert_allclose(together[name], alone[name], atol=close(name), err_msg=f"{name}, rank {rank}")


def offload_alone(_: int, checkpoint: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    sharded = load_model(str(checkpoint), memory=MemoryConfig(shard="zero3_offload"))
    (folder / "error").write_text(str(worst(load_model(str(checkpoint)), sharded)))


def test_one_process_may_offload(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Without a process group, too: the whole module is its share."""
    processes(offload_alone, 1, tiny_checkpoint, tmp_path)
    assert float((tmp_path / "error").read_text()) < 1e-5


def test_one_process_cannot_share(tiny_checkpoint: Path) -> None:
    """The remedy is named."""
    with pytest.raises(ConfigError, match=r"zero3, which spreads .* single process; use none, or zero3_offload"):
        load_model(str(tiny_checkpoint), memory=MemoryConfig(shard="zero3"))


def test_without_deepspeed_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is a sentence with the command that brings it."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"memory\.shard needs DeepSpeed.*pip install deepspeed"):
        sharding.placement("zero3_offload", CPU)


def test_deepspeed_serves_one_kind_of_device(gang: list[dict[str, Any]]) -> None:
    """A GPU's model in a process that shards for CPUs is refused, and not put where it doesn't belong."""
    for rank in gang:
        kind, message = rank["other device"]
        assert kind == ConfigError.__name__
        assert "set up for cpu in this process, but the model is for cuda" in message
