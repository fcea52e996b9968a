"""Prompts that ask for the same in nearly the same words: found in one pass, each told by the first of its kind.

Two rows are alike where their targets are equal ("three cats" and "four cats" never are) and their texts, without
case, punctuation and extra white space and with digits for numbers in words, are equal or share at least NEAR of their
pieces of PIECE characters (Jaccard).
Candidates come from MinHash signatures in an LSH index (datasketch), whose guess is then checked against the texts.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.prompts.problems import RowProblem
from numina.prompts import chinese
from numina.prompts.targets import Target
from numina.prompts.words import in_digits

NEAR = 0.8  # share of common pieces: one short word of twelve may differ
PIECE = 4  # characters
PERMUTATIONS = 64  # of a signature
NEAR_DUPLICATE_OF = "near_duplicate_of"
"""A column with the first row that a prompt is a near-duplicate of: its id, or `row N` or `line N` if it has none."""
RULE = "is a near-duplicate of an earlier prompt with the same targets"
NearDuplicates = Literal["mark", "drop", "ignore"]

_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, kw_only=True)
class Alike:
    """A row that an earlier one is alike to."""

    row: int  # their numbers in the set
    first: int
    name: str  # of the first one: what NEAR_DUPLICATE_OF holds


class AlikeFinder:
    """Takes in rows in their order; holds their texts."""

    def __init__(self) -> None:
        self._groups = dict[str, list[tuple[int, str]]]()  # by targets: number and text of the first with each text
        self._names = dict[int, str]()
        self._firsts = dict[tuple[str, str], int]()
        self._repeats = list[tuple[int, int]]()

    def add(self, number: int, name: str, prompt: str, targets: Sequence[Target]) -> None:
        """A row by its number, its `name` being its id or place."""
        asked = ", ".join(sorted(f"{target.count} {plain_text(target.noun)}" for target in targets))
        text = in_digits(plain_text(chinese.in_digits(prompt) if chinese.is_chinese(prompt) else prompt))
        first = self._firsts.setdefault((asked, text), number)
        if first != number:
            self._repeats.append((number, first))
            return
        self._names[number] = name
        self._groups.setdefault(asked, []).append((number, text))

    def found(self) -> list[Alike]:
        """All rows that are alike to an earlier one that isn't itself, by their numbers. To be called once."""
        self._firsts.clear()
        first_of = dict[int, int]()
        for members in self._groups.values():
            if len(members) > 1:
                first_of |= _near(members)
        pairs = {**first_of, **{number: first_of.get(first, first) for number, first in self._repeats}}
        return [Alike(row=row, first=first, name=self._names[first]) for row, first in sorted(pairs.items())]


def plain_text(text: str) -> str:
    """Lower case, compatible characters as one, words parted by single spaces."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def problem_of(alike: Alike, *, place: str, row: int, prompt: str) -> RowProblem:
    """What a list of rows that were left out says of it."""
    told = f"is a near-duplicate of {alike.name}, with the same targets"
    remedy = "reword it, or keep it with --near-duplicates mark"
    return RowProblem(place=place, row=row, column="prompt", value=prompt, rule=RULE, remedy=remedy, detail=told)


def _near(members: Sequence[tuple[int, str]]) -> dict[int, int]:
    """Of rows with equal targets and different texts, each with the first that shares enough with it."""
    from datasketch import MinHash, MinHashLSH

    pieces = {number: _pieces(text) for number, text in members}
    index = MinHashLSH(threshold=NEAR - 0.1, num_perm=PERMUTATIONS)  # lower: a guess that misses is never checked
    signatures = MinHash.generator(
        ([piece.encode() for piece in own] for own in pieces.values()),
        num_perm=PERMUTATIONS,
        hashfunc=zlib.crc32,
    )
    firsts = dict[int, int]()
    for (number, own), signature in zip(pieces.items(), signatures, strict=True):
        shares = [(-_shared(own, pieces[other]), other) for other in index.query(signature)]
        share, first = min(shares, default=(0.0, number))
        if -share >= NEAR:
            firsts[number] = first
        else:
            index.insert(number, signature, check_duplication=False)
    return firsts


def _pieces(text: str) -> frozenset[str]:
    padded = f" {text} "
    return frozenset(padded[place : place + PIECE] for place in range(max(1, len(padded) - PIECE + 1)))


def _shared(one: frozenset[str], other: frozenset[str]) -> float:
    both = len(one & other)
    return both / (len(one) + len(other) - both)
