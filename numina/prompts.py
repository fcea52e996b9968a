"""Which countable things a prompt asks for, and where it mentions them (arXiv 2604.08546 §3.1).

Reads ordinary English captions by rule: a numeral or article opens a noun phrase ("three small red birds"), its head
is the noun. No tagger, no model, so that the same prompt gives the same targets on every machine. Positions are
character offsets into the prompt.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

from text_to_num import text2num

from numina import lexicon
from numina.errors import PromptError

MAX_COUNT = 20  # instances of one noun that a latent frame can be expected to hold apart

Span = tuple[int, int]


@dataclass(frozen=True)
class Target:
    """A noun and how many of it the video shall show."""

    noun: str
    count: int


@dataclass(frozen=True)
class Mention:
    """One place where a prompt mentions a noun: the noun itself, and the phrase of its modifiers and it."""

    noun: Span
    phrase: Span


@dataclass(frozen=True)
class _Word:
    text: str  # lower case
    span: Span
    gap: str  # what stands between the word before and this one: spaces, punctuation


@dataclass(frozen=True)
class _NounPhrase:
    count: int | None  # None where a definite article or a pronoun opens it ("the birds")
    is_article: bool  # a, an, one: a count of one that may only be grammar
    opener: int  # index of the word that opens the phrase
    modifiers: tuple[int, ...]  # indices of words
    noun: int  # index of a word


def parse_targets(prompt: str) -> tuple[Target, ...]:
    """Targets in the order of the prompt; () if it asks for nothing countable.

    Numerals always count ("three cats on two sofas"). "A" and "an" count unless they are scenery ("on a grey
    background", "with a hat") or name the picture itself ("a photo of"). A noun that comes again is the same target,
    unless other modifiers make it another thing ("a red ball and a blue ball": two).
    """
    words = _words(prompt)
    targets: dict[str, Target] = {}
    described: dict[str, set[tuple[str, ...]]] = {}
    for phrase in _counted(words):
        noun = words[phrase.noun].text
        modifiers = tuple(words[i].text for i in phrase.modifiers)
        key, seen = singular(noun), described.setdefault(singular(noun), set())
        if phrase.count is None:
            continue
        if key not in targets:
            targets[key] = Target(noun=prompt[slice(*words[phrase.noun].span)], count=phrase.count)
        elif modifiers and () not in seen and modifiers not in seen:
            targets[key] = replace(targets[key], count=targets[key].count + phrase.count)
        seen.add(modifiers)
    return tuple(targets.values())


def check_targets(prompt: str, targets: Sequence[Target], max_count: int = MAX_COUNT) -> None:
    """Raise :class:`PromptError` unless every target can be asked of this prompt.

    The prompt has text, there is a target, counts are from 1 to ``max_count``, no noun comes twice, all are mentioned.
    """
    if not prompt.strip():
        raise PromptError(f"prompt {prompt!r} has no text: write what the video shall show")
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
    """Every mention of ``noun``, in singular or plural and any case, as whole words.

    A phrase has the modifiers between the numeral (or article) and the noun, not the numeral itself; without a numeral,
    plain adjectives before the noun. Raises :class:`PromptError` where there is no mention.
    """
    parts = noun.lower().split()
    if not parts:
        raise PromptError(f"noun {noun!r} for prompt {prompt!r} is empty: name what is to be counted")
    last = "|".join(re.escape(form) for form in sorted(_forms(parts[-1]), key=len, reverse=True))
    pattern = r"\s+".join([*map(re.escape, parts[:-1]), f"(?:{last})"])
    found = [match.span() for match in re.finditer(rf"(?<![\w-]){pattern}(?![\w-])", prompt, re.IGNORECASE)]
    if not found:
        raise PromptError(f"noun {noun!r} isn't in prompt {prompt!r}: use the prompt's own word for it")
    words = _words(prompt)
    phrases = list(_noun_phrases(words))
    return tuple(Mention(noun=span, phrase=(_phrase_start(words, phrases, span), span[1])) for span in found)


@cache
def singular(noun: str) -> str:
    """The singular of a lower-case noun; the noun itself if it is one already."""
    return noun if _is_singular(noun) else str(_inflect().singular_noun(noun) or noun)


def _phrase_start(words: list[_Word], phrases: list[_NounPhrase], noun: Span) -> int:
    """Where the phrase around a mention starts: after its numeral, or at its first plain adjective."""
    first = next((i for i, word in enumerate(words) if word.span[1] > noun[0]), 0)
    for phrase in phrases:
        inside = [*phrase.modifiers, phrase.noun]
        if first in inside and words[phrase.noun].span[1] >= noun[1]:
            return min(words[inside[0]].span[0], noun[0])
    start = noun[0]
    for word, after in zip(reversed(words[:first]), reversed(words[1 : first + 1]), strict=True):
        if word.text not in lexicon.ADJECTIVES or after.gap.strip(" ,"):
            break
        start = word.span[0]
    return start


def _counted(words: list[_Word]) -> Iterator[_NounPhrase]:
    """Noun phrases that ask for a count: without scenery, measures and names of the picture itself."""
    scenery_until = -1  # last word of the scenery phrase before, for "on a table and a chair"
    for phrase in _noun_phrases(words):
        noun = words[phrase.noun].text
        if noun in lexicon.MEASURES or (phrase.is_article and noun in lexicon.PICTURES | lexicon.SCENERY):
            continue
        if phrase.is_article and _holds_counted(words, phrase.noun):
            continue
        before = words[phrase.opener - 1].text if phrase.opener and not _breaks(words[phrase.opener].gap) else ""
        listed = before in ("and", "or") and scenery_until == phrase.opener - 2
        if phrase.is_article and (before in lexicon.PREPOSITIONS or listed) and not _of_picture(words, phrase.opener):
            scenery_until = phrase.noun
            continue
        yield phrase


def _of_picture(words: list[_Word], opener: int) -> bool:
    """Whether a phrase is what a picture shows: "a photo of a cat", "a group of three cats"."""
    return words[opener - 1].text == "of" and opener >= 2 and words[opener - 2].text in lexicon.PICTURES


def _holds_counted(words: list[_Word], noun: int) -> bool:
    """Whether a noun only holds what is counted: "a bouquet of eight roses"."""
    return noun + 1 < len(words) and words[noun + 1].text == "of" and _number(words, noun + 2) is not None


def _noun_phrases(words: list[_Word]) -> Iterator[_NounPhrase]:
    """Phrases that a numeral, an article or a determiner opens and a noun closes, left to right."""
    i = 0
    while i < len(words):
        opened = _opening(words, i)
        if opened is None:
            i += 1
            continue
        count, start = opened
        run = _run(words, start)
        head = _head(words, run, plural=count != 1) if run else None
        if head is None:
            i = start
            continue
        is_article = count == 1 and (start == i + 1)
        yield _NounPhrase(count, is_article, i, tuple(range(start, head)), head)
        i = head + 1


def _opening(words: list[_Word], i: int) -> tuple[int | None, int] | None:
    """Count that opens a phrase at word i, and the word after it; None if nothing opens there."""
    text = words[i].text
    if text in lexicon.DETERMINERS:
        # "the two cats" points back to cats already counted: its numeral doesn't count again.
        number = _number(words, i + 1)
        return None, number[1] if number else i + 1
    count, after = (1, i + 1) if text in ("a", "an") else (_number(words, i) or (0, i))
    if after == i:
        return None
    while after < len(words) and words[after].text in lexicon.ALONE and not _breaks(words[after].gap):
        after += 1
    if after < len(words) and words[after].text in lexicon.COLLECTIVES:
        times = lexicon.COLLECTIVES[words[after].text]
        if after + 1 < len(words) and words[after + 1].text == "of":
            return count * times, after + 2
        if words[after].text in ("dozen", "dozens"):
            return count * times, after + 1
    if after < len(words) and words[after].text == "of":
        return None  # "one of the dogs", "two of them"
    return count, after


def _number(words: list[_Word], start: int) -> tuple[int, int] | None:
    """Value of the numeral that starts at this word, as long as it goes, and the word after it."""
    for stop in range(min(start + 5, len(words)), start, -1):
        if any(_breaks(word.gap) for word in words[start + 1 : stop]):
            continue
        text = " ".join(word.text for word in words[start:stop])
        if text.isascii() and text.isdigit():
            return int(text), stop
        if all(part in lexicon.NUMBER_WORDS for part in re.split(r"[ -]", text)):
            try:
                return int(text2num(text, "en")), stop
            except ValueError:
                continue
    return None


def _run(words: list[_Word], start: int) -> list[int]:
    """Words from ``start`` that can belong to one noun phrase: up to punctuation, a preposition, verb or numeral."""
    run: list[int] = []
    for i in range(start, len(words)):
        word, plain = words[i], all(words[j].text in lexicon.ADJECTIVES for j in run)
        follows = words[i + 1].text if i + 1 < len(words) else ""
        if i > start and _breaks(word.gap) and not (word.gap.strip() == "," and plain):
            break
        if word.text == "and" and run and plain and follows in lexicon.ADJECTIVES:
            run.append(i)  # "black and white cows"
            continue
        if word.text in lexicon.BOUNDARIES or _number(words, i):
            break
        if not plain and (word.text in lexicon.VERBS or word.text.endswith("ly")):
            break
        # "-ing" and "-ed" describe a noun that is still to come ("small running dogs") or say what it does.
        if not plain and re.search(r"\w{2}(ing|ed)$", word.text) and word.text not in lexicon.ADJECTIVES:
            break
        run.append(i)
    while run and words[run[-1]].text == "and":
        run.pop()
    return run


def _head(words: list[_Word], run: list[int], *, plural: bool) -> int | None:
    """The word of a run that is its noun; None if there is none."""
    nouns = [i for i in run if words[i].text not in lexicon.ADJECTIVES and words[i].text != "and"]
    if plural:
        for i, after in zip(nouns, [*nouns[1:], -1], strict=True):
            # "two sports cars": of plurals side by side, the last one is meant.
            if _is_plural(words[i].text) and not (after == i + 1 and _is_plural(words[after].text)):
                return i
    else:
        for i, after in pairwise(nouns):
            if _is_plural(words[after].text):
                return i  # "a dog chases": the word after the noun is a verb
    return nouns[-1] if nouns else None


def _is_plural(word: str) -> bool:
    return not _is_singular(word) and bool(_inflect().singular_noun(word))


@cache
def _is_singular(word: str) -> bool:
    """Words that inflect takes for plurals, though they are singulars or no nouns at all."""
    return word in lexicon.SINGULAR_IN_S or word.endswith(("ous", "ss", "sis"))


def _forms(noun: str) -> set[str]:
    """A noun in singular and plural."""
    one = singular(noun)
    return {noun, one, str(_inflect().plural_noun(one)), f"{one}s"}


def _breaks(gap: str) -> bool:
    return bool(gap.strip())


def _words(prompt: str) -> list[_Word]:
    words, end = [], 0
    for match in re.finditer(r"\w+(?:[-'’.]\w+)*", prompt):
        words.append(_Word(match.group().lower(), match.span(), prompt[end : match.start()]))
        end = match.end()
    return words


@cache
def _inflect() -> Any:
    import inflect  # takes seconds to import, and only prompts need it

    return inflect.engine()
