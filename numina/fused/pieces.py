"""A frame's instances: too many pieces from cross-attention's maxima, joined and cut by self-attention's affinity.

Neither can do it alone: the response dips between a body and its head as it does between two things that touch, and
affinity knows no noun. Legend: H W the token grid of a frame, r coordinates of a token (`numina.affinity`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage

from numina.config import IdentifyConfig

GRID = 1560  # tokens of the frame that the lengths below are given for (30 × 52, 480p)
BLUR = 0.7  # [tokens] standard deviation: a token's own noise makes no maximum
NEAR = 2  # [tokens] between pieces that may be one thing
CORE = 0.7  # share of a piece's peak: tokens that speak for it
BODY = 0.45  # share of a piece's peak: tokens that say whether it is two things
SMALL, SMALL_BONUS = 0.4, 0.4  # a piece of less than this share of its neighbour's area is joined to it more readily
JOIN_SLACK = 0.1  # pieces are joined at a lower cosine than one is cut at: lobes differ a little, things a lot
REJOIN = 0.92  # cosine at which what was cut is joined again
DEEPEST = 5  # times that a piece is cut in two
HIGHEST = 0.35  # share of a noun's peak: a piece above it isn't noise, however noisy the frame
NOISES = 2.0  # standard deviations of the ground that a piece must rise above
AROUND_8 = np.ones((3, 3), dtype=bool)

Mask = Bool[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class Piece:
    """One thing in one frame, or what looks like one."""

    frame: int
    mask: Mask
    direction: Float[np.ndarray, " r"]  # of its core's mean coordinates, of length 1
    centre: Float[np.ndarray, " 2"]  # row and column, weighted with the response
    responses: Float[np.ndarray, " nouns"]  # mean over its core, as shares of each noun's peak
    contrast: float  # between its core's coordinates and its surroundings', in standard deviations

    @property
    def area(self) -> int:
        return int(self.mask.sum())


@dataclass
class _Region:
    mask: Mask
    core: Mask
    peak: float


@dataclass(frozen=True)
class _Lengths:
    blur: float
    near: int
    gap: int  # around a piece, that is neither it nor its surroundings
    ring: int  # up to where its surroundings reach
    least: int  # [tokens] of a core

    @classmethod
    def of(cls, tokens: int) -> "_Lengths":
        side = sqrt(tokens / GRID)
        gap = max(1, round(2 * side))
        return cls(
            blur=BLUR * side,
            near=max(1, round(NEAR * side)),
            gap=gap,
            ring=gap + max(2, round(3 * side)),
            least=max(2, round(4 * tokens / GRID)),
        )


def frame_pieces(
    frame: int,
    shares: Float32[np.ndarray, "nouns H W"],
    noise: Float[np.ndarray, " nouns"],
    coordinates: Float32[np.ndarray, "H W r"],
    config: IdentifyConfig,
) -> list[Piece]:
    """What may be instances of any noun in one frame. ``shares``: of each noun's peak; ``noise``: of their ground."""
    lengths = _Lengths.of(shares[0].size)
    blurred = np.stack([ndimage.gaussian_filter(own, lengths.blur) for own in shares])
    least = np.minimum(np.maximum(config.threshold, NOISES * noise), HIGHEST)
    top = np.where(blurred >= least[:, None, None], blurred, 0.0).max(axis=0)
    regions = _joined(_basins(top, config.extent), coordinates, lengths, config.affinity - JOIN_SLACK)
    found = [part for region in regions for part in _cut(region, top, coordinates, lengths, config)]
    found = [region for region in found if region.mask.sum() >= max(config.min_area, 2)]
    if not found:
        return []
    taken = ndimage.binary_dilation(np.any([region.mask for region in found], axis=0), AROUND_8)
    pieces = []
    for region in found:
        weights = np.where(region.mask, top, 0.0) + 1e-3 * region.mask
        rows, columns = np.nonzero(region.mask)
        centre = np.average(np.stack([rows, columns]), axis=1, weights=weights[region.mask])
        pieces.append(
            Piece(
                frame=frame,
                mask=region.mask,
                direction=_direction(coordinates, region.core),
                centre=centre,
                responses=shares[:, region.core].mean(axis=1),
                contrast=_contrast(coordinates, region, taken, lengths),
            )
        )
    return pieces


def _basins(top: Float[np.ndarray, "H W"], extent: float) -> list[_Region]:
    """Every maximum with the tokens that rise to it, down to ``extent`` of its height (a watershed without merging)."""
    labels, number = ndimage.label((top == ndimage.maximum_filter(top, size=3, mode="nearest")) & (top > 0), AROUND_8)
    height, width = top.shape
    index: Int[np.ndarray, "H W"] = np.arange(top.size).reshape(top.shape)
    padded, best, to = np.pad(top, 1, constant_values=-1.0), top.copy(), index.copy()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            other = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
            to = np.where(other > best, index + down * width + right, to)
            best = np.maximum(best, other)
    up = to.ravel()
    for _ in range(int(np.ceil(np.log2(height + width)))):
        up = up[up]  # twice as far up each time
    basin: Int[np.ndarray, "H W"] = labels.ravel()[up].reshape(top.shape)
    peaks = ndimage.maximum(top, basin, np.arange(1, number + 1))
    masks = [(basin == label, float(peak)) for label, peak in enumerate(np.atleast_1d(peaks), start=1)]
    return [_Region(mask & (top >= extent * peak), mask & (top >= CORE * peak), peak) for mask, peak in masks]


def _joined(
    regions: list[_Region], coordinates: Float[np.ndarray, "H W r"], lengths: _Lengths, affinity: float
) -> list[_Region]:
    """Neighbours that point the same way are one, the most alike first."""
    regions = list(regions)
    wide = [ndimage.binary_dilation(region.mask, AROUND_8, iterations=lengths.near) for region in regions]
    near = {(i, j) for i in range(len(regions)) for j in range(i) if (wide[i] & wide[j]).any()}
    directions = [_direction(coordinates, region.core) for region in regions]
    gone = set[int]()
    while near:
        alike, i, j = max((_alike(directions, [r.mask for r in regions], i, j), i, j) for i, j in near)
        if alike < affinity:
            break
        one, other = regions[i], regions[j]
        regions[i] = _Region(one.mask | other.mask, one.core | other.core, max(one.peak, other.peak))
        directions[i] = _direction(coordinates, regions[i].core)
        gone.add(j)
        near = {(i if a == j else a, i if b == j else b) for a, b in near}
        near = {(max(pair), min(pair)) for pair in near if pair[0] != pair[1]}
    return [region for place, region in enumerate(regions) if place not in gone]


def _alike(directions: Sequence[Float[np.ndarray, " r"]], masks: Sequence[Mask], i: int, j: int) -> float:
    """Cosine of two pieces, raised where one is a scrap of the other."""
    small, large = sorted((int(masks[i].sum()), int(masks[j].sum())))
    return float(directions[i] @ directions[j]) + SMALL_BONUS * max(0.0, 1 - small / large / SMALL)


def _cut(
    region: _Region,
    top: Float[np.ndarray, "H W"],
    coordinates: Float[np.ndarray, "H W r"],
    lengths: _Lengths,
    config: IdentifyConfig,
) -> list[_Region]:
    """The things that a region is made of; itself where it is one."""
    body = region.mask & (top >= BODY * region.peak)
    parts = _rejoined(_halves(body, coordinates, lengths.least, config.affinity), coordinates)
    if len(parts) == 1:
        return [region]
    directions = np.stack([_direction(coordinates, part) for part in parts])
    nearest = np.asarray((_unit(coordinates) @ directions.T).argmax(axis=-1))
    return [
        _Region((region.mask & (nearest == number)) | part, part, float(top[part].max()))
        for number, part in enumerate(parts)
    ]


def _halves(
    mask: Mask, coordinates: Float[np.ndarray, "H W r"], least: int, affinity: float, depth: int = 0
) -> list[Mask]:
    """A mask, cut in two again and again while the two halves' clearest tokens point apart."""
    if mask.sum() < 2 * least or depth == DEEPEST:
        return [mask]
    side = _two(coordinates[mask], affinity)
    if side is None:
        return [mask]
    parts = []
    for own in (side, ~side):
        half = np.zeros_like(mask)
        half[mask] = own
        labels, number = ndimage.label(half, AROUND_8)
        parts += [labels == label for label in range(1, number + 1) if (labels == label).sum() >= least]
    if len(parts) < 2:
        return [mask]
    return [piece for part in parts for piece in _halves(part, coordinates, least, affinity, depth + 1)]


def _two(tokens: Float[np.ndarray, "tokens r"], affinity: float) -> Bool[np.ndarray, " tokens"] | None:
    """Tokens of one of two things (2-means of directions, begun at the first principal axis); None if it is one.

    Where two things touch tokens belong to both: the clearer 70 % of each side speak for it.
    """
    unit = _unit(tokens)
    spread = tokens - tokens.mean(axis=0)
    side = spread @ np.linalg.eigh(spread.T @ spread)[1][:, -1] > 0
    for _ in range(15):
        if side.all() or not side.any():
            return None
        one, other = (_unit(tokens[own].mean(axis=0)) for own in (side, ~side))
        nearer = unit @ one > unit @ other
        if (nearer == side).all():
            break
        side = nearer
    if side.all() or not side.any():
        return None
    lead = unit @ one - unit @ other
    clear = side & (lead >= np.quantile(lead[side], 0.3)), ~side & (lead <= np.quantile(lead[~side], 0.7))
    one, other = (_unit(tokens[own].mean(axis=0)) for own in clear)
    return None if one @ other > affinity else side


def _rejoined(parts: list[Mask], coordinates: Float[np.ndarray, "H W r"]) -> list[Mask]:
    parts = list(parts)
    while len(parts) > 1:
        directions = [_direction(coordinates, part) for part in parts]
        alike, i, j = max((_alike(directions, parts, i, j), i, j) for i in range(len(parts)) for j in range(i))
        if alike < REJOIN:
            break
        parts[i] = parts[i] | parts[j]
        del parts[j]
    return parts


def _contrast(coordinates: Float[np.ndarray, "H W r"], region: _Region, taken: Mask, lengths: _Lengths) -> float:
    """How far a piece's core is from its surroundings, in standard deviations of both; infinite without any."""
    wide = ndimage.binary_dilation(region.mask, AROUND_8, iterations=lengths.ring)
    ring = wide & ~ndimage.binary_dilation(region.mask, AROUND_8, iterations=lengths.gap) & ~taken
    if ring.sum() <= 6:
        return float("inf")
    inside, outside = coordinates[region.core], coordinates[ring]
    variance = (inside.var(axis=0).sum() + outside.var(axis=0).sum()) / 2
    return float(np.linalg.norm(inside.mean(axis=0) - outside.mean(axis=0)) / max(np.sqrt(variance), 1e-12))


def _direction(coordinates: Float[np.ndarray, "H W r"], mask: Mask) -> Float[np.ndarray, " r"]:
    return _unit(coordinates[mask].mean(axis=0))


def _unit(vectors: Float[np.ndarray, "... r"]) -> Float[np.ndarray, "... r"]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def labels_of(pieces: Sequence[tuple[int, Piece]], shape: tuple[int, int, int]) -> Int[np.ndarray, "frames H W"]:
    """Pieces with their numbers as a map of labels."""
    labels = np.zeros(shape, dtype=np.int16)
    for number, piece in pieces:
        labels[piece.frame][piece.mask] = number
    return labels
