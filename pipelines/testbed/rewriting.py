"""Prompt enhancement in the words, and at the length, that the embedded model was trained on."""

from collections.abc import Sequence

from numina.prompts.nouns import NUMBER_WORDS
from numina.prompts.targets import Target, find_mentions
from pipelines.rewriting.rules import keeps_targets
from pipelines.testbed.world import COLOURS, PLURALS, SHAPES

MAX_TOKENS = 24
"""What the embedded model's text encoder reads, the end mark included."""


def repeat_counts(prompt: str, targets: Sequence[Target]) -> str:
    """`three red circles moving on a grey background and 3 red circles`; an article that counts becomes `one`."""
    words = prompt.split()
    for target in targets:
        if target.count == 1:
            words = _said_in_words(words, target.noun)
    said = " ".join(words)
    phrases = [_phrase(said, target.noun) for target in targets]
    in_digits, in_words = (
        "".join(f" and {number} {phrase}" for number, phrase in zip(numbers, phrases, strict=True))
        for numbers in zip(*((str(target.count), NUMBER_WORDS[target.count]) for target in targets), strict=True)
    )
    if said.endswith((in_digits, in_words)):
        return said
    again = in_words if any(word.isdigit() for word in words) else in_digits
    longer = f"{said}{again}"
    fits = len(longer.split()) < MAX_TOKENS and keeps_targets(longer, targets)
    return longer if fits else said


def _said_in_words(words: list[str], noun: str) -> list[str]:
    """`one` for the article that stands before the noun, with no more than one word of the vocabulary between."""
    changed = list(words)
    for place, word in enumerate(words):
        for article in range(max(0, place - 2), place):
            if word.lower() == noun.lower() and words[article].lower() == "a":
                changed[article] = "one"
    return changed


def _phrase(prompt: str, noun: str) -> str:
    """The noun with those of its modifiers that the model knows."""
    start, stop = find_mentions(prompt, noun)[0].phrase
    return " ".join(word for word in prompt[start:stop].lower().split() if word in _vocabulary())


def _vocabulary() -> frozenset[str]:
    return frozenset({*COLOURS, *SHAPES, *PLURALS.values()})
