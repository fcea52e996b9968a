"""How a noun phrase opens: a numeral, an article, a determiner, or words for several ("a pair of")."""

from __future__ import annotations

from dataclasses import dataclass, replace

from numina.prompts import lexicon
from numina.prompts.doubts import Doubt
from numina.prompts.words import Word, follows, is_part, number


@dataclass(frozen=True, slots=True)
class Opening:
    """What opens a noun phrase: "three", "a", "a pair of", "the two", "another"."""

    number: int | None  # None where a definite article or a pronoun opens it ("the birds")
    start: int  # index of the word after it
    article: bool = False  # a, an: a count of one that may only be grammar
    known: bool = False  # "the two cats": may point back to cats already counted
    more: bool = False  # "another", "a third", "two more": adds to those already counted
    pairs: bool = False  # "a pair of": of scissors, one thing
    collective: bool = False  # "a pair of": a verb in the singular may follow
    doubt: Doubt | None = None
    void: bool = False  # no exact count: its noun is no target, and the row is doubtful
    first: int | None = None  # the first word of it, where that stands before the numeral ("more than three")
    measure: bool = False  # a measure or a name and no count: nothing to tell


def read_opening(words: list[Word], i: int) -> Opening | None:
    """How a noun phrase opens at word i; None if nothing opens there."""
    text = words[i].text
    if text in lexicon.DETERMINERS:
        counted = _numeral(words, i + 1) if i + 1 < len(words) and not words[i + 1].breaks else None
        if counted is None:
            return Opening(None, i + 1)
        return replace(counted, known=text not in lexicon.POSSESSIVES and text not in ("each", "every"))
    if text == "another":
        counted = _numeral(words, i + 1)
        return replace(counted, more=True) if counted else Opening(1, i + 1, more=True)
    if text in ("a", "an"):
        opening = _indefinite(words, i)
        if not opening.article and opening.number and (first := _bound_before(words, i)) is not None:
            return replace(opening, doubt=Doubt.BOUND, void=True, first=first)  # "about a dozen"
        return opening
    if text in ("several", "few") or (text in lexicon.VAGUE and follows(words, i + 1, "of")):
        return Opening(2, i + 1 + (text in lexicon.VAGUE), doubt=Doubt.BOUND, void=True)
    if text in lexicon.FRACTIONS and text != "half":
        return _fraction(words, i, i + 2) if follows(words, i + 1, "of") else None
    if text in lexicon.VAGUE:
        return None
    return _named(words, i) or _numeral(words, i)


def _indefinite(words: list[Word], i: int) -> Opening:
    """What "a" opens: itself, or a numeral as in "a hundred", "a happy couple of", "a third", "a lone"."""
    start = i + 1
    following = words[start].text if start < len(words) and not words[start].breaks else ""
    if following in lexicon.LARGE:
        return _numeral(words, start) or Opening(1, start, article=True)
    if following in lexicon.FRACTIONS and follows(words, start + 1, "of"):
        return _fraction(words, i, start + 2)
    if following in lexicon.ORDINALS:
        return Opening(1, start + 1, more=True)
    if following in ("half", "half-dozen"):
        return _half(words, start) or Opening(1, start, article=True)
    if following == "few":
        return Opening(2, start + 1, doubt=Doubt.BOUND, void=True)
    while start < len(words) and words[start].form.adjective and words[start].text not in lexicon.ALONE:
        start += 1
    collective = _collective(words, 1, start)
    if collective is not None:
        return collective
    alone = _after_alone(words, i + 1)
    return Opening(1, alone, article=alone == i + 1)


def _named(words: list[Word], i: int) -> Opening | None:
    """A numeral that names or measures something: "platform 2", "#2", "in 1950", "the first one", "-5 °C", "5%"."""
    word = words[i]
    if not word.form.number:
        return None
    before = words[i - 1].text if i and not word.breaks else ""
    after = words[i + 1] if i + 1 < len(words) else None
    digits = word.text.isdigit()
    year = digits and len(word.text) == 4 and (before in lexicon.PREPOSITIONS or 1500 < int(word.text) < 2100)
    pronoun = word.text == "one" and before in lexicon.ORDINALS | {"this", "that", "each", "every", "no"}
    if year or pronoun or before in lexicon.LABELS or word.gap.endswith(("#", "$", "€", "£", "No. ", "°")):
        return Opening(None, i + 1, measure=True)
    if after is not None and digits and after.gap.strip().startswith(("%", "°", "€", "$", "£", "″", "′")):
        return Opening(None, i + 1 + ("°" in after.gap and len(after.text) == 1), measure=True)
    if word.gap.endswith(("-", "−", "–")) and digits and (len(word.gap) < 2 or word.gap[-2] == " "):
        return Opening(None, i + 1, measure=True)
    if digits and i and words[i - 1].capital and not word.breaks and words[i - 1].form.noun:
        named = i >= 2 and words[i - 2].sentence == words[i - 1].sentence and not words[i - 1].form.boundary
        if named and not words[i - 1].form.number and not words[i - 1].form.opens:
            return Opening(None, i + 1, doubt=Doubt.UNIT, measure=True)  # "an iPhone 11", "a Porsche 911"
    if digits and after is not None and len(after.text) == 1 and after.text not in ("a", "i", "x") and not after.breaks:
        return Opening(None, i + 2, doubt=Doubt.UNIT, measure=True)  # "5 C"
    if before in ("at", "by") and digits and after is not None and (after.breaks or after.form.number):
        return Opening(None, i + 1, measure=True)  # "at 5, two men"
    return None


def _half(words: list[Word], i: int) -> Opening | None:
    """ "half a dozen" is a number, "half of", "half an" a fraction; None where half describes ("half empty")."""
    stop = next((j for j in (i, i + 1, i + 2) if j < len(words) and words[j].text.endswith("dozen")), None)
    if stop is not None:
        return Opening(6, stop + 1 + follows(words, stop + 1, "of"))
    after = words[i + 1].text if i + 1 < len(words) else ""
    if after in ("of", "a", "an", "the"):
        return _fraction(words, i, i + 2 if after == "of" else i + 1)
    return None


def _fraction(words: list[Word], i: int, start: int) -> Opening:
    determiners = lexicon.DETERMINERS | {"a", "an", "another", "one"}
    while start < len(words) and words[start].text in determiners:
        start += 1
    return Opening(2, start, doubt=Doubt.FRACTION, void=True, first=i)


def _numeral(words: list[Word], i: int) -> Opening | None:
    """What a numeral at word i opens; None if there is none, or none that counts things."""
    text = words[i].text if i < len(words) else ""
    if text in ("half", "half-dozen"):
        return _half(words, i)
    if text in lexicon.COLLECTIVES:
        return _collective(words, 1, i)
    if is_part(text):
        return _fraction(words, i, i + 1 + follows(words, i + 1, "of"))
    found = number(words, i)
    if found is None:
        return None
    count, start = found
    if start < len(words) and words[start].text in lexicon.FRACTIONS and not words[start].breaks and count < 10:
        return _fraction(words, i, start + 2) if follows(words, start + 1, "of") else None
    if follows(words, start, "and") and follows(words, start + 1, "a") and follows(words, start + 2, "half"):
        return _fraction(words, i, start + 3)
    bound = _bound(words, i, start)
    if bound is not None:
        return Opening(count, bound[1], doubt=Doubt.BOUND, void=True, first=bound[0])
    collective = _collective(words, count, start)
    if collective is not None:
        return collective
    if follows(words, start, "of"):
        return Opening(None, start)  # "one of the dogs", "two of them"
    if start < len(words) and words[start].text in lexicon.MEASURES and not words[start].breaks:
        unsure = words[start].text in lexicon.UNSURE_MEASURES
        return Opening(None, start + 1, doubt=Doubt.UNIT if unsure else None, measure=True)  # "two minutes", "35 mm"
    if _is_numbered(words, start) and (count > 1 or words[start].text in ("way", "piece", "lane", "bedroom")):
        return Opening(None, start + 1, doubt=Doubt.UNIT, measure=True)  # "a five star hotel", "six pack"
    if start < len(words) and words[start].text in lexicon.MORE and not words[start].breaks:
        return Opening(count, start + 1, more=True)
    return Opening(count, _after_alone(words, start))


def _is_numbered(words: list[Word], i: int) -> bool:
    """Whether a numeral and the noun at i describe the noun that follows: "two lane road", "three piece suit"."""
    if i >= len(words) or words[i].breaks or words[i].text not in lexicon.NUMBERED:
        return False
    after = words[i + 1] if i + 1 < len(words) and not words[i + 1].breaks else None
    described = after is not None and not after.form.boundary and after.form.noun and not after.form.number
    return words[i].text in ("pack", "way") or described


def _bound(words: list[Word], i: int, stop: int) -> tuple[int, int] | None:
    """The first word of a bound, and the word after its numeral: "more than three", "two or three", "3-5"."""
    first = _bound_before(words, i)
    if first is not None:
        return first, stop + (follows(words, stop, "as") and words[i - 1].text == "many")
    one = words[i - 1].text if i and not words[i].breaks else ""
    if words[i].form.range:
        return i, stop
    if stop >= len(words):
        return None
    text, then = words[stop].text, words[stop + 1] if stop + 1 < len(words) else None
    if text in ("or", "plus") and then is not None and not words[stop].breaks:
        if text == "plus":
            return i, stop + 1
        if then.text in ("more", "so", "fewer", "less"):
            return i, stop + 2
        if (other := number(words, stop + 1)) is not None:
            return i, other[1]
    joined = text == "to" or (text == "and" and one == "between")
    if joined and not words[stop].breaks and (other := number(words, stop + 1)) is not None:
        return i - (one == "between"), other[1]
    sign = words[stop].gap.strip()
    if sign == "+" and words[i].text.isdigit():
        return i, stop
    if sign in ("-", "–", "—") and words[i].text.isdigit() and text.isdigit():
        return i, stop + 1
    return None


def _bound_before(words: list[Word], i: int) -> int | None:
    """The first word of what says that the number at i is not exact: "more than", "at least", "about"."""
    one = words[i - 1].text if i and not words[i].breaks else ""
    two = words[i - 2].text if one and i > 1 and not words[i - 1].breaks else ""
    if (one == "than" and two in ("more", "less", "fewer", "greater")) or (one in ("least", "most") and two == "at"):
        return i - 2
    if (one == "many" and two == "as") or (one == "as" and two == "many") or (one == "to" and two == "up"):
        return i - 2
    if one in lexicon.NEARLY:
        return i - 1
    if one in lexicon.ROUND and (two in lexicon.BEFORE_ROUND or (i == 1 and one in ("about", "around", "over"))):
        return i - 1
    return None


def _collective(words: list[Word], times: int, i: int) -> Opening | None:
    """What a word for several opens: "pair of", "dozen", "rows of four" (``times`` of them)."""
    if i >= len(words) or words[i].breaks:
        return None
    text, of = words[i].text, follows(words, i + 1, "of")
    if text in lexicon.COLLECTIVES and (of or text == "dozen"):
        start = i + 1 + of
        found = number(words, start) if text != "dozen" else None
        count, start = found if found else (lexicon.COLLECTIVES[text], start)
        return Opening(times * count, start, pairs=text in ("pair", "pairs"), collective=text != "dozen")
    if of and times > 1 and words[i].form.one in lexicon.GROUPS and (found := number(words, i + 2)):
        return Opening(times * found[0], found[1], collective=True)
    return None


def _after_alone(words: list[Word], start: int) -> int:
    while start < len(words) and words[start].text in lexicon.ALONE and not words[start].breaks:
        start += 1
    return start
