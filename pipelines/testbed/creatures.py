"""The bodies of the world `scenes`: eight kinds of creature, how they are painted, and which pixel is whose.

A creature is a muted, patterned body with a saturated head. Its frame has the head's centre at the origin and looks
along x, so the body lies at negative x. Legend: B scenes, N places for a creature, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.testbed.world import COLOURS, FRAMES, REACH, SHAPES, signed_distance

SIZE = 192
"""Height and width in pixels: 24×24 latent cells."""
BODY_CHROMA = 0.22
"""Largest minus smallest channel, of 1, that any pixel of a body or a background has: well below counter.MIN_CHROMA."""
WINDOW = 96
"""Pixels of the square around its middle in which a creature is painted; the largest one is 80 long."""

_GREY, _TINT = 172.0, 0.25  # a body's grey, and how far it leans to the colour of its head
_RIM = 0.4  # brightness of a body's outline, which parts it from bodies and backgrounds of any brightness

Part = tuple[float, float, float, float, float, float]  # x, y, radius at one end and at the other; pixels


@dataclass(frozen=True, kw_only=True)
class Body:
    """How a kind looks: the shape and radius of its head, its parts, and the waves of its pattern in radians/pixel."""

    head: str
    radius: float
    parts: tuple[Part, ...]
    pattern: tuple[float, float]

    def ends(self) -> tuple[float, float]:
        """Where it begins and ends along its axis, head included."""
        return min(min(p[0] - p[2], p[3] - p[5]) for p in self.parts), self.radius


def _dot(x: float, y: float, radius: float) -> Part:
    return (x, y, radius, x, y, radius)


BODIES: dict[str, Body] = {
    # Small: a neck and one fat lobe; an oval on legs.
    "snail": Body(head="circle", radius=7.5, parts=((0, 0, 4, -28, 0, 3), _dot(-19, 0, 11)), pattern=(0.5, 0.5)),
    "beetle": Body(
        head="square",
        radius=7.5,
        parts=((-12, 0, 8, -23, 0, 9.5), (-11, -15, 2, -11, 15, 2), (-24, -16, 2, -24, 16, 2)),
        pattern=(0.0, 0.7),
    ),
    # Medium: a tailed spindle; a trunk with legs and a bent tail; two pairs of lobes beside a stem; a bar with claws.
    "whale": Body(
        head="triangle",
        radius=8.5,
        parts=((-6, 0, 7, -20, 0, 10), (-20, 0, 10, -40, 0, 3), (-40, 0, 3, -48, -9, 3), (-40, 0, 3, -48, 9, 3)),
        pattern=(0.6, 0.0),
    ),
    "lizard": Body(
        head="square",
        radius=8.0,
        parts=(
            (-4, 0, 5, -28, 0, 7),
            (-28, 0, 6, -44, 6, 3.5),
            (-44, 6, 3.5, -53, -2, 2),
            (-11, -15, 2.5, -11, 15, 2.5),
            (-28, -15, 2.5, -28, 15, 2.5),
        ),
        pattern=(0.5, 0.5),
    ),
    "moth": Body(
        head="triangle",
        radius=8.5,
        parts=(
            (-2, 0, 4, -34, 0, 3),
            (-12, -10, 6, -14, -21, 10),
            (-12, 10, 6, -14, 21, 10),
            (-26, -6, 4, -31, -13, 7),
            (-26, 6, 4, -31, 13, 7),
        ),
        pattern=(0.0, 0.45),
    ),
    "crab": Body(
        head="cross",
        radius=8.5,
        parts=((-13, -13, 9, -13, 13, 9), (-14, -20, 4, 0, -27, 4.5), (-14, 20, 4, 0, 27, 4.5)),
        pattern=(0.0, 0.0),
    ),
    # Large: a wave; a row of lobes.
    "snake": Body(
        head="circle",
        radius=8.5,
        parts=(
            (0, 0, 5, -15, 8, 5.5),
            (-15, 8, 5.5, -32, -8, 5.5),
            (-32, -8, 5.5, -49, 8, 5),
            (-49, 8, 5, -64, 0, 2.5),
        ),
        pattern=(0.45, 0.0),
    ),
    "caterpillar": Body(
        head="cross",
        radius=9.0,
        parts=((0, 0, 4, -60, 0, 4), _dot(-16, 0, 8.5), _dot(-31, 0, 9), _dot(-46, 0, 9), _dot(-59, 0, 7)),
        pattern=(0.4, 0.0),
    ),
}
KINDS: tuple[str, ...] = tuple(BODIES)

_MOST = max(len(body.parts) for body in BODIES.values())
# [kinds, parts, 6]; the last part stands for those that a kind lacks
_PARTS = np.array([[*body.parts, *body.parts[-1:] * (_MOST - len(body.parts))] for body in BODIES.values()])
_ENDS = np.array([body.ends() for body in BODIES.values()])
_MIDDLE = _ENDS.mean(1)  # of the axis, where the window's centre is
_HEADS = np.array([SHAPES.index(body.head) for body in BODIES.values()])
_HEAD_RADIUS = np.array([body.radius for body in BODIES.values()])
_PATTERNS = np.array([body.pattern for body in BODIES.values()])


@dataclass(frozen=True)
class Ground:
    """A background: its colour at noon, how much darker it gets from top to bottom, and the waves of its texture."""

    colour: tuple[float, float, float]
    slope: float  # share of the brightness
    waves: tuple[float, float]  # radians/pixel along x and y; of two waves the product
    depth: float  # share of the brightness


@dataclass(frozen=True)
class Scenes:
    """B scenes as arrays; positions (x, y) are in pixels, and a later place lies in front of an earlier one."""

    kind: NDArray[np.int64]  # [B, N], index into KINDS, -1 where there is none
    colour: NDArray[np.int64]  # [B, N], index into COLOURS
    scale: NDArray[np.float64]  # [B, N], of body and head
    angle: NDArray[np.float64]  # [B, N], radians, where the head points
    start: NDArray[np.float64]  # [B, N, 2], of the head's centre, without the camera
    velocity: NDArray[np.float64]  # [B, N, 2], pixels per frame
    camera: NDArray[np.float64]  # [B, T, 2], how far the camera has moved
    ground: NDArray[np.float64]  # [B, 8]: red, green, blue (of 255), slope, two waves, depth, phase

    def centres(self) -> NDArray[np.float64]:
        """Centres of the heads as the camera sees them in every frame, [B, N, T, 2]."""
        frames = np.arange(self.camera.shape[1])[:, None]
        return self.start[:, :, None] + self.velocity[:, :, None] * frames - self.camera[:, None]

    def reach(self) -> NDArray[np.float64]:
        """How far each head goes from its centre, [B, N]."""
        return head_reach(self.kind, self.scale)


def head_reach(kind: NDArray[np.int64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far heads go from their centres, in pixels."""
    return scale * (REACH[_HEADS] * _HEAD_RADIUS)[np.maximum(kind, 0)]


def tail(kind: NDArray[np.int64], scale: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each head's centre to its body's other end, [..., 2] in pixels."""
    return (scale * _ENDS[np.maximum(kind, 0), 0])[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)


@dataclass(frozen=True)
class _Patch:
    """One place's creatures in their windows; n of the B scenes have one there."""

    place: int
    rows: NDArray[np.int64]  # [n], scenes
    index: tuple[Tensor, ...]  # into a padded [B, T, H, W]: gives [n, T, WINDOW, WINDOW]
    body: Tensor  # distance from the body's rim in pixels, negative inside, [n, T, WINDOW, WINDOW]
    head: Tensor  # the same of the head
    along: Tensor  # the creature's own coordinates
    across: Tensor


def _patches(scenes: Scenes, chosen: NDArray[np.int64], device: torch.device | str) -> Iterator[_Patch]:
    heads = scenes.centres()[:, :, chosen]
    cells = torch.arange(WINDOW, device=device)

    def put(array: NDArray[np.generic]) -> Tensor:
        return torch.as_tensor(np.asarray(array, dtype=np.float32), device=device)

    for place in range(scenes.kind.shape[1]):
        rows = np.flatnonzero(scenes.kind[:, place] >= 0)
        if not len(rows):
            continue
        kind, scale, angle = scenes.kind[rows, place], scenes.scale[rows, place], scenes.angle[rows, place]
        axis = np.stack([np.cos(angle), np.sin(angle)], -1)
        middle = heads[rows, place] + ((scale * _MIDDLE[kind])[:, None] * axis)[:, None]
        corner = np.clip(np.floor(middle).astype(np.int64) - WINDOW // 2, -WINDOW // 2, SIZE - WINDOW // 2)
        size, cos, sin = (put(values)[:, None, None, None] for values in (scale, axis[:, 0], axis[:, 1]))
        offset = put(corner + 0.5 - heads[rows, place])
        x, y = cells + offset[:, :, 0, None, None], cells[:, None] + offset[:, :, 1, None, None]
        along, across = (cos * x + sin * y) / size, (cos * y - sin * x) / size
        body = torch.stack([_part_distance(part, along, across) for part in put(_PARTS[kind]).unbind(1)]).amin(0) * size
        head = torch.empty_like(body)
        for shape in np.unique(_HEADS[kind]):
            on = np.flatnonzero(_HEADS[kind] == shape)
            radius = put((scale * _HEAD_RADIUS[kind])[on])[:, None, None, None]
            at = torch.as_tensor(on, device=device)
            head[at] = signed_distance(int(shape), x[at], y[at], radius)
        place_of = torch.as_tensor(corner + WINDOW // 2, device=device)
        index = (
            torch.as_tensor(rows, device=device)[:, None, None, None],
            torch.arange(len(chosen), device=device)[:, None, None],
            place_of[..., 1, None, None] + cells[:, None],
            place_of[..., 0, None, None] + cells,
        )
        yield _Patch(place, rows, index, body, head, along, across)


def _part_distance(part: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distance from a thick line whose radius changes evenly from end to end, [n, T, W, W]; part is [n, 6]."""
    x0, y0, r0, x1, y1, r1 = (value[:, None, None, None] for value in part.unbind(1))
    dx, dy = x1 - x0, y1 - y0
    share = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy).clamp_min(1e-6)).clamp(0, 1)
    return torch.hypot(x - x0 - share * dx, y - y0 - share * dy) - torch.lerp(r0, r1, share)


def _paper(scenes: Scenes, chosen: NDArray[np.int64], device: torch.device | str) -> Tensor:
    """The backgrounds, padded by half a WINDOW on each side: [B, T, H + WINDOW, W + WINDOW, 3] of 255."""
    pixel = torch.arange(SIZE + WINDOW, device=device, dtype=torch.float32) + (0.5 - WINDOW // 2)
    ground, camera = (
        torch.as_tensor(np.asarray(values, dtype=np.float32), device=device)
        for values in (scenes.ground, scenes.camera[:, chosen])
    )
    slope, wave_x, wave_y, depth, phase = (value[:, None, None] for value in ground[:, 3:].unbind(1))
    along_x = torch.cos(wave_x * (pixel + camera[..., 0, None]) + phase)[:, :, None]
    along_y = torch.cos(wave_y * (pixel + camera[..., 1, None]) + 2 * phase)[..., None]
    light = 1 - slope[..., None] * (pixel[:, None] / SIZE - 0.5) + depth[..., None] * along_x * along_y
    return light[..., None] * ground[:, None, None, None, :3]


def render(scenes: Scenes, *, frames: Sequence[int] | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Antialiased video, [B, 3, T, H, W] in [-1, 1]; `frames` picks frame numbers (all by default).

    All bodies come first, from back to front, then all heads, which therefore nothing ever hides.
    """
    chosen = np.arange(FRAMES) if frames is None else np.asarray(frames)
    video = _paper(scenes, chosen, device)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device)
    heads = []
    for patch in _patches(scenes, chosen, device):
        colour = palette[torch.as_tensor(scenes.colour[patch.rows, patch.place], device=device)]
        waves = torch.as_tensor(np.float32(_PATTERNS[scenes.kind[patch.rows, patch.place]]), device=device)
        wave_x, wave_y = (value[:, None, None, None] for value in waves.unbind(1))
        pattern = torch.cos(wave_x * patch.along) * torch.cos(wave_y * patch.across)
        light = torch.lerp(0.84 + 0.16 * pattern, torch.full_like(pattern, _RIM), (patch.body + 2.5).clamp(0, 1))
        muted = torch.lerp(torch.full_like(colour, _GREY), colour, _TINT)[:, None, None, None]
        cover = (0.5 - patch.body).clamp(0, 1)[..., None]
        video[patch.index] = video[patch.index].lerp(light[..., None] * muted, cover)
        heads.append((patch.index, colour, (0.5 - patch.head).clamp(0, 1)[..., None]))
    for index, colour, cover in heads:
        video[index] = video[index].lerp(colour[:, None, None, None].expand(*cover.shape[:-1], 3), cover)
    edge = WINDOW // 2
    return video[:, :, edge:-edge, edge:-edge].permute(0, 4, 1, 2, 3) / 127.5 - 1


def masks(scenes: Scenes, *, frames: Sequence[int] | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Whose each pixel is, int8 [B, T, H, W]: the place of the creature that is seen there, -1 for the background."""
    chosen = np.arange(FRAMES) if frames is None else np.asarray(frames)
    side = SIZE + WINDOW
    owner = torch.full((len(scenes.kind), len(chosen), side, side), -1, dtype=torch.int8, device=device)
    heads = []
    for patch in _patches(scenes, chosen, device):
        owner[patch.index] = owner[patch.index].masked_fill(patch.body <= 0, patch.place)
        heads.append((patch.index, patch.head <= 0, patch.place))
    for index, inside, place in heads:
        owner[index] = owner[index].masked_fill(inside, place)
    edge = WINDOW // 2
    return owner[:, :, edge:-edge, edge:-edge]
