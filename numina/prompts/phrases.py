"""Noun phrases of ordinary English captions, read by rule: what opens each, its modifiers, its head noun."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from text_to_num import text2num

from numina.prompts import lexicon
from numina.prompts.nouns import is_plural, singular

Span = tuple[int, int]
# A word, with inner hyphens, apostrophes and dots, and numbers with theirs ("10,000", "16:9", "2.5").
_WORD = re.compile(r"\d+(?:[.,:/]\d+)+\w*|\w+(?:[-'’.]\w+)*")
_DIGITS = re.compile(r"(?:[0-9]{1,2}-)?[0-9]{1,2}|[0-9]{1,9}|[0-9]{1,3}(?:,[0-9]{3}){1,2}")
_NUMERAL = re.compile(r"[0-9][0-9,-]*|twin|(?:" + "|".join(sorted(lexicon.NUMBER_WORDS)) + r")(?:-[a-z]+)*")
_PUNCTUATION = re.compile(r"[.,;:!?()\[\]{}/|&+<>=–—…，。；：、-]")
_PARTICIPLE = re.compile(r"\w{2}(?:ing|ed)$")
_DESCRIBES = re.compile(r"\w{2}(?:ing|ed|ly|ful|ous|less|ible|like)$")


@dataclass(frozen=True)
class Word:
    text: str  # lower case
    span: Span
    gap: str  # what stands between the word before and this one: spaces, punctuation


@dataclass(frozen=True)
class Opening:
    """What opens a noun phrase: "three", "a", "a pair of", "the two", "another"."""

    count: int | None  # None where a definite article or a pronoun opens it ("the birds")
    start: int  # index of the word after it
    article: bool = False  # a, an: a count of one that may only be grammar
    known: bool = False  # "the two cats": may point back to cats already counted
    more: bool = False  # "another", "a third", "two more": adds to those already counted
    pairs: bool = False  # "a pair of": of scissors, one thing
    collective: bool = False  # "a pair of": a verb in the singular may follow


@dataclass(frozen=True)
class NounPhrase:
    opening: Opening
    opener: int  # index of the word that opens the phrase
    modifiers: tuple[int, ...]  # indices of words
    noun: int  # index of a word


def counted_phrases(words: list[Word], phrases: list[NounPhrase]) -> Iterator[NounPhrase]:
    """Noun phrases that ask for a count: without measures, scenery, parts of a body and names of the picture itself."""
    aside_until = -1  # last word of the phrase set aside before, for "on a table and a chair"
    of_each = _of_each(words)
    for phrase in phrases:
        opening, noun = phrase.opening, singular(words[phrase.noun].text)
        before = words[phrase.opener - 1].text if phrase.opener and not _breaks(words[phrase.opener].gap) else ""
        if phrase.opener in of_each or _is_measure(words, phrase):
            continue
        if opening.count == 1 and (noun in lexicon.GROUPS or (noun in lexicon.BODY and before != "")):
            continue
        if before in ("no", "without") or (noun in lexicon.LIMBS and before in ("on", "with", "in")):
            continue
        if words[phrase.opener].text in ("a", "an") and before in lexicon.NO_OBJECT:
            aside_until = phrase.noun
            continue
        if opening.article and not _takes_part(words, phrase, before, aside_until):
            aside_until = phrase.noun
            continue
        yield phrase


def _takes_part(words: list[Word], phrase: NounPhrase, before: str, aside_until: int) -> bool:
    """Whether a noun with "a" is a thing of its own in the picture."""
    noun = singular(words[phrase.noun].text)
    if noun in lexicon.PICTURES or noun in lexicon.SCENERY or _holds_counted(words, phrase.noun):
        return False
    owner = words[phrase.opener - 2].text if phrase.opener >= 2 else ""
    if before == "of" and (owner in lexicon.PICTURES or owner in lexicon.GROUPS):
        return True  # "a photo of a cat"
    if noun in lexicon.BEINGS or noun.endswith(("man", "woman")):
        return before not in lexicon.NO_COMPANY or (before == "of" and owner in lexicon.PARTS)
    listed = before in ("and", "or") and aside_until == phrase.opener - 2
    return before not in lexicon.PREPOSITIONS and not listed


def _of_each(words: list[Word]) -> set[int]:
    """Words that say what each of several has: "robots, each with two arms", "three waiters carry two trays each".

    How many there are in all would be a guess.
    """
    inside: set[int] = set()
    for i, word in enumerate(words):
        if word.text != "each" or (i + 1 < len(words) and words[i + 1].text in ("other", "side", "end")):
            continue
        start, stop = i, i + 1  # the clause between punctuation
        while start and not _breaks(words[start].gap):
            start -= 1
        while stop < len(words) and not _breaks(words[stop].gap):
            stop += 1
        numerals = [j for j in range(start, i) if _number(words, j)]
        after = words[i + 1].text if i + 1 < stop else "in"
        if len(numerals) > 1 and after in lexicon.PREPOSITIONS and after != "with":
            inside.update(range(numerals[-1], i))
        inside.update(range(i, stop))
    return inside


def _is_measure(words: list[Word], phrase: NounPhrase) -> bool:
    """Whether a phrase says how long, far or often ("three long seconds"; "three picture frames" does not)."""
    plain = all(words[i].text in lexicon.ADJECTIVES for i in phrase.modifiers)
    return words[phrase.noun].text in lexicon.MEASURES and plain


def _holds_counted(words: list[Word], noun: int) -> bool:
    """Whether a noun only holds what is counted: "a bouquet of eight roses"."""
    return noun + 1 < len(words) and words[noun + 1].text == "of" and _number(words, noun + 2) is not None


def _noun_phrases(words: list[Word]) -> Iterator[NounPhrase]:
    """Phrases that a numeral, an article or a determiner opens and a noun closes, left to right."""
    i, carried = 0, 0
    while i < len(words):
        opening = _opening(words, i)
        if opening is None:
            i += 1
            continue
        run = _run(words, opening)
        head = _head(words, i, opening, run)
        if head is None:
            # "two red and three blue balls": the first numeral waits for the noun.
            after = opening.start + len(run)
            waits = run and opening.count and _follows(words, after, "and")
            carried = (carried + (opening.count or 0)) if waits and _number(words, after + 1) else 0
            i = after + 1 if waits and carried else opening.start
            continue
        if opening.count is not None:
            count = opening.count // 2 if opening.pairs and words[head].text in lexicon.PAIRED else opening.count
            opening = replace(opening, count=count + carried)
        yield NounPhrase(opening, i, tuple(range(opening.start, head)), head)
        i, carried = head + 1, 0


def _opening(words: list[Word], i: int) -> Opening | None:
    """How a noun phrase opens at word i; None if nothing opens there."""
    text = words[i].text
    if text in lexicon.DETERMINERS:
        counted = _numeral(words, i + 1)
        if counted is None:
            return Opening(None, i + 1)
        return replace(counted, known=text not in lexicon.POSSESSIVES)
    if text == "another":
        return replace(_numeral(words, i + 1) or Opening(1, i + 1), more=True)
    if text in ("a", "an"):
        return _indefinite(words, i)
    return None if _is_name(words, i) else _numeral(words, i)


def _indefinite(words: list[Word], i: int) -> Opening:
    """What "a" opens: itself, or a numeral as in "a hundred", "a happy couple of", "a third", "a lone"."""
    start = i + 1
    if start < len(words) and words[start].text in lexicon.LARGE:
        return _numeral(words, start) or Opening(1, start, article=True)
    if start < len(words) and words[start].text in lexicon.ORDINALS:
        return Opening(1, start + 1, more=True)
    if start < len(words) and words[start].text in ("half", "half-dozen"):
        return _numeral(words, start) or Opening(1, start, article=True)
    while start < len(words) and words[start].text in lexicon.ADJECTIVES and words[start].text not in lexicon.ALONE:
        start += 1
    collective = _collective(words, 1, start)
    if collective is not None:
        return collective
    alone = _after_alone(words, i + 1)
    return Opening(1, alone, article=alone == i + 1)


def _numeral(words: list[Word], i: int) -> Opening | None:
    """What a numeral at word i opens; None if there is none, or none that counts things."""
    text = words[i].text if i < len(words) else ""
    if text in ("half", "half-dozen"):
        stop = next((j for j in (i, i + 1, i + 2) if j < len(words) and words[j].text.endswith("dozen")), None)
        return None if stop is None else Opening(6, stop + 1 + _follows(words, stop + 1, "of"))
    if text in lexicon.COLLECTIVES:
        return _collective(words, 1, i)
    number = _number(words, i)
    if number is None:
        return None
    count, start = number
    collective = _collective(words, count, start)
    if collective is not None:
        return collective
    if _follows(words, start, "of"):
        return Opening(None, start)  # "one of the dogs", "two of them"
    if start < len(words) and words[start].text in lexicon.MEASURES:
        return Opening(None, start + 1)  # "two minutes", "35 mm"
    if start < len(words) and words[start].text in lexicon.MORE:
        return Opening(count, start + 1, more=True)
    return Opening(count, _after_alone(words, start))


def _collective(words: list[Word], times: int, i: int) -> Opening | None:
    """What a word for several opens: "pair of", "dozen", "rows of four" (``times`` of them)."""
    if i >= len(words) or _breaks(words[i].gap):
        return None
    text, of = words[i].text, _follows(words, i + 1, "of")
    if text in lexicon.COLLECTIVES and (of or text == "dozen"):
        start = i + 1 + of
        number = _number(words, start)
        count = number[0] if number and text != "dozen" else lexicon.COLLECTIVES[text]
        return Opening(
            times * count, number[1] if number else start, pairs=text in ("pair", "pairs"), collective=text != "dozen"
        )
    number = _number(words, i + 2) if of and times > 1 and singular(text) in lexicon.GROUPS else None
    return Opening(times * number[0], number[1]) if number else None


def _follows(words: list[Word], i: int, text: str) -> bool:
    return i < len(words) and words[i].text == text and not _breaks(words[i].gap)


def _after_alone(words: list[Word], start: int) -> int:
    while start < len(words) and words[start].text in lexicon.ALONE and not _breaks(words[start].gap):
        start += 1
    return start


def _is_name(words: list[Word], i: int) -> bool:
    """Whether a numeral names something: "platform 2", "#2", "in 1950", "the first one"."""
    text, before = words[i].text, words[i - 1].text if i and not _breaks(words[i].gap) else ""
    year = text.isdigit() and len(text) == 4 and before in lexicon.PREPOSITIONS
    pronoun = text == "one" and before in lexicon.ORDINALS
    return year or pronoun or before in lexicon.LABELS or words[i].gap.endswith(("#", "$", "€", "£"))


def _number(words: list[Word], start: int) -> tuple[int, int] | None:
    """Value of the numeral that starts at this word, as long as it goes, and the word after it."""
    if start >= len(words) or not _NUMERAL.fullmatch(words[start].text):
        return None
    for stop in range(min(start + 5, len(words)), start, -1):
        if any(_breaks(word.gap) for word in words[start + 1 : stop]):
            continue
        text = " ".join(word.text for word in words[start:stop])
        if _DIGITS.fullmatch(text):
            return int(text.split("-")[-1].replace(",", "")), stop
        if text == "twin":
            return 2, stop
        if all(part in lexicon.NUMBER_WORDS for part in re.split(r"[ -]", text)):
            try:
                return int(text2num(text, "en")), stop
            except ValueError:
                continue
    return None


def _run(words: list[Word], opening: Opening) -> list[int]:
    """Words that can belong to the phrase: up to punctuation, a preposition, conjunction or numeral."""
    run: list[int] = []
    described = True  # nothing but modifiers so far: "small, red", "black and white"
    for i in range(opening.start, len(words)):
        word = words[i]
        follows = words[i + 1].text if i + 1 < len(words) else ""
        if _breaks(word.gap) and not (word.gap.strip() == "," and run and described):
            break
        if word.text in ("and", "but") and run and described and _is_modifier(follows):
            run.append(i)
            continue
        if word.text in lexicon.BOUNDARIES:
            break
        if _number(words, i) and not (opening.article and not run):  # "a two lane road", "a 24 fps video"
            break
        described = described and (_is_modifier(word.text) or _number(words, i) is not None)
        run.append(i)
    return run


def _head(words: list[Word], opener: int, opening: Opening, run: list[int]) -> int | None:
    """The word of a run that is its noun; None if there is none."""
    before = words[opener - 1].text if opener else ""
    if opening.count is None or opening.count == 1:
        joined = opening.more or before in ("and", "or") or before in lexicon.PERCEIVED
        return _singular_head(words, opening, run, joined=joined)
    return _plural_head(words, run, embedded=opening.collective or before in lexicon.PREPOSITIONS)


def _plural_head(words: list[Word], run: list[int], *, embedded: bool) -> int | None:
    """The first plural of a run. What follows it is a verb; without any plural, the last noun ("5 cat").

    Of plurals side by side the last is meant ("two sports cars"), but not where the second may be a verb, because the
    phrase belongs to a subject in the singular: "a pair of swans glides", "a box of five toys falls".
    """
    for i in run:
        text, follows = words[i].text, words[i + 1].text if i + 1 in run else ""
        if not is_plural(text):
            continue
        leads = text in lexicon.PLURAL_MODIFIERS or text in lexicon.INVARIANT or not embedded
        if leads and is_plural(follows) and not (embedded and singular(follows) in lexicon.VERBS):
            continue
        return i
    no_nouns = ("and", "but", *lexicon.VERBS, *lexicon.PAST_VERBS)
    nouns = [i for i in run if not _is_modifier(words[i].text) and words[i].text not in no_nouns]
    return nouns[-1] if nouns else None


def _singular_head(words: list[Word], opening: Opening, run: list[int], *, joined: bool) -> int | None:
    """The last noun of a run before its verb. ``joined``: a verb may stand there without -s ("a cat and a dog run")."""
    head = weak = None  # weak: a modifier that is the noun if no other comes ("an orange")
    for i in run:
        text, first = words[i].text, head is None and weak is None
        if is_plural(text) and text not in lexicon.PLURAL_MODIFIERS and text not in lexicon.INVARIANT:
            return i if first and opening.count is None else (weak if head is None else head)
        if head is not None and (
            text in lexicon.PAST_VERBS
            or (joined and text in lexicon.VERBS)
            or (_is_modifier(text) and text not in lexicon.ADJECTIVES)
            or _is_verbal(words, i)
        ):
            break
        if head is None and joined and weak is not None and text in lexicon.VERBS:
            break
        if text in lexicon.NOUN_ADJECTIVES or (opening.article and (text.endswith("ing") or "-" in text)):
            weak = i
        said = text in lexicon.PAST_VERBS and not opening.article  # "one cut in half"
        if not (said or _is_modifier(text) or text in ("and", "but") or _number(words, i)):
            head = i
    return weak if head is None else head


def _is_modifier(text: str) -> bool:
    """Words that describe and don't name, by list or by form."""
    if text in lexicon.ADJECTIVES or "-" in text or text.endswith(("'s", "’s")):
        return True
    return text not in lexicon.NOUNS_BY_FORM and bool(_DESCRIBES.search(text))


def _is_verbal(words: list[Word], i: int) -> bool:
    """Whether a word in -ing or -ed says what the noun before it does ("a child building a house")."""
    follows = words[i + 1] if i + 1 < len(words) else None
    if words[i].text in lexicon.NOUNS_BY_FORM:
        return bool(follows and (follows.text in ("a", "an", "the") or _number(words, i + 1)))
    return bool(_PARTICIPLE.search(words[i].text))


def _breaks(gap: str) -> bool:
    """Whether punctuation in a gap ends a phrase; quotes and symbols don't."""
    return bool(_PUNCTUATION.search(gap))


@lru_cache(maxsize=1)
def read_phrases(prompt: str) -> tuple[list[Word], list[NounPhrase]]:
    """A prompt's words and phrases; kept while its targets are found, and looked up one by one."""
    words = _words(prompt)
    return words, list(_noun_phrases(words))


def _words(prompt: str) -> list[Word]:
    words, end = [], 0
    for match in _WORD.finditer(prompt):
        words.append(Word(match.group().lower(), match.span(), prompt[end : match.start()]))
        end = match.end()
    return words
