"""Synthetic clips with exact truth: squares on straight paths, and the responses a perfect model would have to them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from omegaconf import OmegaConf

from numina.config import MethodConfig
from numina.layout import Capture, Layout

PRESETS = Path(__file__).parents[2] / "configs" / "method"


def preset(name: str) -> MethodConfig:
    """The method's settings as a preset file has them."""
    merged = OmegaConf.merge(OmegaConf.structured(MethodConfig), OmegaConf.load(PRESETS / f"{name}.yaml"))
    method = OmegaConf.to_object(merged)
    assert isinstance(method, MethodConfig)
    return method


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    """Instances as sets of tokens, whatever their numbers."""
    flat = labels.ravel()
    return {frozenset(np.flatnonzero(flat == label).tolist()) for label in np.unique(flat) if label > 0}


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


@st.composite
def uneven_scenes(draw: st.DrawFn) -> Scene:
    """Scenes that rarely have a symmetry: squares of 3 x 3 tokens (with a middle token), at rest, off any lattice."""
    frames, nouns = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    cells = draw(st.permutations([(i, j) for i in range(3) for j in range(3)]))
    squares = []
    for row, column in cells[: draw(st.integers(2, 5))]:
        row, column = 7 * row + draw(st.integers(0, 3)), 9 * column + draw(st.integers(0, 5))
        squares.append(Square(draw(st.integers(0, nouns - 1)), row, column, 3, 0))
    return Scene((21, 28), frames, nouns, tuple(squares))


@st.composite
def soft_scenes(draw: st.DrawFn) -> Capture:
    """Responses to soft blobs of 2 to 5 tokens that keep apart and drift; places and sizes are real numbers."""
    frames, nouns = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    cells = draw(st.permutations([(i, j) for i in range(2) for j in range(3)]))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    row, column = np.mgrid[:19, :27]
    responses = np.zeros((nouns, frames, 19, 27))
    for number, cell in enumerate(cells[: draw(st.integers(nouns, 5))]):
        place = np.array([9.0, 9.0]) * cell + 4.5 + random.uniform(-1, 1, 2)
        radius, drift = random.uniform(1.0, 2.5), random.uniform(-0.5, 0.5, 2)
        for frame in range(frames):
            squares = (row - place[0] - drift[0] * frame) ** 2 + (column - place[1] - drift[1] * frame) ** 2
            blob = np.exp(-((squares / radius**2) ** 2))
            responses[number % nouns, frame] = np.maximum(responses[number % nouns, frame], blob)
    return Capture(responses.astype(np.float32), None)
