"""Few-step checkpoints: FastVideo's pipeline class is Wan's; one that needs what we lack is refused in a sentence."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from numina.errors import ModelError
from pipelines.models.families import check_family
from pipelines.models.registry import inspect_model, known_model, load_model
from pipelines.sampling import denoise
from tests.pipelines.conftest import GENERATION, PROMPT


def named(folder: Path, pipeline: str) -> Path:
    """The checkpoint, as another pipeline's."""
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": pipeline}))
    return folder


@pytest.fixture
def fastwan(twin: Callable[[str], Path], tmp_path: Path) -> Path:
    """FastWan2.2-5B's twin."""
    return named(copytree(twin("wan2.2-5b"), tmp_path / "fastwan"), "WanDMDPipeline")


def test_fastwan_is_wan(fastwan: Path, twin: Callable[[str], Path]) -> None:
    """It is loaded as the checkpoint that it was distilled from, and sampled in three steps."""
    clip = replace(GENERATION, guidance_scale=1.0, steps=3, sampler="renoise", sigmas=[1.0, 0.757, 0.522])
    made = []
    for folder in (fastwan, twin("wan2.2-5b")):
        assert inspect_model(str(folder)).family == "WanPipeline"
        model = load_model(str(folder), device="cpu")
        made.append(denoise.finish(model, denoise.start(model, [1], clip), model.encode([PROMPT], [""], clip), clip))
    assert torch.equal(*made)


def test_sparse_attention_is_refused(fastwan: Path) -> None:
    """By the names of its weights."""
    [file] = (fastwan / "transformer").glob("*.safetensors")
    save_file(load_file(file) | {"blocks.0.to_gate_compress.weight": torch.zeros(4, 4)}, file)
    with pytest.raises(ModelError, match=r"fastwan has layers of video sparse attention \(VSA\), .*FullAttn"):
        inspect_model(str(fastwan))


def test_a_flow_map_is_refused(fastwan: Path) -> None:
    """By its pipeline's name."""
    with pytest.raises(ModelError, match=r"is a flow map, whose transformer also takes the noise level"):
        check_family(named(fastwan, "AnyFlowPipeline"))


@pytest.mark.parametrize("look", [known_model, inspect_model], ids=lambda look: look.__name__)
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", r"needs video sparse attention \(VSA\), .*; use .*FullAttn"),
        ("FastVideo/FastWan2.1-T2V-14B-Diffusers", r"needs video sparse attention"),
        ("FastVideo/FastWan2.2-TI2V-5B-Diffusers", r"needs video sparse attention"),
        ("worstcoder/rcm-Wan", r"holds pickled weights \(\.pt\).*rcm-1\.3b\.yaml says how to convert"),
        ("/models/rCM_Wan2.1_T2V_1.3B_480p.pt", r"holds pickled weights.*; convert them"),
    ],
)
def test_what_is_known_to_lack_something_is_refused_unfetched(
    look: Callable[[str], object], path: str, why: str
) -> None:
    """Before the hub is asked, or tens of gigabytes are loaded from it."""
    with pytest.raises(ModelError, match=why):
        look(path)
