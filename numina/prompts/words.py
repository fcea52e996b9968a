"""A prompt's words, once over: where they stand, what each can be, and the numbers that they make."""

from __future__ import annotations

import re
from functools import lru_cache

from lemminflect import getAllLemmas
from text_to_num import text2num

from numina.prompts import lexicon
from numina.prompts.nouns import is_plural, singular

Span = tuple[int, int]
# A word, with inner hyphens and apostrophes, initials with dots, and numbers with theirs ("10,000", "16:9", "2.5").
_LETTERS = r"(?:\w[\u0300-\u036f]*)+"  # an accent may be a character of its own
_FULL_WIDTH = {0xFF10 + digit: str(digit) for digit in range(10)}  # as Chinese and Japanese keyboards write digits
_WORD = re.compile(rf"\d+(?:[.,:/]\d+)+\w*|{_LETTERS}(?:[-'’]{_LETTERS}|\.\w\b)*")
_DIGITS = re.compile(r"[0-9]{1,9}|[0-9]{1,3}(?:,[0-9]{3}){1,2}")
_RANGE = re.compile(r"([0-9]{1,3})-([0-9]{1,3})")
_NUMERAL = re.compile(r"[0-9][0-9,-]*|twin|(?:" + "|".join(sorted(lexicon.NUMBER_WORDS)) + r")(?:-[a-z]+)*")
_PARTS = re.compile(
    r"[0-9]+[./][0-9]+|[½⅓⅔¼¾⅛]|[0-9]+[½⅓⅔¼¾⅛]|(?:one|two|three|four|five)-(?:half|halves|thirds?|quarters?|fifths?)"
)
_PUNCTUATION = re.compile(r"[.,;:!?()\[\]{}/|&+<>=–—…，。；：、\n-]")
_STOPS = re.compile(r"[.;!?。！？；\n]")
_PARTICIPLE = re.compile(r"\w{2}(?:ing|ed)$")
_DESCRIBES = re.compile(r"\w{2}(?:ing|ed|ly|ful|ous|less|ible|like)$")
_ABSTRACT = re.compile(r"\w{3}(?:ness|ity|tion|ism|ship|hood|ance|ence)$")


_SPELLED = re.compile(
    rf"\b(?:{'|'.join(sorted(lexicon.NUMBER_WORDS))})(?: (?:{'|'.join(sorted(lexicon.NUMBER_WORDS))}))*\b"
)


def in_digits(text: str) -> str:
    """A text in lower case without hyphens, with numbers that English words spell as digits: "21 cats" for "twenty one
    cats"."""
    return _SPELLED.sub(lambda match: _digits(match.group()), text)


@lru_cache(maxsize=4096)
def _digits(words: str) -> str:
    try:
        return str(int(text2num(words, "en")))
    except ValueError:  # several numbers in a row
        return " ".join(map(_digits, words.split())) if " " in words else words


class Form:
    """What a word can be, wherever it stands; made once for each word."""

    __slots__ = (
        "abstract", "adjective", "being", "boundary", "limb", "listed_verb", "may_describe", "modifier", "noun",
        "number", "one", "opens", "participle", "past", "plural", "range", "text", "verb", "verb_only",
    )  # fmt: skip

    def __init__(self, text: str) -> None:
        kinds = getAllLemmas(text) if text.isascii() else {}
        self.text = text
        self.one = singular(text)
        self.boundary = text in lexicon.BOUNDARIES
        self.number = bool(_NUMERAL.fullmatch(text)) or bool(_PARTS.fullmatch(text))
        self.range = bool(_RANGE.fullmatch(text))
        self.verb = "VERB" in kinds or text in lexicon.VERBS
        self.noun = "NOUN" in kinds or not kinds or self.one in lexicon.BEINGS or self.one in lexicon.NOUNS
        self.listed_verb = text in lexicon.VERBS
        self.past = text in lexicon.PAST_VERBS
        self.adjective = text in lexicon.ADJECTIVES or ("ADJ" in kinds and not self.noun)
        self.may_describe = self.adjective or "ADJ" in kinds
        self.participle = text not in lexicon.NOUNS_BY_FORM and bool(_PARTICIPLE.search(text))
        people = text.endswith("ese") and not kinds  # "Chinese lanterns"
        self.modifier = (
            self.adjective
            or "-" in text
            or text.endswith(("'s", "’s", "s'", "s’"))
            or (text not in lexicon.NOUNS_BY_FORM and bool(_DESCRIBES.search(text)))
            or people
        )
        self.verb_only = self.verb and not self.noun and not self.adjective
        self.plural = text in lexicon.PAIRED or (is_plural(text) and not people and self.noun)
        self.being = self.one in lexicon.BEINGS or self.one.endswith(("man", "woman"))
        self.limb = self.one in lexicon.BODY
        self.abstract = self.one in lexicon.ABSTRACT or (
            bool(_ABSTRACT.search(text)) and text not in lexicon.CONCRETE and not self.being
        )
        self.opens = (
            self.number
            or text in lexicon.DETERMINERS
            or text in lexicon.COLLECTIVES
            or text in lexicon.VAGUE
            or text in lexicon.FRACTIONS
            or text in ("a", "an", "another", "half-dozen", "several", "few")
        )


class Word:
    """One word of a prompt."""

    __slots__ = ("breaks", "capital", "form", "gap", "sentence", "span", "text")

    def __init__(self, written: str, span: Span, gap: str, breaks: bool, sentence: int) -> None:
        self.text, self.form, self.capital = _as_written(written)
        self.span = span
        self.gap = gap  # what stands between the word before and this one: spaces, punctuation
        self.breaks = breaks  # whether punctuation in the gap ends a phrase; quotes and symbols don't
        self.sentence = sentence  # number of its sentence


@lru_cache(maxsize=1 << 16)
def _as_written(written: str) -> tuple[str, Form, bool]:
    text = written.lower()
    return text, Form(text), written[0].isupper()


@lru_cache(maxsize=4096)
def _gap(gap: str) -> tuple[bool, bool]:
    """Whether what stands between two words ends a phrase, and whether it ends a sentence."""
    breaks = _PUNCTUATION.search(gap) is not None
    return breaks, breaks and _STOPS.search(gap) is not None


def read_words(prompt: str) -> list[Word]:
    words: list[Word] = []
    end = sentence = 0
    for match in _WORD.finditer(prompt.translate(_FULL_WIDTH)):
        span = match.span()
        gap = prompt[end : span[0]]
        breaks = False
        if gap != " ":
            breaks, stops = _gap(gap)
            sentence += stops
        words.append(Word(match.group(), span, gap, breaks, sentence))
        end = span[1]
    return words


def number(words: list[Word], start: int) -> tuple[int, int] | None:
    """Value of the numeral that starts at this word, as long as it goes, and the word after it. A range has its end."""
    if start >= len(words) or not words[start].form.number:
        return None
    first = words[start].text
    if first[0].isdigit():
        if _DIGITS.fullmatch(first):
            value, stop = int(first.replace(",", "")), start + 1
            if stop < len(words) and words[stop].text in lexicon.LARGE and not words[stop].breaks:
                return _value(f"one {words[stop].text}", value), stop + 1
            return value, stop
        found = _RANGE.fullmatch(first)
        return (int(found[2]), start + 1) if found else None
    if first == "twin":
        return 2, start + 1
    stop = start + 1  # as far as number words go, with "and" after a hundred
    while stop < len(words) and stop < start + 7 and not words[stop].breaks:
        text = words[stop].text
        joins = text == "and" and words[stop - 1].text in lexicon.LARGE and stop + 1 < len(words)
        if not (words[stop].form.number and not text[0].isdigit()) and not (joins and words[stop + 1].form.number):
            break
        stop += 1
    for end in range(stop, start, -1):
        value = _value(" ".join([word.text for word in words[start:end]]))
        if value >= 0:
            return value, end
    return None


@lru_cache(maxsize=4096)
def _value(text: str, times: int = 1) -> int:
    """The value of a numeral in words; -1 if it is none."""
    if not all(part in lexicon.NUMBER_WORDS or part == "and" for part in re.split(r"[ -]", text)):
        return -1
    try:
        return times * int(text2num(text, "en"))
    except ValueError:
        return -1


def is_part(text: str) -> bool:
    """Whether a word is a fraction: "1/2", "2.5", "two-thirds"."""
    return bool(_PARTS.fullmatch(text))


def follows(words: list[Word], i: int, text: str) -> bool:
    """Whether this word stands at i, with no punctuation before it."""
    return i < len(words) and words[i].text == text and not words[i].breaks
