"""Loading: the same folder layout as Wan2.1's own checkpoints, and a sentence for whatever is wrong with one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from numina.errors import ConfigError, ModelError
from pipelines import denoise
from pipelines.checkpoint import inspect, weight_files
from pipelines.wan import WanModel
from tests.pipelines.conftest import GENERATION, NEGATIVES, PROMPT, PROMPTS


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_facts_come_from_configs_alone(tiny_checkpoint: Path) -> None:
    """Depth, heads and grid are known before a weight is read."""
    facts = inspect(tiny_checkpoint)
    assert (facts.depth, facts.heads, facts.head_size) == (3, 4, 16)
    grid = facts.grid(GENERATION)
    assert (grid.frames, grid.height, grid.width, grid.tokens) == (5, 4, 4, 80)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copy: Path, part: str) -> None:
    """A folder without a part is refused, and the part is named."""
    shutil.rmtree(copy / part)
    with pytest.raises(ModelError, match=f"lacks the part {part}/"):
        inspect(copy)


def test_a_missing_weights_file_is_named(copy: Path) -> None:
    """Half a download is refused before anything is read."""
    weights = next((copy / "transformer").glob("*.safetensors"))
    index = {"weight_map": {"a": weights.name, "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="00002-of-00002"):
        inspect(copy)


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    """Only safetensors are read."""
    for weights in (copy / "vae").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled weights"):
        inspect(copy)


def test_another_family_and_an_empty_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    """What this adapter can't run is said in a sentence."""
    index = json.loads((copy / "model_index.json").read_text()) | {"_class_name": "CogVideoXPipeline"}
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="CogVideoXPipeline"):
        inspect(copy)
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    "more",
    [{"transformer_2": ["diffusers", "WanTransformer3DModel"]}, {"boundary_ratio": 0.9}, {"expand_timesteps": True}],
    ids=lambda more: next(iter(more)),
)
def test_what_only_wan22_has_is_refused(copy: Path, more: dict[str, object]) -> None:
    """Wan2.2's pipelines have the same class name; half of one would make clips, and wrong ones."""
    index = json.loads((copy / "model_index.json").read_text()) | more
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"{next(iter(more))}.*use a Wan2.1"):
        inspect(copy)


def test_variants_of_weights_are_left_out(copy: Path) -> None:
    """A half-precision variant beside the weights, as hubs have them, is not taken for a part of them."""
    weights = next((copy / "transformer").glob("*.safetensors"))
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert weight_files(copy / "transformer") == [weights]
    WanModel.load(copy)


def test_the_revision_follows_the_weights(copy: Path) -> None:
    """Other weights, other revision: rows of a retrained model never pass for the old one's."""
    before = inspect(copy).revision
    assert inspect(copy).revision == before
    weights = next((copy / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert inspect(copy).revision != before


def test_a_size_off_the_grid_gets_the_nearest_that_fits(tiny_checkpoint: Path) -> None:
    """VAE stride 8 × patch 2 = 16 is fine, and a model with a larger stride would say its own."""
    facts = replace(inspect(tiny_checkpoint), token_strides=(4, 32, 32))
    with pytest.raises(ConfigError, match="multiple of 32: use 64"):
        facts.grid(replace(GENERATION, height=80))


def test_denoising_is_the_pipelines_own(tiny_model: WanModel) -> None:
    """Plain generation is bit-equal to diffusers' WanPipeline from the same noise."""
    theirs = tiny_model.pipeline(
        PROMPT,
        negative_prompt="",
        height=GENERATION.height,
        width=GENERATION.width,
        num_frames=GENERATION.num_frames,
        num_inference_steps=GENERATION.steps,
        guidance_scale=GENERATION.guidance_scale,
        latents=tiny_model.noise([1], GENERATION),
        max_sequence_length=tiny_model.pipeline.tokenizer.model_max_length,
        output_type="latent",
    ).frames
    texts = tiny_model.encode([PROMPT], [""], GENERATION)
    ours = denoise.finish(tiny_model, denoise.start(tiny_model, [1], GENERATION), texts, GENERATION)
    assert torch.equal(ours, theirs)


def test_offsets_stand_in_the_cleaned_prompt(tiny_model: WanModel) -> None:
    """Offsets count in the text that was tokenized, after the pipeline's own cleaning."""
    [text] = tiny_model.encode(["  three   red circles &amp; two blue squares"], [""], GENERATION)
    assert text.prompt == "three red circles & two blue squares"
    words = [text.prompt[start:end] for start, end in text.offsets if end]
    assert words[:3] == ["three", "red", "circles"]


def test_texts_of_a_batch_are_the_prompts_own(tiny_model: WanModel) -> None:
    """A prompt's states, offsets and negative states are those it has alone; at scale 1 the last are left out."""
    for clip, together in enumerate(tiny_model.encode(PROMPTS, NEGATIVES, GENERATION)):
        [alone] = tiny_model.encode([PROMPTS[clip]], [NEGATIVES[clip]], GENERATION)
        assert (together.prompt, together.offsets) == (alone.prompt, alone.offsets)
        torch.testing.assert_close(together.conditional, alone.conditional, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.unconditional, alone.unconditional, atol=1e-5, rtol=1e-5)
    unguided = tiny_model.encode(PROMPTS, NEGATIVES, replace(GENERATION, guidance_scale=1.0))
    assert [text.unconditional for text in unguided] == [None] * len(PROMPTS)


def test_a_shortened_schedule_ends_at_the_clean_clip(tiny_model: WanModel) -> None:
    """The kept steps have the timesteps and noise levels of the whole schedule, and the last leads to no noise."""
    whole, kept = tiny_model.scheduler(GENERATION), tiny_model.scheduler(GENERATION, [0, 2, 5])
    assert torch.equal(kept.timesteps, whole.timesteps[[0, 2, 5]])
    assert torch.equal(kept.sigmas, whole.sigmas[[0, 2, 5, 6]])
    assert kept.sigmas[-1] == 0
