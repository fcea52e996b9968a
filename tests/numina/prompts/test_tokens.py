import re

import pytest

from numina.errors import PromptError
from numina.prompts.targets import Target, parse_targets
from numina.prompts.tokens import TokenSpans, locate_tokens

PROMPT = "three small red birds and two cats near a cat"


def word_offsets(prompt: str, length: int = 24) -> list[tuple[int, int]]:
    """Offsets of a whole-word tokenizer with an end token, padded with (0, 0)."""
    offsets = [match.span() for match in re.finditer(r"\w+", prompt)]
    return (offsets + [(0, 0)] * length)[:length]


def test_all_mentions_and_whole_phrases():
    """Every occurrence counts, in singular and plural; the phrase adds the modifiers, not the numeral."""
    birds, cats = locate_tokens(PROMPT, parse_targets(PROMPT), word_offsets(PROMPT))
    assert birds == TokenSpans(noun=(3,), phrase=(1, 2, 3), first=(3,))
    assert cats == TokenSpans(noun=(6, 9), phrase=(6, 9), first=(6,))


def test_pieces_of_a_word_all_count():
    """A noun split into subwords keeps all of them, also where an offset takes in the space before (SentencePiece)."""
    offsets = [(0, 5), (5, 9), (9, 12), (12, 13), (0, 0), (0, 0)]
    (spans,) = locate_tokens("three butters", [Target("butters", 3)], offsets)
    assert spans.noun == (1, 2, 3)


def test_special_and_padding_tokens_are_never_chosen():
    """(0, 0) covers nothing, even for a noun at the prompt's start."""
    (spans,) = locate_tokens("birds", [Target("birds", 3)], [(0, 0), (0, 5), (0, 0)])
    assert spans.noun == (1,)


def test_a_truncated_noun_is_an_error():
    """A mention beyond the encoder's last token can't be guided: the error says where the text ends."""
    with pytest.raises(PromptError, match=r"'cats' at character 42 is cut off.*9 tokens end at character 41"):
        locate_tokens(PROMPT, [Target("cats", 2)], word_offsets(PROMPT, length=9))


def test_a_noun_cut_in_two_is_an_error():
    """Half a noun is no noun."""
    with pytest.raises(PromptError, match="cut off"):
        locate_tokens("three butterflies", [Target("butterflies", 3)], [(0, 5), (6, 12)])


def test_an_absent_noun_is_an_error():
    """The prompt's own error passes through."""
    with pytest.raises(PromptError, match="'dogs' isn't in prompt"):
        locate_tokens(PROMPT, [Target("dogs", 2)], word_offsets(PROMPT))


def test_offsets_of_another_text_are_an_error():
    """A noun that no token covers means that the offsets aren't this prompt's."""
    with pytest.raises(PromptError, match="has no token"):
        locate_tokens("red birds sing", [Target("birds", 2)], [(0, 3), (10, 14)])
