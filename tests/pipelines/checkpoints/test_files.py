"""What is in a checkpoint folder, and a sentence for whatever is wrong with one, before a weight is read."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from numina.errors import ConfigError, ModelError
from numina.prompts.tokens import locate_tokens
from pipelines.base import GenerationConfig
from pipelines.checkpoints.files import numbers, weight_files
from pipelines.models.families import inspect
from pipelines.models.registry import check_room, load_model, weight_bytes
from pipelines.models.wan import WanModel
from pipelines.parallel.config import MemoryConfig
from tests.pipelines.conftest import GENERATION, PROMPT, PROMPTS, TARGETS

PARTS = ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"]


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def weights(folder: Path) -> Path:
    [file] = folder.glob("*.safetensors")
    return file


def change_index(folder: Path, **more: object) -> None:
    index = json.loads((folder / "model_index.json").read_text()) | more
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "depth", "heads", "joint", "strides", "shift"),
    [
        ("wan2.1-1.3b", 3, 4, False, (4, 16, 16), 3.0),
        ("wan2.1-14b", 4, 6, False, (4, 16, 16), 3.0),
        ("wan2.2-5b", 3, 4, False, (4, 32, 32), 5.0),
        ("cogvideox-5b", 3, 4, True, (4, 16, 16), None),
    ],
)
def test_facts_come_from_configs_alone(
    name: str,
    depth: int,
    heads: int,
    joint: bool,
    strides: tuple[int, int, int],
    shift: float | None,
    twin: Callable[[str], Path],
) -> None:
    """Depth, heads, strides and schedule of every family are known before a weight is read."""
    facts = inspect(twin(name))
    assert (facts.depth, facts.heads, facts.head_size, facts.joint) == (depth, heads, 16, joint)
    assert (facts.token_strides, facts.shift) == (strides, shift)
    assert facts.grid(GENERATION).tokens == 5 * (64 // strides[1]) ** 2


def test_a_size_off_the_grid_gets_the_nearest_that_fits(twin: Callable[[str], Path]) -> None:
    """A clip's sides are multiples of a token's."""
    with pytest.raises(ConfigError, match="multiple of 32: use 64"):
        inspect(twin("wan2.2-5b")).grid(GenerationConfig(height=80, width=64))


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(copy: Path, part: str) -> None:
    """A folder without a part is refused, and the part is named."""
    shutil.rmtree(copy / part)
    with pytest.raises(ModelError, match=f"lacks the part {part}/"):
        inspect(copy)


def test_a_missing_weights_file_is_named(copy: Path) -> None:
    """Half a download is refused before anything is read."""
    index = {"weight_map": {"a": weights(copy / "transformer").name, "b": "diffusion_pytorch_model-2.safetensors"}}
    (copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks diffusion_pytorch_model-2\.safetensors"):
        inspect(copy)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_broken_off_is_told_by_its_size(copy: Path, kept: int) -> None:
    """In the header or after it: the message has the file's size, and the one that it should have."""
    file = weights(copy / "transformer")
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    size = len(content) + kept if kept < 0 else kept
    with pytest.raises(ModelError, match=f"{file.name} can't be read: it has {size} bytes") as error:
        inspect(copy)
    told = int(re.findall(r" (\d+); download it again", str(error.value))[0])
    assert told == len(content) if kept < 0 else size < told <= len(content)


def test_a_pointer_in_place_of_its_file_is_told(copy: Path) -> None:
    """What a clone without Git LFS leaves behind; the message has the real file's size."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9912\n"
    weights(copy / "vae").write_text(pointer)
    with pytest.raises(
        ModelError, match=f"LFS pointer of {len(pointer)} bytes for a file of 9912 bytes; download it again"
    ):
        inspect(copy)


@pytest.mark.parametrize("content", [b"<!doctype html> That page is gone", (9).to_bytes(8, "little") + b"{not JSON"])
def test_something_else_in_place_of_a_file_is_told(copy: Path, content: bytes) -> None:
    """Such as an error page that was saved under its name."""
    weights(copy / "vae").write_bytes(content)
    with pytest.raises(ModelError, match=r"n't (safetensors|JSON); download it again"):
        inspect(copy)


def header(content: str) -> bytes:
    """A safetensors file without tensors' bytes."""
    return len(content).to_bytes(8, "little") + content.encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model_index.json", "[]", "model_index.json holds '\\[\\]', no JSON object"),
        ("model_index.json", '{"_class_name": "WanPipeline", "transformer": ["diffusers"]}', "transformer is None"),
        ("transformer/config.json", "null", "config.json holds 'None', no JSON object"),
        ("transformer/config.json", "{}", "has no 'num_layers'"),
        ("transformer/config.json", "[" * 100_000, "config.json can't be read"),
        ("scheduler/scheduler_config.json", "[]", "no JSON object"),
        ("tokenizer/tokenizer.json", '{"version":', "tokenizer.json can't be read"),
        ("tokenizer/tokenizer_config.json", "[]", "no JSON object"),
        ("vae/diffusion_pytorch_model.safetensors.index.json", "{}", "has no weight_map"),
        ("vae/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {}}', "has no weight_map"),
        ("vae/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {"a": 3}}', "has no weight_map"),
        ("vae/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {"a": "../b"}}', "isn't in its folder"),
        (
            "vae/diffusion_pytorch_model.safetensors.index.json",
            '{"weight_map": {"a": "diffusion_pytorch_model.safetensors"}}',
            "no file holds a, named by its index",
        ),
        ("vae/diffusion_pytorch_model.safetensors", header("[1, 2]"), "header isn't that of tensors"),
        ("vae/diffusion_pytorch_model.safetensors", header('{"a": 3}'), "header isn't that of tensors"),
        (
            "vae/diffusion_pytorch_model.safetensors",
            header('{"a": {"dtype": "F32", "shape": []}}'),
            "isn't that of ten",
        ),
        ("vae/diffusion_pytorch_model.safetensors", header("{}"), "holds no tensor"),
    ],
)
def test_a_file_of_another_form_is_named(copy: Path, name: str, content: str | bytes, message: str) -> None:
    """JSON that isn't an object, or lacks what it is read for; never an error of Python's own."""
    (copy / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=rf"{message}.*(download|use) "):
        inspect(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_layers", "three"), ("num_attention_heads", None), ("patch_size", 2), ("patch_size", [1, 2])],
)
def test_a_setting_of_another_kind_is_told(copy: Path, key: str, value: object) -> None:
    """A config of another class, or one that was edited."""
    file = copy / "transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=r"config\.json of .* has a value of another kind \(.*; download"):
        inspect(copy)


@pytest.mark.parametrize(
    "name",
    ["transformer/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"],
)
def test_a_link_that_leads_nowhere_is_named(copy: Path, name: str) -> None:
    """As a cache has it whose blobs were removed."""
    (copy / name).unlink()
    (copy / name).symlink_to("../../blobs/gone")
    with pytest.raises(ModelError, match=f"{Path(name).name}.*; download the whole checkpoint"):
        inspect(copy)


def test_a_tokenizer_without_a_vocabulary_is_told(copy: Path) -> None:
    """An empty folder, or empty files."""
    for file in (copy / "tokenizer").iterdir():
        file.unlink() if file.suffix == ".json" else file.write_bytes(b"")
    with pytest.raises(ModelError, match=r"tokenizer has none of tokenizer\.json, "):
        inspect(copy)


def test_all_that_is_wrong_is_said_at_once(copy: Path) -> None:
    """A line for each part, so that one look is enough."""
    shutil.rmtree(copy / "scheduler")
    weights(copy / "vae").unlink()
    file = weights(copy / "transformer")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError) as error:
        inspect(copy)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    for words in ("download it again", "vae has no", "lacks the part scheduler/"):
        assert words in str(error.value)


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    """Only safetensors are read."""
    file = weights(copy / "vae")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled weights"):
        inspect(copy)


def test_another_family_and_an_empty_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    """What isn't run is said in a sentence, and so is a part of another family."""
    change_index(copy, vae=["diffusers", "AutoencoderKLCogVideoX"])
    with pytest.raises(ModelError, match="vae is 'AutoencoderKLCogVideoX', expected 'AutoencoderKLWan'; use a"):
        inspect(copy)
    change_index(copy, _class_name="FluxPipeline")
    with pytest.raises(ModelError, match=r"names 'FluxPipeline'; supported are WanPipeline, CogVideoXPipeline"):
        inspect(copy)
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    "more", [{"transformer_2": ["diffusers", "WanTransformer3DModel"]}, {"boundary_ratio": 0.9}], ids=str
)
def test_a_pair_of_transformers_is_refused(copy: Path, more: dict[str, object]) -> None:
    """Wan2.2's pair has the same class name; half of it would make clips, and wrong ones."""
    change_index(copy, **more)
    with pytest.raises(ModelError, match=f"{next(iter(more))}.*use Wan2.1"):
        inspect(copy)


def test_variants_of_weights_are_left_out(copy: Path) -> None:
    """A half-precision variant beside the weights, as hubs have them, is not taken for a part of them, nor for a change
    of the model."""
    before, file = inspect(copy).revision, weights(copy / "transformer")
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    shutil.copy(file, copy / "all-in-one.safetensors")
    assert weight_files(copy / "transformer") == [file]
    assert inspect(copy).revision == before
    WanModel.load(copy)


def test_the_revision_follows_the_files(copy: Path) -> None:
    """Other weights or another vocabulary, another revision: rows of one never pass for the other's."""
    seen = {inspect(copy).revision, inspect(copy).revision}
    file = weights(copy / "transformer")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    seen.add(inspect(copy).revision)
    (copy / "tokenizer" / "spiece.model").write_bytes(b"words")
    seen.add(inspect(copy).revision)
    assert len(seen) == 3


def test_numbers_are_counted_from_headers(tmp_path: Path) -> None:
    """By the dtype that they are stored in."""
    tensors = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(7), "c": torch.zeros(())}
    save_file(tensors, tmp_path / "model.safetensors")
    assert numbers(tmp_path) == {"BF16": 15, "F32": 8}


def test_a_sentencepiece_model_tells_offsets(twin: Callable[[str], Path], tmp_path: Path) -> None:
    """CogVideoX-5b's tokenizer is spiece.model alone: its tokens are SentencePiece's own, and found in the prompt."""
    folder = Path(shutil.copytree(twin("cogvideox-5b"), tmp_path / "copy"))
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*PROMPTS] * 4),
        model_prefix=str(folder / "tokenizer" / "spiece"),
        vocab_size=38,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 64}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    change_index(folder, tokenizer=["transformers", "T5Tokenizer"])

    model: Any = load_model(str(folder))
    own = SentencePieceProcessor(str(folder / "tokenizer" / "spiece.model"))
    assert model.pipeline.tokenizer(PROMPT)["input_ids"] == [*own.encode(PROMPT), 1]
    [text] = model.encode([PROMPT], [""], GENERATION)
    for target, found in zip(TARGETS, locate_tokens(text.prompt, TARGETS, text.offsets), strict=True):
        start, end = text.offsets[found.noun[0]][0], text.offsets[found.noun[-1]][1]
        assert text.prompt[start:end] == target.noun


def test_weights_must_have_room(tiny_checkpoint: Path) -> None:
    """What is counted is what is loaded; what is free decides, and the message says what takes less."""
    model = load_model(str(tiny_checkpoint), dtype="bfloat16")
    part = {name: sum(p.numel() for p in getattr(model.pipeline, name).parameters()) for name in PARTS[:3]}

    def counted(shard: str, text_encoder: bool) -> int:
        memory = MemoryConfig(shard=shard)
        return weight_bytes(tiny_checkpoint, torch.bfloat16, memory, text_encoder)

    assert counted("none", True) == 2 * (part["transformer"] + part["text_encoder"]) + 4 * part["vae"]
    assert counted("none", False) == 2 * part["transformer"] + 4 * part["vae"]
    assert counted("zero3_offload", True) == 4 * part["vae"]
    check_room(30 << 30, 30 << 30, 80 << 30, what="wan")
    with pytest.raises(ModelError, match=r"39\.5 GiB .*, 9\.5 GiB more than the 30\.0 that are free of 79\.0") as error:
        check_room(int(39.5 * 2**30), 30 << 30, 79 << 30, what="wan")
    for way in ("memory.shard=zero3", "memory.text_encoder=apart", "numina plan"):
        assert way in str(error.value)
