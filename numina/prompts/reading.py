"""What a prompt asks for as the rules read it: targets, and the doubts about them (arXiv 2604.08546 §3.1)."""

from dataclasses import dataclass, replace
from enum import StrEnum

from numina.prompts.nouns import singular
from numina.prompts.phrases import counted_phrases, read_phrases

MAX_COUNT = 20  # instances of one noun that a latent frame can be expected to hold apart


@dataclass(frozen=True)
class Target:
    """A noun and how many of it the video shall show."""

    noun: str
    count: int


class Doubt(StrEnum):
    """Why a reading may be wrong. The value is the code that columns hold."""

    UNIT = "unit"
    SINGULAR = "singular"
    MOVED = "moved"
    MERGED = "merged"
    DROPPED = "dropped"
    ABSTRACT = "abstract"
    BOUND = "bound"
    MAXIMUM = "maximum"
    FRACTION = "fraction"
    EACH = "each"

    @property
    def told(self) -> str:
        """A short English phrase for a user."""
        return _TOLD[self]


_TOLD = {
    Doubt.UNIT: "a number that may be a size, a time or a name",
    Doubt.SINGULAR: "a numeral before a singular noun",
    Doubt.MOVED: "a numeral whose noun stands elsewhere",
    Doubt.MERGED: "counts of one noun added up",
    Doubt.DROPPED: "a numeral without a countable noun",
    Doubt.ABSTRACT: "a noun that may be no thing to count",
    Doubt.BOUND: "a bound or a range, no exact count",
    Doubt.MAXIMUM: "a count of zero or over the maximum",
    Doubt.FRACTION: "a fraction",
    Doubt.EACH: "a count for each of several",
}


@dataclass(frozen=True)
class Doubtful:
    """A doubt, and the prompt's words that it is about."""

    doubt: Doubt
    text: str


@dataclass(frozen=True)
class Reading:
    """Targets in the order of the prompt, counts from 1 to the maximum; and the doubts, about these or what is left
    out. No doubt: the reading is sure."""

    targets: tuple[Target, ...]
    doubts: tuple[Doubtful, ...]


def read_prompt(prompt: str, *, articles: bool = True, max_count: int = MAX_COUNT) -> Reading:
    """What a prompt asks for; without targets if it asks for nothing countable. A noun is one word, as in the prompt.

    ``articles``: "a dog" is a target too, not only "one dog". A count of 0 or over ``max_count`` is left out with a
    doubt.
    """
    words, phrases = read_phrases(prompt)
    targets: dict[str, Target] = {}
    described: dict[str, set[tuple[str, ...]]] = {}
    for phrase in counted_phrases(words, phrases):
        noun, opening = words[phrase.noun].text, phrase.opening
        modifiers = tuple(words[i].text for i in phrase.modifiers)
        key, seen = singular(noun), described.setdefault(singular(noun), set())
        if opening.count is None or (opening.known and targets) or (opening.article and not articles):
            continue
        if key not in targets:
            targets[key] = Target(noun=prompt[slice(*words[phrase.noun].span)], count=opening.count)
        elif opening.more or (modifiers and () not in seen and modifiers not in seen):
            targets[key] = replace(targets[key], count=targets[key].count + opening.count)
        seen.add(modifiers)
    kept = tuple(target for target in targets.values() if 1 <= target.count <= max_count)
    left_out = (target for target in targets.values() if target not in kept)
    return Reading(kept, tuple(Doubtful(Doubt.MAXIMUM, f"{target.count} {target.noun}") for target in left_out))
