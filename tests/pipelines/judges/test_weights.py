"""What is said of weights that are missing, cut off or another model's: before anything starts, and what to do."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from numina.errors import ConfigError, ModelError
from pipelines.judges import JudgeConfig, inspect_judge, load_judge
from pipelines.judges.registry import JUDGES

WEIGHTED = {kind: own.weights for kind, own in JUDGES.items() if own.weights}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(kind: str, path: object, **changes: Any) -> JudgeConfig:
    return JudgeConfig(kind=kind, name=kind, path=str(path), **changes)


@pytest.fixture
def copy(folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny GroundingDINO, to be damaged."""
    return shutil.copytree(folder("grounding-dino"), tmp_path / "copy")


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_whole_folder_is_described(kind: str, folder: Callable[[str], Path]) -> None:
    """Its weights' digest is what settings carry; bytes are the weights'."""
    facts = inspect_judge(config(kind, folder(kind)))
    assert facts["kind"] == kind
    assert facts["bytes"] == (folder(kind) / "model.safetensors").stat().st_size
    assert facts["weights"] == load_judge(config(kind, folder(kind))).settings["weights"]


def test_the_digest_is_of_the_content(copy: Path, folder: Callable[[str], Path]) -> None:
    """A copy has the same, also with a licence beside it; another way to prepare images has another."""
    before = inspect_judge(config("grounding-dino", copy))["weights"]
    (copy / "LICENSE.txt").write_text("Apache-2.0")
    assert before == inspect_judge(config("grounding-dino", folder("grounding-dino")))["weights"]
    assert before == inspect_judge(config("grounding-dino", copy))["weights"]
    rule = copy / "processor_config.json"
    rule.write_text(rule.read_text().replace("112", "128"))
    assert inspect_judge(config("grounding-dino", copy))["weights"] != before


@pytest.mark.parametrize("kind", WEIGHTED)
def test_no_folder_says_what_to_fetch_and_where(kind: str, tmp_path: Path) -> None:
    """All that is missing, the model it is made for, and the setting that takes it; loading says the same."""
    missing = tmp_path / "none"
    expected = (
        rf"judge.path '{missing}' is no folder here; fetch such a model once, `hf download {WEIGHTED[kind].example}"
        r" --local-dir FOLDER`, and give judge.path=FOLDER, or judge.path=.* with judge.revision"
    )
    for check in (inspect_judge, load_judge):
        with pytest.raises(ModelError, match=expected):
            check(config(kind, missing))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["model.safetensors"], "lacks model.safetensors or model.safetensors.index.json;"),
        (["config.json"], "lacks config.json;"),
        (["processor_config.json"], "lacks preprocessor_config.json or processor_config.json;"),
        (["tokenizer.json"], "lacks tokenizer.json or vocab.txt;"),
        (["tokenizer.json", "model.safetensors"], "lacks model.safetensors or .*, tokenizer.json or vocab.txt;"),
    ],
)
def test_each_missing_file_is_named(files: list[str], said: str, copy: Path) -> None:
    """All at once."""
    for file in files:
        (copy / file).unlink()
    with pytest.raises(ModelError, match=said):
        inspect_judge(config("grounding-dino", copy))


def test_pickled_weights_are_no_weights(copy: Path) -> None:
    """What older repositories have isn't loaded, and it is said."""
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"lacks model\.safetensors.*pickled weights are not loaded"):
        load_judge(config("grounding-dino", copy))


def test_half_downloaded_weights_are_an_error(copy: Path) -> None:
    """By the file's own header; a Git LFS pointer too."""
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ModelError, match=f"it has {len(whole) // 2} bytes, but its header says {len(whole)}; download it"
    ):
        inspect_judge(config("grounding-dino", copy))
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 689000000\n")
    with pytest.raises(ModelError, match=r"is a Git LFS pointer .* for a file of 689000000 bytes"):
        inspect_judge(config("grounding-dino", copy))


def test_another_model_is_an_error(folder: Callable[[str], Path]) -> None:
    """A folder is taken as the kind that it is."""
    with pytest.raises(ModelError, match=r"is of model_type 'owlv2', but judge.kind is 'clip'; give a folder such as"):
        inspect_judge(config("clip", folder("owlv2")))


def test_a_hub_s_model_is_pinned(folder: Callable[[str], Path]) -> None:
    """By a commit; a folder has none."""
    with pytest.raises(
        ConfigError, match=r"judge.revision is 'main'; 'some-lab/dino' is no local path, and .* a commit"
    ):
        inspect_judge(config("grounding-dino", "some-lab/dino", revision="main"))
    with pytest.raises(ConfigError, match=r"judge.revision is .* is a local path"):
        inspect_judge(config("clip", folder("clip"), revision=COMMIT))


def test_a_hub_s_model_comes_from_the_cache(
    folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HF_HUB_OFFLINE, from huggingface_hub's cache alone; what isn't there is said to be missing there."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    at = config("clip", "some-lab/clip", revision=COMMIT)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids downloads"):
        inspect_judge(at)
    shutil.copytree(folder("clip"), tmp_path / "models--some-lab--clip" / "snapshots" / COMMIT)
    assert inspect_judge(at)["weights"] == inspect_judge(config("clip", folder("clip")))["weights"]
