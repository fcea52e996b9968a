"""Numbers to digits: the prompts with one number of nouns, counted out so that all differ and any first ones balance.

Row j of such a sequence is made of digits (N nouns; L the least common multiple of N and the sizes of the cyclic
digits; u = j mod L, w = j // L):

    first noun                      u mod N
    first count, template, …        u + s mod its size: by the Chinese remainder theorem these and the noun tell u and
                                    every s, as long as s stays below the gcd of the size with the lengths before it
    further counts, further nouns   u + s + hash(u // size) mod its size, each with a digit s of its own

w, sent through a permutation, is the number whose digits are all the s. So no two rows are alike, and among any first
rows of a sequence each digit takes none of its values more than once more often than another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, lcm, prod

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PromptDigits:
    """All prompts with one number of nouns, as digits."""

    size: int  # nouns to choose from
    cyclic: tuple[int, ...]  # sizes of the digits beside them: counts, templates, what else a template has
    nouns: int  # in a prompt
    seed: int

    @cached_property
    def period(self) -> int:
        """L: rows after which noun and cyclic digits come together again."""
        return lcm(self.size, *self.cyclic)

    @cached_property
    def radices(self) -> tuple[int, ...]:
        """How many values each s has: of the cyclic digits, of further counts, of further nouns."""
        lengths = [self.size]
        for size in self.cyclic:
            lengths.append(lcm(lengths[-1], size))
        shifts = [gcd(length, size) for length, size in zip(lengths, self.cyclic, strict=False)]
        more = range(1, self.nouns)
        return (*shifts, *(self.cyclic[0] for _ in more), *(self.size - place for place in more))

    @cached_property
    def total(self) -> int:
        """How many prompts there are."""
        return self.period * prod(self.radices)

    @cached_property
    def _begin(self) -> list[int]:
        """Where each cyclic digit begins, and the first noun last, so that not all sequences begin alike."""
        sizes = [*self.cyclic, self.size]
        return [int(self._hash(np.array([place]), 16)[0]) % size for place, size in enumerate(sizes)]

    def of(self, rows: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """The nouns and the counts of each row, [rows, nouns], and its other cyclic digits, [rows, digits]."""
        u, s = rows % self.period, self._shifts(rows // self.period)
        begin = self._begin
        cyclic = np.stack([(u + s[:, place] + begin[place]) % size for place, size in enumerate(self.cyclic)], 1)
        counts, size = [cyclic[:, 0]], self.cyclic[0]
        for place in range(self.nouns - 1):
            counts.append((u + s[:, len(self.cyclic) + place] + self._hash(u // size, place)) % size)
        return self._nouns(u, s[:, len(self.radices) - self.nouns + 1 :]), np.stack(counts, 1), cyclic[:, 1:]

    def _nouns(self, u: Numbers, s: Numbers) -> Numbers:
        """Different nouns: the first one, and others by their distance from it, as long as the first goes round."""
        steps = np.zeros((len(u), 0), np.int64)
        for place in range(1, self.nouns):
            step = (s[:, place - 1] + self._hash(u // self.size, place + 8)) % (self.size - place) + 1
            for other in np.sort(steps, 1).T:
                step = step + (step >= other)
            steps = np.concatenate([steps, step[:, None]], 1)
        first = ((u + self._begin[-1]) % self.size)[:, None]
        return np.concatenate([first, (first + steps) % self.size], 1)

    def _shifts(self, w: Numbers) -> Numbers:
        """Every s of each w, [rows, digits]. The numbers on the way may pass 2**63."""
        values, places = np.unique(w, return_inverse=True)
        whole = prod(self.radices)
        rng = np.random.default_rng([self.seed, self.nouns])
        start, factor = (int(number) for number in rng.integers(2**62, size=2))
        while gcd(factor, whole) != 1:
            factor += 1
        table = [_split((start + value * factor) % whole, self.radices) for value in values.tolist()]
        return np.array(table, np.int64).reshape(len(values), len(self.radices))[places]

    def _hash(self, values: Numbers, which: int) -> Numbers:
        """A number below 2**31 for each value."""
        return (mixed(values, (self.seed, self.nouns, which)) >> np.uint64(33)).astype(np.int64)


def _split(number: int, radices: Sequence[int]) -> list[int]:
    digits = []
    for radix in radices:
        number, digit = divmod(number, radix)
        digits.append(digit)
    return digits


def mixed(values: Numbers, salt: tuple[int, ...]) -> NDArray[np.uint64]:
    """64 random-looking bits for each value, others for each salt: splitmix64's last steps."""
    bits = values.astype(np.uint64)
    for number in (*salt, 0):
        bits = bits + np.uint64((2 * number + 1) * 0x9E3779B97F4A7C15 % 2**64)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return bits
