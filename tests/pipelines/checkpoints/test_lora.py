"""LoRAs: what diffusers does with them at every step, done once to the weights; what fits no layer is an error."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.job.config import load_job
from cluster.job.prepared import prepare
from numina.errors import ConfigError, ModelError
from pipelines.base import VideoModel
from pipelines.checkpoints.lora import FILE, LoraConfig
from pipelines.models.registry import inspect_model, load_model
from pipelines.sampling import denoise
from tests.pipelines.conftest import GENERATION, PROMPT

LAYERS = ["to_q", "to_k", "to_v", "net.0.proj"]
ALPHA = 3  # over rank 2: a LoRA's own scale is 1.5

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def lora(twin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder of a random LoRA of rank 2 for a twin, saved as trainers do."""

    def make(name: str, seed: int = 1) -> Path:
        folder = tmp_path_factory.mktemp("lora")
        model: Any = load_model(str(twin(name)))
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, lora_alpha=ALPHA, target_modules=LAYERS, init_lora_weights=False)
        model.transformer.add_adapter(config)
        type(model.pipeline).save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(model.transformer),
            transformer_lora_adapter_metadata=config.to_dict(),
        )
        return folder

    return make


def products(folder: Path) -> dict[str, Tensor]:
    """What a LoRA adds to each weight, B·A times its own scale."""
    tensors = {key.removeprefix("transformer."): tensor for key, tensor in load_file(folder / FILE).items()}
    return {
        key.replace(".lora_A", ""): ALPHA / 2 * tensors[key.replace("lora_A", "lora_B")] @ tensor
        for key, tensor in tensors.items()
        if "lora_A" in key
    }


def assert_added(model: VideoModel, base: VideoModel, added: Mapping[str, Tensor]) -> None:
    """Every weight is the base's plus what is given, and nothing of peft is left."""
    weights, before = model.transformer.state_dict(), base.transformer.state_dict()
    assert list(weights) == list(before)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, before[name] + added.get(name, 0), atol=1e-6, rtol=0)
    assert not any("peft" in type(module).__module__ for module in model.transformer.modules())
    assert not any(parameter.requires_grad for parameter in model.transformer.parameters())


def latents(model: VideoModel) -> Tensor:
    generation = replace(GENERATION, num_frames=9, steps=2)
    texts = model.encode([PROMPT], [""], generation)
    return denoise.finish(model, denoise.start(model, [1], generation), texts, generation)


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "cogvideox-5b"])
def test_a_lora_is_in_the_weights(name: str, twin: Callable[[str], Path], lora: Make) -> None:
    """W + scale · B·A in every layer it was made for, and the clip is that of diffusers' pipeline with the LoRA."""
    folder, base = lora(name), load_model(str(twin(name)))
    ours = load_model(str(twin(name)), loras=[LoraConfig(path=str(folder), scale=0.5)])
    added = {key: 0.5 * product for key, product in products(folder).items()}
    assert len(added) == (21 if name.startswith("wan") else 12)
    assert_added(ours, base, added)

    theirs: Any = base
    theirs.pipeline.load_lora_weights(folder, weight_name=FILE, adapter_name="theirs")
    theirs.pipeline.set_adapters(["theirs"], [0.5])
    torch.testing.assert_close(latents(ours), latents(theirs), atol=1e-5, rtol=0)
    assert (latents(ours) - latents(load_model(str(twin(name))))).abs().max() > 0.01


def test_several_loras_add_up(tiny_checkpoint: Path, lora: Make) -> None:
    """Each with its scale."""
    one, other = lora("wan2.1-1.3b", seed=1), lora("wan2.1-1.3b", seed=2)
    loras = [LoraConfig(path=str(one), scale=0.5), LoraConfig(path=str(other / FILE), scale=-2.0)]
    first, second = products(one), products(other)
    added = {key: 0.5 * first[key] - 2 * second[key] for key in first}
    assert_added(load_model(str(tiny_checkpoint), loras=loras), load_model(str(tiny_checkpoint)), added)


def test_other_tools_names_are_known(tiny_checkpoint: Path, lora: Make, tmp_path: Path) -> None:
    """Wan's own names of layers, as most published LoRAs have them."""
    names = {"attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v"}
    names |= {"attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v"}
    names |= {"ffn.net.0.proj": "ffn.0", "transformer.": "diffusion_model."}
    folder, renamed = lora("wan2.1-1.3b"), {}
    for key, tensor in load_file(folder / FILE).items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        renamed[key] = tensor.contiguous()
    save_file(renamed, tmp_path / "theirs.safetensors")
    added = {key: 2 / ALPHA * product for key, product in products(folder).items()}  # such files tell no alpha
    model = load_model(str(tiny_checkpoint), loras=[LoraConfig(path=str(tmp_path))])
    assert_added(model, load_model(str(tiny_checkpoint)), added)


def test_loras_are_part_of_the_revision(tiny_checkpoint: Path, lora: Make) -> None:
    """Another file or scale, another revision, and with it other keys of rows; none leaves it as it was."""
    one, other = lora("wan2.1-1.3b", seed=1), lora("wan2.1-1.3b", seed=2)
    base = inspect_model(str(tiny_checkpoint)).revision
    revisions = [
        inspect_model(str(tiny_checkpoint), loras=loras).revision
        for loras in (
            [],
            [LoraConfig(path=str(one))],
            [LoraConfig(path=str(one), scale=0.5)],
            [LoraConfig(path=str(other))],
            [LoraConfig(path=str(one)), LoraConfig(path=str(other))],
        )
    ]
    assert revisions[0] == base
    assert len(set(revisions)) == len(revisions)
    assert all(revision.startswith(f"{base}+") for revision in revisions[1:])
    assert inspect_model(str(tiny_checkpoint), loras=[LoraConfig(path=str(one / FILE))]).revision == revisions[1]
    assert load_model(str(tiny_checkpoint), loras=[LoraConfig(path=str(one))]).facts.revision == revisions[1]
    job = load_job("demo", [f"model.path={tiny_checkpoint}", f"model.loras=[{{path: {one}}}]", "prompts=testbed:demo"])
    assert prepare(job).model.revision == revisions[1]


def with_a_layer_too_many(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.blocks.9.attn1.to_q.lora_A.weight"] = torch.zeros(2, 64)
    tensors["transformer.blocks.9.attn1.to_q.lora_B.weight"] = torch.zeros(64, 2)


def of_a_text_encoder_too(tensors: dict[str, Tensor]) -> None:
    tensors["text_encoder.layers.0.q_proj.lora_A.weight"] = torch.zeros(2, 64)


def of_another_width(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.blocks.0.attn1.to_q.lora_A.weight"] = torch.zeros(2, 96)


def a_dora(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.blocks.0.attn1.to_q.dora_scale"] = torch.zeros(64, 1)


def of_nothing_known(tensors: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors["weight"] = torch.zeros(2)


UNFIT = {
    with_a_layer_too_many: r"doesn't fit WanTransformer3DModel: 2 of its 44 tensors .* transformer\.blocks\.9\.",
    of_a_text_encoder_too: r"1 of its 43 tensors belong to no layer, such as text_encoder\.",
    of_another_width: r"size mismatch for blocks\.0\.attn1\.to_q.*; use a LoRA that was made for this model",
    a_dora: r"is a DoRA: .* transformer\.blocks\.0\.attn1\.to_q\.dora_scale;",
    of_nothing_known: r"Invalid LoRA checkpoint.*; use a LoRA that was made for this model",
}


@pytest.mark.parametrize("change", UNFIT, ids=lambda change: change.__name__)
def test_what_does_not_fit_is_refused(
    change: Callable[[dict[str, Tensor]], None], tiny_checkpoint: Path, lora: Make, tmp_path: Path
) -> None:
    """A LoRA that is used in part, or not at all, is an error with the tensor's name, where libraries log a warning."""
    tensors = load_file(lora("wan2.1-1.3b") / FILE)
    change(tensors)
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ModelError, match=UNFIT[change]):
        load_model(str(tiny_checkpoint), loras=[LoraConfig(path=str(tmp_path))])


def test_another_models_lora_is_refused(twin: Callable[[str], Path], lora: Make) -> None:
    """Also where some of its layers would fit: the smaller Wan's in the larger one."""
    for name in ("cogvideox-5b", "wan2.1-14b"):
        with pytest.raises(ModelError, match="use a LoRA that was made for this model"):
            load_model(str(twin(name)), loras=[LoraConfig(path=str(lora("wan2.1-1.3b")))])


def test_a_file_must_be_named_where_there_are_several(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Which file it is, is never guessed; and it is safetensors, and whole."""

    def refused(**lora: Any) -> str:
        with pytest.raises(ModelError) as error:
            inspect_model(str(tiny_checkpoint), loras=[LoraConfig(path=str(tmp_path), **lora)])
        return str(error.value)

    assert refused().endswith(f"has no {FILE}; name one of its safetensors files as `file`")
    for name in ("high.safetensors", "low.safetensors"):
        save_file({"a": torch.zeros(3)}, tmp_path / name)
    assert refused().endswith("as `file`: high.safetensors, low.safetensors")
    assert "there is no" in refused(file="middle.safetensors")
    assert "pickled weights are not loaded" in refused(file="pytorch_lora_weights.bin")
    (tmp_path / "low.safetensors").write_bytes((tmp_path / "high.safetensors").read_bytes()[:-1])
    assert "download it again" in refused(file="low.safetensors")
    revisions = [
        inspect_model(str(tiny_checkpoint), loras=[LoraConfig(path=str(tmp_path / place), file=file)]).revision
        for place, file in (("", "high.safetensors"), ("high.safetensors", None))
    ]
    assert revisions[0] == revisions[1]


def test_sharded_weights_take_no_lora(tiny_checkpoint: Path, lora: Make) -> None:
    """Refused while a job is prepared, before anything is loaded."""
    folder = lora("wan2.1-1.3b")
    wishes = ["memory.shard=zero3", "parallel.ulysses=2", "generation.height=64", "generation.width=64"]
    job = load_job("demo", [f"model.path={tiny_checkpoint}", f"model.loras=[{{path: {folder}}}]", *wishes])
    with pytest.raises(ConfigError, match=r"leaves a rank a share of them.*nearest that works: memory\.shard=none"):
        prepare(job)


def test_a_typo_in_a_lora_suggests_the_key() -> None:
    """As everywhere in a job."""
    with pytest.raises(ConfigError, match=r"'scal'; did you mean 'model\.loras\[\]\.scale'"):
        load_job("demo", ["model.loras=[{path: a, scal: 2}]"])
