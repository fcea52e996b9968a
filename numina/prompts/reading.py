"""What a prompt asks for as the rules read it: targets, and the doubts about them (arXiv 2604.08546 §3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from numina.prompts import lexicon
from numina.prompts.chinese import is_chinese, read_chinese
from numina.prompts.counting import Counted, counted_phrases
from numina.prompts.doubts import Doubt, Doubtful
from numina.prompts.phrases import Phrases, read_phrases
from numina.prompts.words import Word

__all__ = ["MAX_COUNT", "Doubt", "Doubtful", "Reading", "Target", "read_prompt"]

MAX_COUNT = 20  # instances of one noun that a latent frame can be expected to hold apart


@dataclass(frozen=True)
class Target:
    """A noun and how many of it the video shall show."""

    noun: str
    count: int


@dataclass(frozen=True)
class Reading:
    """Targets in the order of the prompt, counts from 1 to the maximum, and the doubts; without any, it is sure."""

    targets: tuple[Target, ...]
    doubts: tuple[Doubtful, ...]  # about targets, or about what is left out


class _Sum:
    """What a prompt says of one noun so far."""

    __slots__ = ("count", "described", "noun", "numeral", "sentence", "text", "void")

    def __init__(self, noun: str, count: int, numeral: bool, sentence: int, text: str) -> None:
        self.noun = noun  # as in the prompt
        self.count = count
        self.numeral = numeral  # whether a numeral says so, not an article alone
        self.sentence = sentence
        self.text = text  # the prompt's words for it
        self.described: set[tuple[str, ...]] = set()
        self.void = False  # no exact count is asked


def read_prompt(prompt: str, *, articles: bool = True, max_count: int = MAX_COUNT) -> Reading:
    """What a prompt asks for; without targets if it asks for nothing countable. A noun is one word, as in the prompt.

    ``articles``: "a dog" is a target too, not only "one dog". A count of 0 or over ``max_count`` is left out with a
    doubt.
    """
    read = read_phrases(prompt)
    sums: dict[str, _Sum] = {}
    doubts = list(read.doubts)
    for counted in counted_phrases(read):
        if articles or not counted.phrase.opening.article or _is_again(read, counted, sums):
            _add(prompt, read, counted, sums, doubts)
    if not prompt.isascii() and is_chinese(prompt):
        for noun, count, doubt, text in read_chinese(prompt):
            if doubt is not None:
                doubts.append(Doubtful(doubt, text))
            if doubt in (Doubt.BOUND, Doubt.FRACTION):
                continue
            if noun in sums:
                sums[noun].count += count
                doubts.append(Doubtful(Doubt.MERGED, text))
            else:
                sums[noun] = _Sum(noun, count, True, 0, text)
    targets = []
    for total in sums.values():
        if total.void:
            continue
        if 1 <= total.count <= max_count:
            targets.append(Target(total.noun, total.count))
        else:
            doubts.append(Doubtful(Doubt.MAXIMUM, total.text))
    return Reading(tuple(targets), tuple(dict.fromkeys(doubts)))


def _is_again(read: Phrases, counted: Counted, sums: dict[str, _Sum]) -> bool:
    """Whether "a" adds to what a numeral counts: "one red ball and a blue ball"."""
    return read.words[counted.phrase.noun].form.one in sums


def _add(prompt: str, read: Phrases, counted: Counted, sums: dict[str, _Sum], doubts: list[Doubtful]) -> None:
    """One phrase more: a noun of its own, more of one that is there, or the same again."""
    words, phrase, opening = read.words, counted.phrase, counted.phrase.opening
    word = words[phrase.noun]
    key = word.form.one
    first = phrase.opener if opening.first is None else opening.first
    text = prompt[words[first].span[0] : word.span[1]]
    total = sums.get(key)
    if opening.known and total is None and _points_back(words, counted, sums):
        doubts.append(Doubtful(Doubt.DROPPED, text))
        return
    if key in ("other", "others", "another", "more"):
        _add_others(words, counted, sums, doubts, text)
        return
    if counted.aside and total is None:
        return
    if counted.doubt is not None and not counted.aside:
        doubts.append(Doubtful(counted.doubt, text))
    modifiers = tuple([words[i].text for i in phrase.modifiers])
    if total is None:
        noun = prompt[slice(*word.span)]
        total = sums[key] = _Sum(noun, counted.asked, not opening.article, word.sentence, text)
    elif opening.void or total.void:
        total.text = text
    else:
        _add_again(word, counted, modifiers, total, doubts, text)
    total.void |= opening.void
    total.described.add(modifiers)


def _add_again(
    word: Word, counted: Counted, modifiers: tuple[str, ...], total: _Sum, doubts: list[Doubtful], text: str
) -> None:
    """A noun that is counted already: other modifiers or "another" make it more, "the" the same."""
    opening = counted.phrase.opening
    if opening.known:
        if counted.asked > total.count:
            doubts.append(Doubtful(Doubt.MERGED, text))
        return
    distinct = bool(modifiers) and () not in total.described and modifiers not in total.described
    if opening.more or (distinct and not counted.aside):
        total.count += counted.asked
        return
    doubts.append(Doubtful(Doubt.MERGED, text))
    if word.sentence == total.sentence or (distinct and not opening.article):
        total.count += counted.asked
        total.sentence = word.sentence


def _add_others(words: list[Word], counted: Counted, sums: dict[str, _Sum], doubts: list[Doubtful], text: str) -> None:
    """ "Three others" are more of what was counted last; told where that could be one of several."""
    here = words[counted.phrase.noun].sentence
    several = [total for total in sums.values() if not total.void and total.sentence == here]
    before = words[counted.phrase.opener - 1].text if counted.phrase.opener else ""
    if counted.phrase.opening.known or not several or before in lexicon.PREPOSITIONS or before == "one":
        doubts.append(Doubtful(Doubt.DROPPED, text))
        return
    numerals = [total for total in several if total.numeral]
    (numerals or several)[-1].count += counted.asked
    if len(several) > 1:
        doubts.append(Doubtful(Doubt.MOVED, text))


def _points_back(words: list[Word], counted: Counted, sums: dict[str, _Sum]) -> bool:
    """Whether "the three friends" may be the three cats of a sentence before, or all that were counted."""
    if not sums:
        return False
    word = words[counted.phrase.noun]
    earlier = [total for total in sums.values() if total.sentence < word.sentence]
    counts = [total.count for total in earlier]
    return counted.asked in counts or (len(counts) > 1 and counted.asked == sum(counts))
