"""Loading: what from_pretrained gives, read by one rank, held once by each; what fails, fails on every rank."""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5EncoderModel

from numina.errors import GangError, ModelError
from pipelines.checkpoints import loading
from pipelines.checkpoints.loading import Loader
from pipelines.checkpoints.sharding import placement
from pipelines.models.registry import load_model, load_text_encoder
from pipelines.models.wan import WanModel
from tests.pipelines.conftest import GENERATION, NEGATIVES, PROMPTS
from tests.pipelines.ranks import spawn

PARTS = {"transformer": WanTransformer3DModel, "vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel}
CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def contents(module: torch.nn.Module) -> dict[str, Tensor]:
    """All that a module holds: parameters under each of their names, stored and computed buffers."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())


def assert_same(module: torch.nn.Module, other: torch.nn.Module) -> None:
    own, others = contents(module), contents(other)
    assert list(own) == list(others)
    for name, tensor in own.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name


@contextmanager
def files_opened() -> Iterator[list[Path]]:
    """Collects the weights files that are opened, by safetensors or by Python itself."""
    opened: list[Path] = []
    watching = True
    real = safetensors.safe_open

    def safe_open(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(Path(file))
        return real(file, *arguments, **options)

    def hook(event: str, arguments: Any) -> None:
        if watching and event == "open" and str(arguments[0]).endswith(".safetensors"):
            opened.append(Path(str(arguments[0])))

    sys.addaudithook(hook)  # for good: such a hook can't be removed
    safetensors.safe_open = safe_open
    try:
        yield opened
    finally:
        safetensors.safe_open = real
        watching = False


def edit(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes a safetensors file's tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def weights(folder: Path) -> Path:
    [file] = folder.glob("*.safetensors")
    return file


# --- in one process ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_modules_are_those_of_from_pretrained(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    """Every tensor of all three modules is bit-equal and of the same dtype, those kept in float32 among them."""
    theirs = WanPipeline.from_pretrained(
        tiny_checkpoint, local_files_only=True, dtype={"default": dtype, "vae": torch.float32}
    )
    ours = WanModel.load(tiny_checkpoint, dtype=dtype).pipeline
    for part in PARTS:
        assert_same(getattr(ours, part), getattr(theirs, part))
        assert not getattr(ours, part).training
        assert not any(parameter.requires_grad for parameter in getattr(ours, part).parameters())
    assert ours.transformer.dtype == ours.text_encoder.dtype == dtype
    assert ours.transformer.blocks[0].scale_shift_table.dtype == torch.float32
    wo = ours.text_encoder.encoder.block[0].layer[1].DenseReluDense.wo
    assert wo.weight.dtype == (torch.float32 if dtype == torch.float16 else dtype)


@pytest.mark.parametrize("saved", ["shared.weight", "encoder.embed_tokens.weight", "both"])
def test_tied_weights_stay_tied(copy: Path, tiny_model: WanModel, saved: str) -> None:
    """UMT5's embedding is one parameter under two names, whichever of them the file has."""

    def rename(tensors: dict[str, Tensor]) -> None:
        embedding = tensors.pop("shared.weight")
        names = ("shared.weight", "encoder.embed_tokens.weight") if saved == "both" else (saved,)
        tensors.update({name: embedding.clone() for name in names})

    edit(weights(copy / "text_encoder"), rename)
    encoder = Loader(CPU).load(UMT5EncoderModel, copy / "text_encoder", torch.float32)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    assert_same(encoder, tiny_model.pipeline.text_encoder)


def test_many_files_and_buckets_are_one_module(
    tiny_model: WanModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither files nor buckets show in what is loaded; a bucket is of one file, and within its size but for one."""
    tiny_model.transformer.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    monkeypatch.setattr(loading, "BUCKET", 5000)
    loader = Loader(CPU)
    module = loader.load(WanTransformer3DModel, tmp_path, torch.float32)
    assert_same(module, tiny_model.transformer)
    buckets = list(loading.fill_buckets(loading.plan(module, tmp_path, torch.float32)))
    assert max(len(bucket) for bucket in buckets) > 1
    for bucket in buckets:
        assert len({entry.file for entry in bucket}) == 1
        assert len(bucket) == 1 or sum(entry.bytes for entry in bucket) <= 5000


def test_what_loading_took_is_kept(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are those of all parameters; reading's seconds are reading's, and a process that is alone sends nothing."""
    clock = iter(range(10**6))  # a second between two looks at it
    monkeypatch.setattr(loading, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    real, reads = loading.read, list[None]()

    def read(*arguments: Any) -> None:
        next(clock)  # a second more
        reads.append(None)
        real(*arguments)

    monkeypatch.setattr(loading, "read", read)
    monkeypatch.setattr(loading, "send", lambda tensors: pytest.fail("there is nobody to send to"))
    model = WanModel.load(tiny_checkpoint)
    parameters = [p for part in PARTS for p in getattr(model.pipeline, part).parameters()]
    assert model.loading["bytes"] == sum(p.numel() * p.element_size() for p in parameters)
    buckets = model.loading["send"]  # a second each
    assert model.loading["read"] == buckets + len(reads)
    assert buckets >= len(PARTS)


def test_without_its_text_encoder_a_model_denoises(tiny_checkpoint: Path) -> None:
    """The encoder's weights stay unread; encoding says what to do."""
    with files_opened() as opened:
        model = load_model(str(tiny_checkpoint), text_encoder=False)
    looked = 2 * len(list(tiny_checkpoint.rglob("*.safetensors")))  # at all heads: whether whole, and which revision
    assert {file.parent.name for file in opened[looked:]} == {"transformer", "vae"}
    with pytest.raises(ModelError, match=r"without its text encoder; encode with `load_text_encoder`"):
        model.encode(PROMPTS, NEGATIVES, GENERATION)
    text = torch.zeros(1, model.text_tokens, model.transformer.config.text_dim)
    assert model.predict(model.noise([1], GENERATION), torch.tensor([900]), text).isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_encoder_alone_encodes_as_the_model_does(copy: Path, dtype: str) -> None:
    """Bit-equal, from a folder that has neither transformer nor VAE."""
    theirs = load_model(str(copy), dtype=dtype).encode(PROMPTS, NEGATIVES, GENERATION)
    shutil.rmtree(copy / "transformer")
    shutil.rmtree(copy / "vae")
    for own, other in zip(
        load_text_encoder(str(copy), dtype=dtype).encode(PROMPTS, NEGATIVES, GENERATION), theirs, strict=True
    ):
        assert (own.prompt, own.offsets) == (other.prompt, other.offsets)
        assert own.conditional.dtype == other.conditional.dtype
        assert torch.equal(own.conditional, other.conditional)
        assert torch.equal(own.unconditional, other.unconditional)
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(ModelError, match="lacks the part tokenizer/"):
        load_text_encoder(str(copy))


# --- what doesn't fit ---


def without_a_tensor(folder: Path) -> None:
    edit(weights(folder), lambda tensors: tensors.pop("proj_out.weight"))


def with_another(folder: Path) -> None:
    edit(weights(folder), lambda tensors: tensors.update({"proj_out.extra": torch.zeros(3, 2)}))


def of_another_shape(folder: Path) -> None:
    edit(weights(folder), lambda tensors: tensors.update({"proj_out.bias": torch.zeros(7)}))


def cut_short(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:-100])


BROKEN = {
    without_a_tensor: r"transformer: no file holds proj_out\.weight, of shape \(16, 64\).*download",
    with_another: r"model\.safetensors holds proj_out\.extra of shape \(3, 2\).*config\.json has no place.*download",
    of_another_shape: r"model\.safetensors: proj_out\.bias has shape \(7,\), but .* asks for \(16,\).*download",
    cut_short: r"model\.safetensors can't be read: .*download it again",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_what_does_not_fit_is_said(copy: Path, damage: Callable[[Path], None]) -> None:
    """The message has the file, the tensor, both shapes and the remedy."""
    damage(copy / "transformer")
    with pytest.raises(ModelError, match=BROKEN[damage]):
        WanModel.load(copy)


# --- in a gang ---


def save_larger(folder: Path) -> Path:
    """A transformer of 133 MB in three files, so that a copy of it shows."""
    config = {"num_attention_heads": 12, "attention_head_dim": 64, "text_dim": 64, "ffn_dim": 3072, "num_layers": 3}
    WanTransformer3DModel(**config, freq_dim=32, rope_max_seq_len=64).save_pretrained(folder, max_shard_size="60MB")
    return folder


@contextmanager
def peak_growth() -> Iterator[list[int]]:
    """How far this process's own memory (not what it maps of files) grows within the block, in bytes."""

    def held() -> int:
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return int(status["RssAnon"].split()[0]) * 1024

    def watch() -> None:
        while not done:
            grown[0] = max(grown[0], held() - before)
            time.sleep(0.001)

    before, grown, done = held(), [0], False
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        done = True
        watcher.join()
        grown[0] = max(grown[0], held() - before)


def memory_to_load(checkpoint: Path, shard: str = "none") -> float:
    """How far a rank's memory grows while it loads, as a multiple of the module's size."""
    place, loader = placement(shard, CPU), Loader(CPU)
    loading.BUCKET, before = 8 << 20, loading.BUCKET
    dist.barrier()
    with peak_growth() as grown:
        loader.load(WanTransformer3DModel, checkpoint, torch.float32, place)
    loading.BUCKET = before
    assert loader.spent["bytes"] > 120e6
    return grown[0] / loader.spent["bytes"]


def load_in_gang(rank: int, checkpoint: Path, larger: Path, broken: dict[str, Path], folder: Path) -> None:
    grown = memory_to_load(larger)
    sent: list[int] = []  # tensors at a time
    real = loading.send
    loading.send = lambda tensors: (sent.append(len(tensors)), real(tensors))
    with files_opened() as opened:
        models = {"float32": WanModel.load(checkpoint, dtype=torch.float32)}
        loading.send = real
        loading.BUCKET = 5000  # most tensors are larger, and go in pieces
        models["bfloat16"] = WanModel.load(checkpoint, dtype=torch.bfloat16)
        errors = {name: error_of(lambda path=path: WanModel.load(path)) for name, path in broken.items()}
        if rank == 0:
            loading.read = broken_off(loading.read, after=3)
        errors["broken off"] = error_of(lambda: WanModel.load(checkpoint))
    found = {name: [contents(getattr(model.pipeline, part)) for part in PARTS] for name, model in models.items()}
    spent = models["float32"].loading
    seen = {"tensors": found, "opened": len(opened), "errors": errors, "spent": spent, "sent": sent, "grown": grown}
    torch.save(seen, folder / f"rank{rank}.pt")


def error_of(load: Callable[[], object]) -> tuple[str, str]:
    try:
        load()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def broken_off(read: Callable[..., None], after: int) -> Callable[..., None]:
    calls = iter(range(after))

    def broken(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise RuntimeError("the link is down")
        read(*arguments)

    return broken


@pytest.fixture(scope="module")
def gang(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks saw while they loaded whole and broken checkpoints."""
    folder = tmp_path_factory.mktemp("gang")
    broken = {damage.__name__: folder / damage.__name__ for damage in BROKEN}
    for damage in BROKEN:
        shutil.copytree(tiny_checkpoint, broken[damage.__name__])
        damage(broken[damage.__name__] / "transformer")
    spawn(load_in_gang, 2, folder / "ranks", tiny_checkpoint, save_larger(folder / "larger"), broken, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_ranks_have_what_one_process_has(gang: list[dict[str, Any]], tiny_checkpoint: Path) -> None:
    """Bit-equal on both ranks, in float32 and bfloat16, together in a bucket or in pieces."""
    for dtype in ("float32", "bfloat16"):
        alone = WanModel.load(tiny_checkpoint, dtype=getattr(torch, dtype)).pipeline
        for rank in gang:
            for part, tensors in zip(PARTS, rank["tensors"][dtype], strict=True):
                wanted = contents(getattr(alone, part))
                assert list(tensors) == list(wanted)
                for name, tensor in tensors.items():
                    assert tensor.dtype == wanted[name].dtype
                    assert torch.equal(tensor, wanted[name]), (part, name)


def test_only_the_first_rank_opens_weights(gang: list[dict[str, Any]]) -> None:
    """Not even for the revision; the others get all from it."""
    assert [rank["opened"] > 0 for rank in gang] == [True, False]
    assert gang[1]["spent"]["bytes"] == gang[0]["spent"]["bytes"] > 0
    assert min(rank["spent"]["send"] for rank in gang) > 0


def test_small_tensors_travel_together(gang: list[dict[str, Any]], tiny_model: WanModel) -> None:
    """A part that fits in a bucket is sent at once."""
    assert gang[0]["sent"] == [
        len(getattr(tiny_model.pipeline, part).state_dict()) - (part == "text_encoder") for part in PARTS
    ]


def test_an_error_is_every_ranks(gang: list[dict[str, Any]]) -> None:
    """What the reading rank finds reaches the others, in the same words, and none is left waiting."""
    for damage in BROKEN:
        first, second = (rank["errors"][damage.__name__] for rank in gang)
        assert first == second
        assert first[0] == ModelError.__name__
    assert gang[0]["errors"]["broken off"] == ("RuntimeError", "the link is down")
    assert gang[1]["errors"]["broken off"][0] == GangError.__name__
    assert "RuntimeError: the link is down" in gang[1]["errors"]["broken off"][1]


def test_no_rank_holds_a_second_copy(gang: list[dict[str, Any]]) -> None:
    """While they load, ranks take little more memory than the module does: a bucket and a large tensor."""
    for rank in gang:
        assert 0.9 < rank["grown"] < 1.4
