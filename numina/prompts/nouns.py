"""Countable nouns as captions write them: in the form that goes with a count, and with the count said before them."""

from functools import cache, lru_cache
from typing import Any

from numina.prompts import lexicon

_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty"""
NUMBER_WORDS: tuple[str, ...] = tuple(_WORDS.split())
"""The word for each count up to `numina.prompts.targets.MAX_COUNT`."""


@cache
def noun_form(noun: str, count: int) -> str:
    """A noun of one or more words in lower case, in singular for one and in plural for more: `foxes`, `hot dogs`."""
    *before, last = noun.lower().split()
    one = singular(last)
    if (one == last) != (count == 1):
        last = one if count == 1 else _plural(one)
    return " ".join([*before, last])


def counted(noun: str, count: int) -> str:
    """The number in words and the noun: `one cat`, `three foxes`; in digits above twenty."""
    number = NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else str(count)
    return f"{number} {noun_form(noun, count)}"


def with_article(noun: str) -> str:
    """`a cat`, `an owl`, `an hourglass`, `a unicorn`."""
    return str(_inflect().a(noun_form(noun, 1)))


def joined(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _plural(one: str) -> str:
    irregular = {singular: plural for plural, singular in lexicon.IRREGULAR.items()}
    if one in lexicon.INVARIANT:
        return one
    return irregular.get(one) or str(_inflect().plural_noun(one))


@cache
def _inflect() -> Any:
    import typeguard

    guard: Any = typeguard
    checked, guard.typechecked = guard.typechecked, lambda function: function
    try:
        import inflect  # has typeguard recompile its methods, which takes every process three seconds
    finally:
        guard.typechecked = checked
    return inflect.engine()


@cache
def singular(noun: str) -> str:
    """The singular of a lower-case noun; the noun itself if it is one already."""
    if noun in lexicon.IRREGULAR or _is_singular(noun):
        return lexicon.IRREGULAR.get(noun, noun)
    return str(_inflect().singular_noun(noun) or noun)


@cache
def is_plural(word: str) -> bool:
    if word in lexicon.IRREGULAR or word in lexicon.INVARIANT:
        return True
    return word != "" and not _is_singular(word) and bool(_inflect().singular_noun(word))


def _is_singular(word: str) -> bool:
    """Words that inflect takes for plurals, though they are singulars or no nouns at all."""
    if word in lexicon.PLURALS_IN_US_AND_IS:
        return False
    return word in lexicon.SINGULAR_IN_S or word.endswith(("us", "ss", "is", "gas", "bias", "lens", "canvas", "iris"))


@lru_cache(maxsize=4096)
def forms(noun: str) -> frozenset[str]:
    """A noun in singular and plural."""
    one = singular(noun)
    return frozenset({noun, one, str(_inflect().plural_noun(one)), f"{one}s"})
