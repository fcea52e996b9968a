"""Noun phrases of ordinary English captions, read by rule: what opens each, its modifiers, its head noun."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from numina.prompts import lexicon
from numina.prompts.doubts import Doubt, Doubtful
from numina.prompts.openings import Opening, read_opening
from numina.prompts.words import Word, follows, number, read_words

_OTHERS = ("another", "other", "others", "more")  # "while another sleeps": one more of what was counted


class NounPhrase(NamedTuple):
    opening: Opening
    opener: int  # index of the word that opens the phrase
    noun: int  # index of a word
    doubt: Doubt | None = None

    @property
    def modifiers(self) -> range:
        """Indices of the words between what opens the phrase and its noun."""
        return range(self.opening.start, self.noun)


class Phrases(NamedTuple):
    words: list[Word]
    phrases: list[NounPhrase]
    doubts: list[Doubtful]  # about numerals that have no noun


@lru_cache(maxsize=1)
def read_phrases(prompt: str) -> Phrases:
    """A prompt's words and phrases, left to right; kept while its targets are found, and looked up one by one."""
    words = read_words(prompt)
    phrases: list[NounPhrase] = []
    doubts: list[Doubtful] = []
    i = carried = 0
    count = len(words)
    while i < count:
        opening = read_opening(words, i) if words[i].form.opens else None
        if opening is None:
            i += 1
            continue
        if opening.measure:
            if opening.doubt is not None:
                doubts.append(Doubtful(opening.doubt, _text(prompt, words, i, opening.start - 1)))
            i = opening.start
            continue
        run = _run(words, i, opening)
        head, doubt = _head(words, i, opening, run)
        if head is None:
            # "two red and three blue balls": the first numeral waits for the noun.
            after = opening.start + len(run)
            waits = run and opening.number and not opening.article and follows(words, after, "and")
            if waits and number(words, after + 1) and all(words[j].form.adjective for j in run):
                carried, i = carried + (opening.number or 0), after + 1
                continue
            if opening.more and not opening.void and words[opening.start - 1].text in _OTHERS:
                phrases.append(NounPhrase(opening, i, opening.start - 1))
                i = opening.start
                continue
            if _is_lost(words, i, opening, run):
                last = min(opening.start, count - 1)
                doubts.append(Doubtful(opening.doubt or Doubt.DROPPED, _text(prompt, words, _first(i, opening), last)))
            i, carried = max(opening.start, i + 1), 0
            continue
        if opening.number is not None:
            total = opening.number // 2 if opening.pairs and words[head].text in lexicon.PAIRED else opening.number
            opening = opening._replace(number=total + carried)
        if carried and doubt is None and any(not words[j].form.adjective for j in range(opening.start, head)):
            doubt = Doubt.MOVED
        phrases.append(NounPhrase(opening, i, head, opening.doubt or doubt))
        i, carried = head + 1, 0
    return Phrases(words, phrases, doubts)


def _text(prompt: str, words: list[Word], first: int, last: int) -> str:
    return prompt[words[first].span[0] : words[last].span[1]]


def _first(i: int, opening: Opening) -> int:
    return i if opening.first is None else opening.first


def _is_lost(words: list[Word], i: int, opening: Opening, run: list[int]) -> bool:
    """Whether a numeral without a noun is to be told: not "one" as a pronoun, an article or a zero as an adjective."""
    if opening.number is None or opening.article or words[i].text in ("another", "one", "the", "these", "those"):
        return False
    return not (opening.number == 0 or (opening.more and not opening.void and opening.number == 1))


def _run(words: list[Word], opener: int, opening: Opening) -> list[int]:
    """Words that can belong to the phrase: up to punctuation, a preposition, conjunction or numeral."""
    run: list[int] = []
    described = True  # nothing but modifiers so far: "small, red", "black and white"
    begun = opening.start > opener + 1  # "a single, empty cup"
    several = opening.number is not None and opening.number > 1
    for i in range(opening.start, len(words)):
        word = words[i]
        if word.breaks and not (word.gap.strip() == "," and (run or begun) and described):
            break
        if word.form.boundary:
            after = words[i + 1] if i + 1 < len(words) and not words[i + 1].breaks else None
            if word.text in ("and", "but") and run and described and after is not None and after.form.modifier:
                run.append(i)
                continue
            loose = several and word.text in lexicon.LOOSE and after is not None and after.form.plural
            if not (loose and not any(words[j].form.plural for j in run)):
                break
        elif word.form.number and number(words, i):
            sized = (run == [] and _is_size(words, i)) or (bool(run) and words[i - 1].text in lexicon.LABELS)
            if not (opening.article and not run) and not sized:  # "a two lane road", "a 24 fps video"
                break
        elif not word.form.modifier and not word.form.may_describe:
            described = False
        run.append(i)
    return run


def _is_size(words: list[Word], i: int) -> bool:
    """Whether a numeral and the word after it describe: "two 12 inch pizzas", "three 7 year old boys"."""
    found = number(words, i)
    return bool(found and found[1] < len(words) and words[found[1]].text in lexicon.MEASURES)


def _head(words: list[Word], opener: int, opening: Opening, run: list[int]) -> tuple[int | None, Doubt | None]:
    """The word of a run that is its noun, None if there is none; and what is doubtful about it."""
    before = words[opener - 1].text if opener else ""
    if opening.number is None or opening.number == 1:
        joined = opening.more or before in ("and", "or") or before in lexicon.PERCEIVED
        head = _singular_head(words, opening, run, joined=joined)
        told = head is not None and opening.number == 1 and not opening.article and words[head].form.plural
        plain = told and head is not None and words[head].text not in lexicon.INVARIANT
        return head, Doubt.SINGULAR if plain else None
    if _is_of_people(words, opener) and run and _acts(words, run):
        return None, None
    return _plural_head(words, opener, opening, run)


def _is_of_people(words: list[Word], opener: int) -> bool:
    return opener > 1 and follows(words, opener - 1, "of") and words[opener - 2].form.one in lexicon.PEOPLE


def _acts(words: list[Word], run: list[int]) -> bool:
    """Whether the word after "a family of five" is its verb and no noun."""
    word = words[run[0]]
    if word.form.being or word.form.modifier or not word.form.verb or word.text in lexicon.INVARIANT:
        return word.form.verb_only
    later = [i for i in run[1:] if words[i].form.plural]
    return not later or word.form.verb_only


def _plural_head(words: list[Word], opener: int, opening: Opening, run: list[int]) -> tuple[int | None, Doubt | None]:
    """The first plural of a run. What follows it is a verb; without any plural, the last noun ("5 cat").

    Of plurals side by side the last is meant ("two sports cars"), but not where the second may be a verb, because the
    phrase belongs to a subject in the singular: "a pair of swans glides", "a box of five toys falls".
    """
    before = words[opener - 1].text if opener else ""
    embedded = opening.collective or before in lexicon.PREPOSITIONS
    last = run[-1] if run else -1
    for i in run:
        form = words[i].form
        after = words[i + 1] if i < last else None
        if not form.plural:
            continue
        earlier = words[i - 1].form if i > run[0] else None
        if earlier and earlier.being and not form.being and form.verb and form.one in lexicon.VERBS:
            return i - 1, Doubt.SINGULAR  # "three hamster runs on a wheel"
        leads = form.text in lexicon.PLURAL_MODIFIERS or form.text in lexicon.INVARIANT or not embedded
        if leads and after is not None and after.form.plural and not (embedded and after.form.one in lexicon.VERBS):
            continue
        unsure = form.abstract or form.text in lexicon.UNSURE_PLURALS
        return i, Doubt.ABSTRACT if unsure and not form.being else None
    return _lone_head(words, opener, opening, run)


def _lone_head(words: list[Word], opener: int, opening: Opening, run: list[int]) -> tuple[int | None, Doubt | None]:
    """The noun of a numeral in a run without plurals ("5 potted plant"): told, as the numeral may stand alone."""
    head: int | None = None
    for i in run:
        form = words[i].form
        if form.text in ("and", "but"):
            continue
        if head is not None:
            ends = form.verb_only or form.past or form.participle
            if ends or (form.listed_verb and words[head].form.being) or not form.noun:
                break
            if form.modifier and form.text not in lexicon.NOUN_ADJECTIVES:
                break
        elif form.verb_only or form.past or (form.modifier and form.text not in lexicon.NOUN_ADJECTIVES):
            continue
        head = i
    if head is None:
        return None, None
    alone = head == run[0] and words[head].form.listed_verb and not words[head].form.being
    if alone and not words[opener].text.isdigit():
        return None, None  # "three drones fly over; two land"
    if words[head].form.adjective and words[head].text not in lexicon.NOUN_ADJECTIVES:
        return None, None
    if opening.number == 0:
        return None, None  # "in zero visibility"
    return head, Doubt.SINGULAR


def _singular_head(words: list[Word], opening: Opening, run: list[int], *, joined: bool) -> int | None:
    """The last noun of a run before its verb. ``joined``: a verb may stand there without -s ("a cat and a dog run")."""
    head = weak = None  # weak: a modifier that is the noun if no other comes ("an orange")
    for i in run:
        form = words[i].form
        text, first = form.text, head is None and weak is None
        if form.plural and text not in lexicon.PLURAL_MODIFIERS and text not in lexicon.INVARIANT:
            return i if first and opening.number is None else (weak if head is None else head)
        if head is not None and (
            form.past
            or form.verb_only
            or (joined and form.listed_verb)
            or (form.modifier and not form.adjective)
            or _is_verbal(words, i)
        ):
            break
        if head is None and joined and weak is not None and form.listed_verb:
            break
        if text in lexicon.NOUN_ADJECTIVES or (opening.article and (text.endswith("ing") or "-" in text)):
            weak = i
        listed = form.may_describe and i + 1 in run and words[i + 1].breaks  # "a plump, spotted hen"
        said = listed or ((form.past or form.verb_only) and not (opening.article and form.noun))
        if not (said or form.modifier or text in ("and", "but") or (form.number and number(words, i))):
            head = i
    return weak if head is None else head


def _is_verbal(words: list[Word], i: int) -> bool:
    """Whether a word in -ing or -ed says what the noun before it does ("a child building a house")."""
    after = words[i + 1] if i + 1 < len(words) else None
    if words[i].text in lexicon.NOUNS_BY_FORM:
        return bool(after and (after.text in ("a", "an", "the") or number(words, i + 1)))
    return words[i].form.participle
