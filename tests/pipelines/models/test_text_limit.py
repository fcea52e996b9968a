"""What of a prompt the text encoder isn't given, by its tokenizer alone; the same as the encoder itself says."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from numina.errors import PromptError
from numina.prompts.targets import Target
from pipelines.models.registry import inspect_model, load_model
from pipelines.models.text_limit import TextLimit
from pipelines.sampling import generate as generating
from pipelines.sampling.generate import generate
from tests.pipelines.conftest import GENERATION
from tests.pipelines.sampling.test_generate import METHOD
from tests.twins import TWINS, build_twin

WORDS = 23  # that the tiny checkpoints' encoder takes, with an end token after them
FITS = " ".join(["red"] * (WORDS - 1) + ["circle"])
PROMPTS = {
    FITS: "",
    f"{FITS} moving": "moving",
    f"  {FITS}   moving on\na\tgrey background ": "moving on a grey background",
    "two red circles": "",
    f"{FITS} und weiter, größer & älter — 終わり": "und weiter, größer & älter — 終わり",
}


@pytest.mark.parametrize("twin", TWINS)
def test_the_tokenizer_says_what_the_encoder_cuts(twin: str, tmp_path: Path) -> None:
    """For every family, of prompts that just fit and that don't, as they are cleaned; negative prompts, too."""
    folder = str(build_twin(twin, tmp_path))
    limit, model = TextLimit(inspect_model(folder)), load_model(folder, device="cpu")
    assert limit.tokens == model.text_tokens == WORDS + 1
    for prompt, expected in PROMPTS.items():
        [text] = model.encode([prompt], [""], GENERATION)
        assert str.split(text.cut) == str.split(expected)
        assert limit.cut(prompt) == text.cut
        [text] = model.encode(["two red circles"], [prompt], GENERATION)
        assert (text.cut, str.split(text.negative_cut)) == ("", str.split(expected))
        [text] = model.encode(["two red circles"], [prompt], replace(GENERATION, guidance_scale=1.0))
        assert text.negative_cut == ""


def test_a_noun_behind_the_cut_is_refused(tiny_checkpoint: Path) -> None:
    """Of one that is before it nothing is said, whatever else is cut."""
    limit = TextLimit(inspect_model(str(tiny_checkpoint)))
    limit.check_nouns(f"{FITS} moving", [Target("circle", 1)])
    with pytest.raises(PromptError, match=r"'square' .* is cut off: the text encoder's 24 tokens end at"):
        limit.check_nouns(f"{FITS} and one square", [Target("circle", 1), Target("square", 1)])


def test_a_tokenizer_without_its_file_is_made(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CogVideoX's folder has it: transformers makes it of what is there, for long prompts alone."""
    import transformers

    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    made = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    asked: list[object] = []
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *where, **how: asked.append(where) or made
    )
    limit = TextLimit(inspect_model(str(tiny_checkpoint)))
    limit._folder = folder
    assert limit.cut("two red circles") == ""
    assert asked == []
    assert limit.cut(f"{FITS} moving") == "moving"


@pytest.mark.parametrize("method", [None, METHOD], ids=["plain", "numina"])
def test_generate_says_once_what_is_cut(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, method: object
) -> None:
    """With the text that is dropped; again for another prompt, and not for one that fits."""
    monkeypatch.setattr(generating, "_TOLD", set())
    model = load_model(str(tiny_checkpoint), device="cpu")
    given = {"generation": replace(GENERATION, steps=2), "method": method, "targets": (Target("circle", 2),)}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            generate(model, f"{FITS} moving on", **given)
        generate(model, FITS, **given)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "24 tokens" in warning
    assert "'moving on'" in warning
