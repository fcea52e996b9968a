"""Why a reading may be wrong."""

from dataclasses import dataclass
from enum import StrEnum


class Doubt(StrEnum):
    """One reason. The value is the code that columns hold."""

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
    NOUN = "noun"
    ANSWER = "answer"

    @property
    def told(self) -> str:
        """A short English phrase for a user."""
        return _TOLD[self]


_TOLD = {
    Doubt.UNIT: "a number that may be a size, a time or a name",
    Doubt.SINGULAR: "a numeral and a noun that don't agree in number",
    Doubt.MOVED: "a numeral whose noun stands elsewhere",
    Doubt.MERGED: "one noun with several counts",
    Doubt.DROPPED: "a numeral without a noun to count",
    Doubt.ABSTRACT: "a noun that may be no thing to count",
    Doubt.BOUND: "a bound, a range or a vague number",
    Doubt.MAXIMUM: "a count of zero or over the maximum",
    Doubt.FRACTION: "a fraction",
    Doubt.EACH: "a count for each of several",
    Doubt.NOUN: "a noun that may end elsewhere, or be a verb",
    Doubt.ANSWER: "a language model's answer that can't be used",
}


@dataclass(frozen=True)
class Doubtful:
    """A doubt, and the prompt's words that it is about."""

    doubt: Doubt
    text: str
