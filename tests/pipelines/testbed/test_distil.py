"""Distillation: a few steps learn to go where many steps with guidance go, and the LoRA of it is loaded like any."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.job.config import load_job
from numina.schedule import noise_levels
from pipelines.checkpoints.lora import LoraConfig, lora_file
from pipelines.models.registry import inspect_model, load_model
from pipelines.testbed import WEIGHTS
from pipelines.testbed.distil import FLOW_SHIFT, add_adapter, follow, learn, pieces, save_adapter
from pipelines.testbed.model import encode_text, load_pipeline
from tests.benchmarks.jobs import job_model

SMALL = (8, 1, 4, 4)  # latents of a clip, small enough for a CPU
PROMPTS = ["three red circles on a black background", "one green cross and two blue squares on a white background"]


def test_pieces_are_the_students_levels_and_the_teachers_between() -> None:
    """From noise to none, each from where the one before ends; the first of each are those of a short schedule."""
    found = pieces(4, 8)
    assert [len(piece) for piece in found] == [9] * 4
    assert [piece[0] for piece in found] == pytest.approx(noise_levels(4, FLOW_SHIFT))
    assert [piece[-1] for piece in found] == [*(piece[0] for piece in found[1:]), 0.0]


def test_the_student_comes_nearer_to_the_teacher() -> None:
    """The loss falls; in 4 steps without a second branch the student is nearer to the teacher's 16 than its own 4."""
    torch.manual_seed(0)
    pipeline: Any = load_pipeline(WEIGHTS)
    student = pipeline.transformer
    student.blocks = student.blocks[:2]  # enough to bend the teacher's ways
    teacher = copy.deepcopy(student).requires_grad_(False)
    add_adapter(student, rank=16)
    text, away = (
        encode_text(pipeline.tokenizer, pipeline.text_encoder, prompts).detach() for prompts in (PROMPTS, [""])
    )
    losses = learn(
        teacher,
        student,
        lambda number: text[torch.arange(number) % 2],
        away,
        SMALL,
        minutes=9,
        batch=8,
        chunk=8,
        pool=16,
        substeps=4,
        most=64,
        log=lambda *args, **values: None,
    )
    noise = torch.randn(2, *SMALL, generator=torch.Generator().manual_seed(1))
    few, many = ([*noise_levels(steps, FLOW_SHIFT), 0.0] for steps in (4, 16))
    goal = follow(teacher, noise, many, text, away)
    ours, theirs = follow(student, noise, few, text), follow(teacher, noise, few, text, away)
    errors = [(own - goal).square().mean().item() for own in (ours, theirs)]
    assert losses[-1] < 0.7 * losses[0], losses
    assert errors[0] < 0.8 * errors[1], errors


def test_its_file_is_a_lora_and_a_start(tmp_path: Path) -> None:
    """Loaded into the model it was made for, the file gives the student; so it does to a later sitting."""
    torch.manual_seed(0)
    pipeline: Any = load_pipeline(WEIGHTS)
    student = pipeline.transformer
    add_adapter(student, rank=2)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) / 50
    file = save_adapter(student, tmp_path)
    text = encode_text(pipeline.tokenizer, pipeline.text_encoder, PROMPTS).detach()
    noise = torch.randn(2, *SMALL)
    expected = follow(student, noise, [0.9, 0.5], text)
    again: Any = load_pipeline(WEIGHTS).transformer
    untouched = follow(again, noise, [0.9, 0.5], text)
    add_adapter(again, rank=2, start=file)
    loaded: Any = load_model(str(WEIGHTS), loras=[LoraConfig(path=str(file))], device="cpu")
    for transformer in (again, loaded.transformer):
        torch.testing.assert_close(follow(transformer, noise, [0.9, 0.5], text), expected, atol=1e-3, rtol=0)
    assert (untouched - expected).abs().max() > 0.02


def test_the_shipped_twin_is_a_job() -> None:
    """Its config names the model, the LoRA and its sampler; the LoRA is in the model's revision, and small."""
    job = load_job("testbed-4step")
    facts = inspect_model(job.model.path, loras=job.model.loras)
    assert facts.revision.startswith(f"{inspect_model('testbed').revision}+")
    assert [own[0] for own in pieces(4, 1)] == pytest.approx(facts.sigmas(job.generation))
    assert lora_file(job.model.loras[0]).stat().st_size < 10e6


def test_benchmarks_load_what_ranks_load() -> None:
    """A job's LoRAs are in the weights that benchmarks measure."""
    job, plain = load_job("testbed-4step"), load_job("testbed")
    twin, base = (job_model(own, "cpu").transformer.blocks[0].attn1.to_q.weight for own in (job, plain))
    assert (twin - base).abs().max() > 1e-3
