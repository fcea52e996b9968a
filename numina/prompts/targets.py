"""Which countable things a prompt asks for, and where it mentions them (arXiv 2604.08546 §3.1).

Reads ordinary English captions by rule: a numeral or article opens a noun phrase ("three small red birds"), its head
is the noun. No tagger, no model, so that the same prompt gives the same targets on every machine. Positions are
character offsets into the prompt.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from numina.errors import PromptError
from numina.prompts import lexicon
from numina.prompts.folding import UNSPACED, fold, folded
from numina.prompts.nouns import forms, singular
from numina.prompts.phrases import Phrases, read_phrases
from numina.prompts.reading import MAX_COUNT, Target, read_prompt
from numina.prompts.words import Span

__all__ = ["MAX_COUNT", "Mention", "Target", "check_targets", "find_mentions", "parse_targets"]


@dataclass(frozen=True)
class Mention:
    """One place where a prompt mentions a noun: the noun itself, and the phrase of its modifiers and it."""

    noun: Span
    phrase: Span


def parse_targets(prompt: str) -> tuple[Target, ...]:
    """Targets in the order of the prompt; () if it asks for nothing countable. A noun is one word, as in the prompt.

    Numerals always count ("three cats on two sofas"), but for measures ("for two seconds"), limbs stood on and what
    each of several has. "A" and "an" count for what takes part: no scenery ("on a grey background", "cross a street"),
    event ("a picnic"), clothing or name of the picture itself ("a photo of"); living beings always do ("beside a
    dog"). A noun that comes again is the same target, unless other modifiers make it another thing ("a red ball and a
    blue ball": two) or the words say so ("another ball").
    """
    return read_prompt(prompt).targets


def check_targets(prompt: str, targets: Sequence[Target], max_count: int = MAX_COUNT) -> None:
    """Raise :class:`PromptError` unless every target can be asked of this prompt.

    The prompt has text, there is a target, counts are from 1 to ``max_count``, no noun comes twice, all are mentioned.
    """
    if not prompt.strip():
        raise PromptError(f"prompt {prompt!r} has no text: write what the video should show")
    if not targets:
        raise PromptError(f"prompt {prompt!r} has no targets: name a count and a noun (three cats), or give targets")
    seen: dict[str, str] = {}
    for target in targets:
        if not 1 <= target.count <= max_count:
            raise PromptError(
                f"{target.count} {target.noun!r} in prompt {prompt!r}: a count must be from 1 to {max_count}"
            )
        other = seen.setdefault(singular(target.noun.lower()), target.noun)
        if other is not target.noun or sum(t.noun == target.noun for t in targets) > 1:
            raise PromptError(f"targets {other!r} and {target.noun!r} of prompt {prompt!r} are one noun: merge them")
        find_mentions(prompt, target.noun)


def find_mentions(prompt: str, noun: str) -> tuple[Mention, ...]:
    """Every mention of ``noun`` in any language: in singular or plural, in any case, however its accents are encoded.

    Whole words, where a script has spaces between them; else wherever its characters stand. Spans are offsets into
    ``prompt`` as given. A phrase has the modifiers between the numeral (or article) and the noun, not the numeral
    itself; without a numeral, plain adjectives before the noun. Raises :class:`PromptError` where there is no mention.
    """
    if not noun.strip():
        raise PromptError(f"noun {noun!r} for prompt {prompt!r} is empty: name what is to be counted")
    text, places = folded(prompt)
    found = [match.span() for match in _pattern(noun).finditer(text)]
    if not found:
        raise PromptError(f"noun {noun!r} isn't in prompt {prompt!r}: use the prompt's own word for it")
    if places is not None:
        found = [(places[start][0], places[end - 1][1]) for start, end in found]
    read = read_phrases(prompt)
    return tuple([Mention(noun=span, phrase=(_phrase_start(read, span), span[1])) for span in found])


@lru_cache(maxsize=1 << 14)
def _pattern(noun: str) -> re.Pattern[str]:
    """What matches a noun in a folded prompt."""
    parts = fold(noun).split()
    latin = all(character < "ɐ" for character in parts[-1])
    names = sorted(forms(parts[-1]), key=len, reverse=True) if latin else [parts[-1]]
    last = "|".join(re.escape(name) for name in names)
    pattern = r"\s+".join([*map(re.escape, parts[:-1]), f"(?:{last})"])
    before = "" if UNSPACED.match(parts[0][0]) else rf"(?:(?<![\w-])|(?<={UNSPACED.pattern}))"
    after = "" if UNSPACED.match(parts[-1][-1]) else rf"(?:(?![\w-])|(?={UNSPACED.pattern}))"
    return re.compile(before + pattern + after)


def _phrase_start(read: Phrases, noun: Span) -> int:
    """Where the phrase around a mention starts: after its numeral, or at its first plain adjective."""
    words = read.words
    first = next((i for i, word in enumerate(words) if word.span[1] > noun[0]), 0)
    for phrase in read.phrases:
        if phrase.opening.start <= first <= phrase.noun and words[phrase.noun].span[1] >= noun[1]:
            return min(words[min(phrase.opening.start, phrase.noun)].span[0], noun[0])
    start = noun[0]
    for i in range(first - 1, -1, -1):
        if words[i].text not in lexicon.ADJECTIVES or words[i + 1].gap.strip(" ,"):
            break
        start = words[i].span[0]
    return start
