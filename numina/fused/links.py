"""Pieces followed over a clip: one assignment of all of them, with velocity, size, affinity and gaps."""

from collections.abc import Sequence
from math import pi

import numpy as np
from jaxtyping import Float, Int
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
    velocities = np.full((len(pieces), 2), np.nan)
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


def _costs(pieces: Sequence[Piece], velocities: Float[np.ndarray, "pieces 2"]) -> Float[np.ndarray, "pieces all"]:
    """Of every link, and of none; all pairs at once."""
    number = len(pieces)
    costs = np.full((number, 2 * number), BIRTH)
    costs[:, :number] = NEVER
    frames, areas = np.array([piece.frame for piece in pieces]), np.array([piece.area for piece in pieces])
    frames_on = frames[None] - frames[:, None]
    one, other = np.nonzero((frames_on >= 1) & (frames_on <= GAP))
    span = frames_on[one, other]
    centres = np.stack([piece.centre for piece in pieces])
    directions = np.stack([piece.direction for piece in pieces])
    shares = np.maximum([piece.responses for piece in pieces], 0)
    shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    radius = np.sqrt((areas[one] + areas[other]) / 2 / pi)
    costs[one, other] = (
        MOVE * _off(centres[other] - centres[one], velocities[[one, other]], span) / (radius + 1) / np.sqrt(span)
        + UNLIKE * (1 - (directions[one] * directions[other]).sum(axis=1))
        + SIZE * np.abs(np.log(areas[one] / areas[other]))
        + HIDDEN * (span - 1)
        + NOUN * np.abs(shares[one] - shares[other]).max(axis=1)
    )
    return costs


def _off(
    move: Float[np.ndarray, "pairs 2"], velocities: Float[np.ndarray, "both pairs 2"], span: Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """Tokens from the place where the second of two pieces is expected: by the velocity with which the first leaves or
    the second comes, whichever is nearer; where neither is known, where the first is."""
    off = np.hypot(*(move - velocities * span[:, None]).transpose(2, 0, 1))
    return np.where(np.isnan(off).all(axis=0), np.hypot(*move.T), np.fmin(*off))


def _velocities(pieces: Sequence[Piece], after: dict[int, int]) -> Float[np.ndarray, "pieces 2"]:
    """Tokens a frame, as mean of what a piece's links before and after it say; NaN for one without links."""
    said: list[list[np.ndarray]] = [[] for _ in pieces]
    for a, b in after.items():
        move = (pieces[b].centre - pieces[a].centre) / (pieces[b].frame - pieces[a].frame)
        said[a].append(move)
        said[b].append(move)
    return np.array([np.mean(own, axis=0) if own else np.full(2, np.nan) for own in said])
