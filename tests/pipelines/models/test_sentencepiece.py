"""Nouns in languages that don't part words, through a tokenizer of SentencePiece's kind: each has its own tokens."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from numina.errors import PromptError
from numina.prompts.targets import Target, parse_targets
from numina.prompts.tokens import locate_tokens
from pipelines.base import VideoModel
from pipelines.models.registry import inspect_model, load_model
from pipelines.models.text_limit import TextLimit
from tests.pipelines.conftest import GENERATION


@pytest.fixture(scope="module")
def folder(twin: Callable[[str], Path]) -> str:
    return str(twin("sentencepiece"))


@pytest.fixture(scope="module")
def model(folder: str) -> VideoModel:
    return load_model(folder, device="cpu")


def pieces(model: VideoModel, prompt: str, *nouns: str) -> list[list[str]]:
    """Of each noun the pieces of text that its tokens stand for."""
    [text] = model.encode([prompt], [""], GENERATION)
    spans = locate_tokens(text.prompt, [Target(noun, 1) for noun in nouns], text.offsets, model.clean)
    return [[text.prompt[slice(*text.offsets[token])] for token in own.noun] for own in spans]


@pytest.mark.parametrize(
    ("prompt", "nouns", "expected"),
    [
        ("狗在海边", ["狗"], [["狗"]]),
        ("三只红色气球在海边", ["气球"], [["气球"]]),
        ("三只猫和两只狗在草地上", ["猫", "狗"], [["猫和"], ["狗"]]),  # a token that also holds what is no noun
        ("三只猫，两只狗", ["猫", "狗"], [["三只猫"], ["狗"]]),  # and its numeral
        ("三只 猫", ["猫"], [[" 猫"]]),  # and the space before it
        ("鱼在海边", ["鱼"], [["鱼"]]),  # without the mark of the text's start, which is a token by itself
        ("猫狗在海边，两只狗", ["狗"], [["猫狗", "狗"]]),  # the other noun isn't asked for
        ("猫狗在海边，三只猫和两只狗", ["猫", "狗"], [["猫和"], ["狗"]]),  # theirs together is neither's
        ("three cats and 两只狗", ["cats", "狗"], [[" cats"], ["狗"]]),
    ],
)
def test_a_noun_has_the_tokens_that_hold_its_characters(
    model: VideoModel, prompt: str, nouns: list[str], expected: list[list[str]]
) -> None:
    """All of them, and none of another noun's."""
    assert pieces(model, prompt, *nouns) == expected


@pytest.mark.parametrize(
    ("prompt", "noun", "piece"),
    [
        ("３只猫，４只ｄｏｇｓ", "ｄｏｇｓ", "dogs"),  # full width, which the pipeline narrows
        ("three ｃａｔｓ", "cats", "cats"),
        ("&quot;三只猫&quot;", "猫", "猫"),
        ("  两只   ｶﾒ ", "ｶﾒ", "カメ"),  # half width, which it widens
        ("五个 ﬁsh", "ﬁsh", "fish"),
        (unicodedata.normalize("NFD", "三只ガ"), "ガ", "ガ"),  # decomposed
    ],
)
def test_what_cleaning_changes_is_found_where_it_is_then(model: VideoModel, prompt: str, noun: str, piece: str) -> None:
    """Offsets are those of the text that is tokenized, nouns are as the set has them."""
    assert "".join(pieces(model, prompt, noun)[0]).strip() == piece


def test_nouns_in_one_token_are_refused_before_work(folder: str, model: VideoModel) -> None:
    """They can't be told apart: the error says how they can, and a job knows it from the tokenizer alone."""
    limit, both = TextLimit(inspect_model(folder)), [Target("猫", 2), Target("狗", 1)]
    said = r"noun '猫' .* is in one token with another noun, '猫狗', .* write a space or a comma between them"
    with pytest.raises(PromptError, match=said):
        pieces(model, "猫狗在草地上", "猫", "狗")
    with pytest.raises(PromptError, match=said):
        limit.check_nouns("猫狗在草地上", both)
    limit.check_nouns("猫狗在草地上", both[:1])
    limit.check_nouns("猫，狗在草地上", both)
    limit.check_nouns("３只猫和４只ｄｏｇｓ", [Target("猫", 3), Target("ｄｏｇｓ", 4)])


def test_counts_read_from_chinese_have_tokens(model: VideoModel) -> None:
    """The nouns that the reading finds are those that the tokenizer's text has."""
    targets = parse_targets("三只猫和两只狗在草地上")
    assert targets == (Target("猫", 3), Target("狗", 2))
    assert pieces(model, "三只猫和两只狗在草地上", *(target.noun for target in targets)) == [["猫和"], ["狗"]]
