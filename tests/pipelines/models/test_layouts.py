"""Folders as the four published repositories have them: looked at, loaded, and their nouns found in subwords."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from numina.prompts.targets import Target
from numina.prompts.tokens import locate_tokens
from pipelines.base import VideoModel
from pipelines.models.published import contents_of
from pipelines.models.registry import inspect_model, load_model
from pipelines.models.text_limit import TextLimit
from tests.layouts import published_folder
from tests.pipelines.conftest import GENERATION

NAMES = ("wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.2-ti2v-5b", "cogvideox-5b")
PROMPT = "three hourglasses, two teddy bears and four mice on a table"
NOUNS = ["hourglasses", "teddy bears", "mice"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: published_folder(name, tmp_path_factory.mktemp("layouts") / name))


@pytest.fixture(scope="module")
def loaded(layout: Callable[[str], Path]) -> Callable[[str], VideoModel]:
    return cache(lambda name: load_model(str(layout(name)), device="cpu"))


@pytest.mark.parametrize(
    ("name", "transformer", "text", "dtype"),
    [
        ("wan2.1-t2v-1.3b", 2, 5, "F32"),
        ("wan2.1-t2v-14b", 12, 5, "F32"),
        ("wan2.2-ti2v-5b", 5, 3, "F32"),
        ("cogvideox-5b", 2, 2, "BF16"),
    ],
)
def test_shards_and_dtypes_are_those_of_the_hub(
    layout: Callable[[str], Path], name: str, transformer: int, text: int, dtype: str
) -> None:
    """Every part is read from as many files as there, behind its index; facts come from the published configs."""
    folder, facts = layout(name), inspect_model(str(layout(name)))
    assert len(list(folder.glob("transformer/*.safetensors"))) == transformer
    assert len(list(folder.glob("text_encoder/*.safetensors"))) == text
    assert (facts.name, facts.depth, facts.heads) == (name, 3, 4)
    assert facts.token_strides == ((4, 32, 32) if name == "wan2.2-ti2v-5b" else (4, 16, 16))
    assert facts.shift == {"wan2.2-ti2v-5b": 5.0, "cogvideox-5b": None}.get(name, 3.0)
    parts = contents_of(facts).parts
    assert parts["transformer"].bytes > parts["transformer"].parameters * (4 if dtype == "F32" else 2)


@pytest.mark.parametrize("name", NAMES)
def test_all_weights_are_loaded(loaded: Callable[[str], VideoModel], layout: Callable[[str], Path], name: str) -> None:
    """The loader gives what diffusers' own `from_pretrained` does, embeddings that files have once included."""
    import diffusers

    model: Any = loaded(name)
    own = getattr(diffusers, model.facts.family).from_pretrained(layout(name), local_files_only=True)
    for part in ("transformer", "vae", "text_encoder"):
        theirs = getattr(own, part).state_dict()
        ours = getattr(model.pipeline, part).state_dict()
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(ours[key].float(), tensor.float()), key


@pytest.mark.parametrize("name", NAMES)
def test_nouns_are_found_in_their_subwords(loaded: Callable[[str], VideoModel], name: str) -> None:
    """Unigram pieces cut words that weren't learnt; a noun's tokens are all of its pieces, and no other's."""
    model = loaded(name)
    [text] = model.encode([PROMPT], [""], GENERATION)
    targets = [Target(noun, 1) for noun in NOUNS]
    spans = locate_tokens(text.prompt, targets, text.offsets, model.clean)
    for noun, own in zip(NOUNS, spans, strict=True):
        pieces = [text.prompt[slice(*text.offsets[token])] for token in own.noun]
        assert "".join(pieces).replace(" ", "") == noun.replace(" ", "")
        assert len(pieces) >= (2 if noun == "mice" else 3)
    assert not {*spans[0].noun} & {*spans[1].noun}


@pytest.mark.parametrize("name", NAMES)
def test_long_prompts_are_cut_where_the_encoder_ends(layout: Callable[[str], Path], name: str) -> None:
    """By the tokenizer's own file, or where there is only spiece.model, by what transformers makes of it."""
    limit = TextLimit(inspect_model(str(layout(name))))
    assert limit.tokens == (226 if name == "cogvideox-5b" else 512)
    assert limit.cut(PROMPT) == ""
    assert limit.cut("sand and grass " * 400).endswith("sand and grass")
