"""The recipe runs from nothing to a loadable folder; what it learns in seconds is not judged here."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.models.families import inspect
from pipelines.testbed import WEIGHTS
from pipelines.testbed.model import load_pipeline
from pipelines.testbed.schedule import ramp
from pipelines.testbed.train import train
from pipelines.testbed.world import MAX_COUNT, MAX_OBJECTS, make_prompts, miscount


def test_rates_fall_when_no_sitting_follows() -> None:
    """Up in 50 steps; then down to nothing in the rest of a stage, or not at all."""
    assert ramp(24, 0.1, 0.5) == ramp(24, 0.1, 1.0) == 0.5
    assert [ramp(99, progress, 0.5) for progress in (0.4, 0.75, 1.0, 1.1)] == [1.0, 0.5, 0.0, 0.0]
    assert [ramp(99, progress, 1.0) for progress in (0.4, 0.75, 1.0, 1.1)] == [1.0] * 4


@pytest.mark.slow
def test_stages_of_the_harder_world_go_on_from_one_another(tmp_path: Path) -> None:
    """The autoencoder and the reading first, then the transformer from its weights: only what a stage asks for runs."""
    common = {"world": "scenes", "device": "cpu", "prompts": 0}
    train(tmp_path / "first", minutes_vae=0.01, minutes_dit=0, minutes_miscounted=0, **common)
    first = tmp_path / "first" / "weights"
    train(tmp_path / "second", start=first, minutes_dit=0.01, minutes_miscounted=0.01, **common)
    second = tmp_path / "second" / "weights"
    assert (inspect(second).heads, inspect(second).depth) == (3, 6)
    assert sum(file.stat().st_size for file in second.rglob("*")) <= 14e6
    scale = [json.loads((folder / "vae" / "config.json").read_text())["latents_std"] for folder in (first, second)]
    assert set(scale[0]) == {1.0}  # not known before there are latents to train on
    assert 1.0 not in scale[1]
    logs = [(tmp_path / name / "training.jsonl").read_text() for name in ("first", "second")]
    stages = [list(dict.fromkeys(json.loads(line)["stage"] for line in log.splitlines())) for log in logs]
    assert stages == [["start", "vae", "reconstruction", "saved"], ["start", "reconstruction", "pool", "dit", "saved"]]


@pytest.mark.slow
def test_a_decoder_learns_alone(tmp_path: Path) -> None:
    """Latents, their scale and the transformer stay to the bit; the decoder doesn't."""
    train(tmp_path, start=WEIGHTS, minutes_decoder=0.02, minutes_dit=0, minutes_miscounted=0, device="cpu", prompts=0)
    before, after = (load_pipeline(folder) for folder in (WEIGHTS, tmp_path / "weights"))
    assert after.vae.config.latents_std == before.vae.config.latents_std
    same = dict.fromkeys(("encoder", "quant_conv", "decoder"), True)
    for (name, one), other in zip(before.vae.named_parameters(), after.vae.parameters(), strict=True):
        if (part := name.split(".")[0]) in same:
            same[part] &= torch.equal(one, other)
    assert same == {"encoder": True, "quant_conv": True, "decoder": False}


@pytest.mark.slow
def test_the_recipe_runs_through_all_its_stages(tmp_path: Path) -> None:
    """Autoencoder, reading, clips, miscounted clips, saved weights; every stage is in the log, in this order."""
    train(tmp_path, minutes_vae=0.01, minutes_dit=0.01, minutes_miscounted=0.01, device="cpu", prompts=0)
    assert inspect(tmp_path / "weights").heads == 4
    stages = [json.loads(line)["stage"] for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [stage for stage, before in zip(stages, [None, *stages], strict=False) if stage != before] == [
        "start",
        "vae",
        "reconstruction",
        "pool",
        "dit",
        "pool",
        "dit",
        "saved",
    ]


def test_miscounted_prompts_keep_their_text_and_miss_by_one() -> None:
    """The asked share of targets is off by one; texts stay, and no scene gets more than the world holds."""
    prompts = make_prompts(400, 0)
    shown = miscount(prompts, 0.4, np.random.default_rng(0))
    assert [prompt.text for prompt in shown] == [prompt.text for prompt in prompts]
    differences = Counter(
        after.count - before.count
        for prompt, other in zip(prompts, shown, strict=True)
        for before, after in zip(prompt.targets, other.targets, strict=True)
    )
    assert set(differences) == {-1, 0, 1}
    assert 0.35 < 1 - differences[0] / sum(differences.values()) < 0.45
    assert all(1 <= target.count <= MAX_COUNT for prompt in shown for target in prompt.targets)
    assert max(sum(target.count for target in prompt.targets) for prompt in shown) <= MAX_OBJECTS
    assert miscount(prompts, 0.0, np.random.default_rng(0)) == prompts
