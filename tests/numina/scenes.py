"""Synthetic clips with exact truth: squares on straight paths, and the responses a perfect model would have to them."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from numina.layout import Capture, Layout


@dataclass(frozen=True)
class Square:
    noun: int
    row: int
    column: int
    side: int
    drift: int  # columns over the whole clip


@dataclass(frozen=True)
class Scene:
    grid: tuple[int, int]
    frames: int
    nouns: int
    squares: tuple[Square, ...]

    def layout(self, *, tracked: bool = True) -> Layout:
        labels = np.zeros((self.nouns, self.frames, *self.grid), dtype=np.int16)
        for number, square in enumerate(self.squares, start=1):
            for frame in range(self.frames):
                left = square.column + round(square.drift * frame / max(1, self.frames - 1))
                place = np.s_[square.row : square.row + square.side, left : left + square.side]
                labels[square.noun, frame][place] = number
        return Layout(labels=labels, tracked=tracked)

    def capture(self, noise: float = 0.0, seed: int = 0) -> Capture:
        inside = (self.layout().labels > 0).astype(np.float32)
        random = np.random.default_rng(seed).random(inside.shape, dtype=np.float32)
        return Capture(responses=inside * (1 - noise) + noise * random, components=None)

    def counts(self) -> list[int]:
        return [sum(square.noun == noun for square in self.squares) for noun in range(self.nouns)]


@st.composite
def scenes(draw: st.DrawFn, max_squares: int = 5) -> Scene:
    """Scenes whose squares keep at least one free token between each other; squares may drift by up to two columns."""
    frames, nouns = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cells = draw(st.permutations([(i, j) for i in range(3) for j in range(3)]))
    squares = []
    for row, column in cells[: draw(st.integers(0, max_squares))]:
        side = draw(st.integers(2, 4))
        drift = draw(st.integers(-2, 2)) if side < 4 else 0
        squares.append(Square(draw(st.integers(0, nouns - 1)), 7 * row + 1, 9 * column + 3, side, drift))
    return Scene((21, 28), frames, nouns, tuple(squares))
