"""Pieces followed over a clip: one assignment of all of them, with velocity, size, affinity and gaps."""

from collections.abc import Sequence
from math import pi, sqrt

import numpy as np
from scipy.optimize import linear_sum_assignment

from numina.fused.pieces import Piece

BIRTH = 3.0  # cost of ending a track here and beginning another there; a link that costs more isn't made
GAP = 6  # frames, the longest that a thing may be hidden
# What a link costs: for each radius that it is off the place where it is expected; for a cosine of 0 instead of 1; for
# a size e times as large; for each frame hidden; for answering wholly to another noun.
MOVE, UNLIKE, SIZE, HIDDEN, NOUN = 0.5, 2.0, 0.3, 0.05, 1.0
PASSES = 3  # the first without velocities, the others with those of the links before
NEVER = 1e6


def link_pieces(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Tracks, each piece in one of them, in order of their first frame.

    The tracks of least cost (a minimum-cost path cover, solved as an assignment): all links are decided together, so
    that two things that cross aren't swapped because one of them was linked first.
    """
    after = dict[int, int]()
    velocities: list[np.ndarray | None] = [None] * len(pieces)
    for _ in range(PASSES if pieces else 0):
        costs = _costs(pieces, velocities)
        rows, columns = linear_sum_assignment(costs)
        after = {int(a): int(b) for a, b in zip(rows, columns, strict=True) if b < len(pieces) and costs[a, b] < BIRTH}
        velocities = _velocities(pieces, after)
    begun = set(range(len(pieces))) - set(after.values())
    tracks = []
    for place in sorted(begun):
        track = [place]
        while track[-1] in after:
            track.append(after[track[-1]])
        tracks.append([pieces[own] for own in track])
    return tracks


def _costs(pieces: Sequence[Piece], velocities: Sequence[np.ndarray | None]) -> np.ndarray:
    costs = np.full((len(pieces), 2 * len(pieces)), BIRTH)
    costs[:, : len(pieces)] = NEVER
    for a, one in enumerate(pieces):
        for b, other in enumerate(pieces):
            hidden = other.frame - one.frame - 1
            if 0 <= hidden <= GAP - 1:
                costs[a, b] = _cost(one, other, hidden + 1, velocities[a], velocities[b])
    return costs


def _cost(one: Piece, other: Piece, frames: int, leaves: np.ndarray | None, comes: np.ndarray | None) -> float:
    move = other.centre - one.centre
    expected = [own * frames for own in (leaves, comes) if own is not None] or [np.zeros(2)]
    off = min(float(np.hypot(*(move - own))) for own in expected)
    radius = sqrt((one.area + other.area) / 2 / pi)
    nouns = np.abs(_shares(one) - _shares(other)).max()
    return float(
        MOVE * off / (radius + 1) / sqrt(frames)
        + UNLIKE * (1 - one.direction @ other.direction)
        + SIZE * abs(np.log(one.area / other.area))
        + HIDDEN * (frames - 1)
        + NOUN * nouns
    )


def _shares(piece: Piece) -> np.ndarray:
    positive = np.maximum(piece.responses, 0)
    return np.asarray(positive / max(positive.sum(), 1e-12))


def _velocities(pieces: Sequence[Piece], after: dict[int, int]) -> list[np.ndarray | None]:
    """Tokens a frame, as mean of what a piece's links before and after it say."""
    said: list[list[np.ndarray]] = [[] for _ in pieces]
    for a, b in after.items():
        move = (pieces[b].centre - pieces[a].centre) / (pieces[b].frame - pieces[a].frame)
        said[a].append(move)
        said[b].append(move)
    return [np.mean(own, axis=0) if own else None for own in said]
