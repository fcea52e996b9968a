"""Which noun phrases ask for a count, and for how many: parts of the picture, measures and scenery set aside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from numina.prompts import lexicon
from numina.prompts.doubts import Doubt
from numina.prompts.phrases import NounPhrase, Phrases
from numina.prompts.words import Word, number

# Words that end what is said of each: "three chefs each hold a ladle while two ovens glow".
_CLAUSES = frozenset(("while", "as", "when", "where", "but", "whereas"))


class Counted(NamedTuple):
    """A noun phrase that asks for a count."""

    phrase: NounPhrase
    asked: int
    doubt: Doubt | None
    aside: bool = False  # with "a", where it happens: no target of its own, but one more of a noun that is counted


class _Each(NamedTuple):
    start: int
    stop: int
    holders: int  # those that have it


def counted_phrases(read: Phrases) -> Iterator[Counted]:
    """Noun phrases that ask for a count: without measures, scenery, parts of a body and names of the picture itself."""
    words, phrases = read.words, read.phrases
    aside_until = -1  # last word of the phrase set aside before, for "on a table and a chair"
    scopes = list(_scopes(words, phrases)) if any(word.text == "each" for word in words) else []
    for phrase in phrases:
        opening, form = phrase.opening, words[phrase.noun].form
        if opening.number is None:
            continue
        noun, opener = form.one, phrase.opener
        before = words[opener - 1].text if opener and not words[opener].breaks else ""
        if form.text in lexicon.MEASURES and _is_plain(words, phrase):
            continue
        scope = next((scope for scope in scopes if scope.start <= opener < scope.stop), None)
        if opening.number == 1 and not opening.more and _is_aside(words, phrase, noun, before):
            aside_until = phrase.noun
            continue
        if before in ("no", "without") or (noun in lexicon.LIMBS and before in ("on", "in")):
            continue
        if form.limb and noun in lexicon.LIMBS and before == "with":
            continue
        if form.text in lexicon.NO_KINDS or (before == "into" and noun in lexicon.DIVISIONS):
            continue
        if words[opener].text in ("a", "an") and before in lexicon.NO_OBJECT:
            aside_until = phrase.noun
            continue
        if scope is not None:
            if form.limb or (opening.article and (noun in lexicon.SCENERY or form.abstract)):
                continue
            yield Counted(phrase, opening.number * scope.holders, Doubt.EACH)
            continue
        if opening.article and not _takes_part(words, phrase, before, aside_until):
            aside_until = phrase.noun
            if not (noun in lexicon.PICTURES or noun in lexicon.SCENERY or form.abstract):
                yield Counted(phrase, 1, Doubt.MERGED, aside=True)
            continue
        if opening.number == 1 and before == "but":
            phrase = phrase._replace(opening=opening._replace(known=True))  # "two forks, but one fork is broken"
        yield Counted(phrase, opening.number, phrase.doubt)


def _is_aside(words: list[Word], phrase: NounPhrase, noun: str, before: str) -> bool:
    """Whether one of it says where or when, names a group, or is part of a body: "one side", "a group of"."""
    if noun in lexicon.GROUPS or (noun in lexicon.BODY and before != ""):
        return True
    return not phrase.opening.article and noun in lexicon.ONE_ASIDE


def _takes_part(words: list[Word], phrase: NounPhrase, before: str, aside_until: int) -> bool:
    """Whether a noun with "a" is a thing of its own in the picture."""
    form = words[phrase.noun].form
    noun = form.one
    if noun in lexicon.PICTURES or noun in lexicon.SCENERY or form.abstract or _holds_counted(words, phrase.noun):
        return False
    begins = phrase.opener == 0 or words[phrase.opener - 1].sentence != words[phrase.opener].sentence
    if noun in lexicon.ARTWORKS and begins and _is_of_something(words, phrase.noun):
        return False
    owner = words[phrase.opener - 2].form.one if phrase.opener >= 2 else ""
    if before == "of" and (owner in lexicon.PICTURES or owner in lexicon.GROUPS or owner in lexicon.ARTWORKS):
        return True  # "a photo of a cat"
    if form.being:
        placed = owner in lexicon.PARTS or owner in lexicon.POSITIONS  # "to the left of a cat"
        return before not in lexicon.NO_COMPANY or (before == "of" and placed)
    listed = before in ("and", "or") and aside_until == phrase.opener - 2
    return before not in lexicon.PREPOSITIONS and not listed


def _is_of_something(words: list[Word], noun: int) -> bool:
    """Whether a word for a picture names this one: "a sketch of two violins"; a poster may hang there itself."""
    after = words[noun + 1] if noun + 1 < len(words) else None
    return after is None or after.breaks or after.text in ("of", "showing", "depicting", "about", "featuring", "in")


def _scopes(words: list[Word], phrases: list[NounPhrase]) -> Iterator[_Each]:
    """What is said of each of several: "robots, each with two arms", "three waiters carry two trays each"."""
    counted = [phrase for phrase in phrases if (phrase.opening.number or 0) > 1 and not phrase.opening.void]
    for i, word in enumerate(words):
        if word.text != "each" or (i + 1 < len(words) and words[i + 1].text in ("other", "side", "end")):
            continue
        here = [phrase for phrase in counted if phrase.noun < i and words[phrase.noun].sentence == word.sentence]
        after = words[i + 1] if i + 1 < len(words) and not words[i + 1].breaks else None
        closes = bool(here) and here[-1].noun == i - 1 and not word.breaks
        ends = after is None or (after.form.boundary and after.text not in ("with", "a", "an"))
        if closes and ends and len(here) > 1:  # "two trays each"
            yield _Each(here[-1].opener, i, here[-2].opening.number or 1)
            continue
        stop = i + 1
        while stop < len(words) and not words[stop].breaks and words[stop].text not in _CLAUSES:
            if words[stop].text == "and" and stop + 1 < len(words) and _begins_another(words, phrases, stop + 1):
                break
            stop += 1
        yield _Each(i, stop, here[-1].opening.number or 1 if here else 1)


def _begins_another(words: list[Word], phrases: list[NounPhrase], i: int) -> bool:
    """Whether a counted being begins a clause of its own: "each hold a balloon and two boys run"."""
    if not words[i].form.number or number(words, i) is None:
        return False
    return any(phrase.opener == i and words[phrase.noun].form.being for phrase in phrases)


def _is_plain(words: list[Word], phrase: NounPhrase) -> bool:
    """Whether a measure says how long, far or often ("three long seconds"; "three picture frames" does not)."""
    return all(words[i].form.adjective for i in phrase.modifiers)


def _holds_counted(words: list[Word], noun: int) -> bool:
    """Whether a noun only holds what is counted: "a bouquet of eight roses"."""
    return noun + 1 < len(words) and words[noun + 1].text == "of" and number(words, noun + 2) is not None
