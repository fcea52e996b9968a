"""Clips of attention maps with known counts, each with one kind of trouble that flat, separate shapes never make.

A clip has things of two nouns that move over F frames of H × W tokens. Of it come the nouns' cross-attention maps in
several blocks, and queries and keys of four self-attention heads: one that knows things, one that knows nouns, one that
knows places and one that knows nothing. Seeds are fixed by kind, level and number.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator
from scipy import ndimage

FRAMES, HEIGHT, WIDTH, BLOCKS = 9, 30, 52, 6
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(float)
KNOWN = 40  # channels of a thing's own vector
HEAD = 48  # channels of a head


@dataclass
class Thing:
    """An ellipse that moves; tokens, radii along and across its angle."""

    noun: int
    path: np.ndarray  # [F, 2]
    radii: tuple[float, float]
    angle: float = 0.0
    gain: float = 1.0  # of its response, not of what self-attention sees
    dips: float = 0.0  # share by which the response falls between its lobes
    lobes: int = 1
    part: tuple[float, float, float] | None = None  # a head: how far off, its radius, its gain
    seen: np.ndarray = field(default_factory=lambda: np.ones(FRAMES))

    def body(self, frame: int, *, lobed: bool = True) -> np.ndarray:
        down, right = ROWS - self.path[frame, 0], COLUMNS - self.path[frame, 1]
        along = np.cos(self.angle) * down + np.sin(self.angle) * right
        across = -np.sin(self.angle) * down + np.cos(self.angle) * right
        own = _dome(np.hypot(along / self.radii[0], across / self.radii[1]))
        if lobed and self.lobes > 1:
            own = own * (1 - self.dips * np.sin(np.pi * self.lobes * (along / self.radii[0] + 1) / 2 + np.pi / 2) ** 2)
        if self.part:
            off, radius, gain = self.part
            own = np.maximum(own, gain * _dome(np.hypot(along - off, across) / radius))
        return np.asarray(own * self.seen[frame])


@dataclass
class Clip:
    """What a reading is given, and the counts that it should find."""

    counts: tuple[int, int]
    blocks: np.ndarray  # [blocks, nouns, F, H, W]
    q: np.ndarray  # [F · n, heads, D]
    k: np.ndarray


@dataclass(frozen=True)
class Maps:
    """What happens to the responses."""

    floor: float = 0.1
    noise: float = 0.03  # the same in all blocks
    leak: float = 0.0  # share of the other noun's response that a noun answers with
    sink: float = 0.0  # response of one or two tokens, in peaks
    first: float = 1.0  # factor on the first frame
    weak: float = 1.0  # factor on the second noun
    ground: float = 0.0  # response of the lower part of the frame to the first noun
    texture: float = 0.0  # log standard deviation within things
    behind: bool = False  # things of the first noun pass behind the last one


def _dome(distance: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + distance**6))


def _spots(rng: Generator, *shape: int, size: float) -> np.ndarray:
    found = ndimage.gaussian_filter(rng.standard_normal(shape), (*(0,) * (len(shape) - 2), size, size))
    return np.asarray(found / found.std())


def _paths(rng: Generator, reaches: list[float], speed: float = 0.5) -> list[np.ndarray] | None:
    """Straight paths on which things of these radii stay inside and apart; None where there is no room."""
    for attempt in range(100):
        gap = 3.0 * 0.7 ** (attempt // 20)
        paths: list[np.ndarray] = []
        for reach in reaches:
            for _ in range(60):
                edge = min(0.8 * reach, 0.45 * HEIGHT)
                start = rng.uniform([edge, edge], [HEIGHT - 1 - edge, WIDTH - 1 - edge])
                path = start + rng.uniform(-speed, speed, 2) * (np.arange(FRAMES)[:, None] - FRAMES / 2)
                near = [
                    np.hypot(*(path - other).T).min() < reach + own + gap
                    for other, own in zip(paths, reaches, strict=False)
                ]
                inside = (path >= edge * 0.8).all() and (path <= np.array([HEIGHT, WIDTH]) - 1 - edge * 0.8).all()
                if inside and not any(near):
                    paths.append(path)
                    break
            else:
                break
        if len(paths) == len(reaches):
            return paths
    return None


Make = Callable[[Generator, int], dict]


def _things(rng: Generator, counts: tuple[int, int], make: Make | None = None, speed: float = 0.5) -> list[Thing]:
    def plain(rng: Generator, noun: int) -> dict:
        return {"radii": tuple(rng.uniform(3.5, 6.5, 2)), "angle": rng.uniform(0, np.pi)}

    nouns, paths = [0] * counts[0] + [1] * counts[1], None
    while paths is None:
        made = [(make or plain)(rng, noun) for noun in nouns]
        reaches = [max(*own["radii"], sum(own.get("part", (0, 0))[:2])) for own in made]
        paths = _paths(rng, reaches, speed=speed)
    return [
        Thing(noun=noun, path=path, **({"gain": rng.uniform(0.85, 1.0)} | own))
        for noun, path, own in zip(nouns, paths, made, strict=True)
    ]


def _counts(rng: Generator) -> tuple[int, int]:
    return int(rng.integers(1, 4)), int(rng.integers(1, 3))


# --- kinds: what is in a clip, by how hard it is (0 mild, 1 hard) ---


def _pick(rng: Generator, hard: bool, mild: tuple[float, float], high: tuple[float, float]) -> float:
    return float(rng.uniform(*(high if hard else mild)))


def control(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    return _things(rng, _counts(rng)), Maps()


def parts(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    def make(rng: Generator, noun: int) -> dict:
        long, head = rng.uniform(3.0, 4.5), rng.uniform(1.8, 2.6)
        off = (long + head) * _pick(rng, hard, (0.8, 0.87), (0.92, 1.0))
        return {
            "radii": (long, rng.uniform(2.4, 3.4)),
            "angle": rng.uniform(0, 2 * np.pi),
            "part": (off, head, rng.uniform(0.75, 1.0)),
        }

    return _things(rng, (int(rng.integers(1, 4)), 1), make), Maps()


def touching(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    number, paths = int(rng.integers(2, 4)), None
    while paths is None:
        radius = rng.uniform(3.8, 4.8)
        apart = 2 * radius * _pick(rng, hard, (0.9, 1.0), (0.72, 0.8))
        paths = _paths(rng, [radius + apart * (number - 1) / 2, 4.0], speed=0.3)
    middle, other = paths
    row = [
        Thing(0, middle + np.array([0, apart * (place - (number - 1) / 2)]), (radius, radius))
        for place in range(number)
    ]
    return [*row, Thing(1, other, (4.0, 4.0))], Maps()


def elongated(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    def make(rng: Generator, noun: int) -> dict:
        if noun:
            return {"radii": (4.0, 4.0)}
        dips = _pick(rng, hard, (0.03, 0.14), (0.25, 0.4))
        angle = np.pi / 2 + rng.uniform(-0.3, 0.3)
        return {"radii": (rng.uniform(6.5, 8.0), 2.4), "angle": angle, "lobes": int(rng.integers(2, 4)), "dips": dips}

    return _things(rng, (int(rng.integers(1, 3)), 1), make, speed=0.2), Maps()


def dim(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    things = _things(rng, (int(rng.integers(2, 4)), 1))
    things[0].gain, things[1].gain = 1.0, _pick(rng, hard, (0.55, 0.75), (0.34, 0.45))
    return things, Maps()


def hidden(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    radius, row, speed = rng.uniform(3.3, 4.2), rng.uniform(11, HEIGHT - 12), rng.uniform(3.2, 4.0)
    time = np.arange(FRAMES) - FRAMES / 2
    passing = Thing(0, np.stack([np.full(FRAMES, row), 26 + speed * time], axis=1), (radius, radius))
    wide = radius + (4.5 if hard else 0.5)
    front = Thing(1, np.tile([row, 26.0], (FRAMES, 1)), (radius + 2.5, wide))
    return [passing, front], Maps(behind=True)


def fast(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    speed = _pick(rng, hard, (4.0, 6.0), (7.5, 10.0))
    things = []
    for noun, row in zip((0, 0, 1), rng.permutation([5.0, 15.0, 25.0]), strict=True):
        radius, step = rng.uniform(3.2, 4.2), speed * (1 if rng.random() < 0.5 else -1)
        place = rng.uniform(radius, WIDTH - 1 - radius)
        columns = []
        for _ in range(FRAMES):
            columns.append(place)
            if not radius <= place + step <= WIDTH - 1 - radius:
                step = -step
            place += step if noun == 0 else 0.0
        things.append(Thing(noun, np.stack([np.full(FRAMES, row), np.array(columns)], axis=1), (radius, radius)))
    return things, Maps()


def sizes(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    def make(rng: Generator, noun: int) -> dict:
        radius = 4.0 * _pick(rng, hard, (0.75, 1.4), (0.45, 2.0))
        return {"radii": (radius, radius * rng.uniform(0.85, 1.15))}

    return _things(rng, _counts(rng), make), Maps()


def small(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    return _things(
        rng, _counts(rng), lambda rng, noun: {"radii": (_pick(rng, hard, (2.3, 3.0), (1.5, 2.0)),) * 2}
    ), Maps()


def mixed(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    things, _ = parts(rng, False) if rng.random() < 0.5 else control(rng, False)
    for thing in things:
        thing.gain = _pick(rng, hard, (0.65, 1.0), (0.5, 1.0))
    maps = Maps(
        floor=_pick(rng, hard, (0.15, 0.3), (0.25, 0.4)),
        noise=_pick(rng, hard, (0.03, 0.05), (0.05, 0.09)),
        leak=_pick(rng, hard, (0.2, 0.35), (0.35, 0.55)),
        first=_pick(rng, hard, (1.0, 1.3), (1.2, 1.7)),
        weak=_pick(rng, hard, (0.8, 1.0), (0.6, 1.0)),
        texture=_pick(rng, hard, (0.05, 0.1), (0.1, 0.2)),
    )
    return things, maps


def absent(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
    return _things(rng, (int(rng.integers(1, 4)), 0)), Maps(leak=0.5 if hard else 0.2)


def _maps(name: str, mild: tuple[float, float], high: tuple[float, float]) -> Callable:
    def make(rng: Generator, hard: bool) -> tuple[list[Thing], Maps]:
        return _things(rng, _counts(rng)), replace(Maps(), **{name: _pick(rng, hard, mild, high)})

    return make


KINDS: dict[str, Callable[[Generator, bool], tuple[list[Thing], Maps]]] = {
    "control": control,
    "parts": parts,
    "touching": touching,
    "elongated": elongated,
    "dim": dim,
    "hidden": hidden,
    "fast": fast,
    "noise": _maps("noise", (0.05, 0.08), (0.11, 0.16)),
    "floor": _maps("floor", (0.25, 0.35), (0.45, 0.6)),
    "ground": _maps("ground", (0.25, 0.35), (0.5, 0.7)),
    "leak": _maps("leak", (0.3, 0.45), (0.6, 0.85)),
    "sink": _maps("sink", (1.3, 1.7), (2.5, 4.0)),
    "first": _maps("first", (1.3, 1.7), (2.3, 3.0)),
    "weak": _maps("weak", (0.6, 0.8), (0.25, 0.4)),
    "texture": _maps("texture", (0.1, 0.17), (0.22, 0.32)),
    "sizes": sizes,
    "small": small,
    "absent": absent,
    "mixed": mixed,
}


def clip(kind: str, level: str, number: int) -> Clip:
    """One clip of a kind, "mild" or "hard"."""
    rng = np.random.default_rng([zlib.crc32(f"{kind} {level}".encode()), number])
    things, maps = KINDS[kind](rng, level == "hard")
    solid = np.stack([[thing.body(frame, lobed=False) for frame in range(FRAMES)] for thing in things])
    bodies = np.stack([[thing.gain * thing.body(frame) for frame in range(FRAMES)] for thing in things])
    if maps.behind:
        cover = 1 - (solid[-1] > 0.5)
        solid[:-1], bodies[:-1] = solid[:-1] * cover, bodies[:-1] * cover
    if maps.texture:
        bodies = bodies * np.exp(maps.texture * _spots(rng, len(things), 1, HEIGHT, WIDTH, size=1.2))
    counts = tuple(sum(thing.noun == noun for thing in things) for noun in (0, 1))
    return Clip((counts[0], counts[1]), _responses(rng, things, bodies, maps), *_self_attention(rng, things, solid))


def _responses(rng: Generator, things: list[Thing], bodies: np.ndarray, maps: Maps) -> np.ndarray:
    signal = np.zeros((2, FRAMES, HEIGHT, WIDTH))
    for thing, body in zip(things, bodies, strict=True):
        signal[thing.noun] = np.maximum(signal[thing.noun], body)
    signal = np.maximum(signal, maps.leak * signal[::-1])
    base = np.full(signal.shape, maps.floor)
    base[0] += max(0.0, maps.ground - maps.floor) / (1 + np.exp(rng.uniform(10, 16) - ROWS)) if maps.ground else 0.0
    found = base + signal * (1 - base)
    found = (
        found + maps.noise * (_spots(rng, 2, 1, HEIGHT, WIDTH, size=1.2) + _spots(rng, *found.shape, size=1.2)) / 1.4
    )
    if maps.sink:
        for _ in range(int(rng.integers(1, 3))):
            found[:, :, rng.integers(HEIGHT), rng.integers(WIDTH)] = maps.sink
    found[:, 0] *= maps.first
    found[1] *= maps.weak
    own = np.stack([found + 0.06 * found.max() * _spots(rng, *found.shape, size=1.2) * 0.8 for _ in range(BLOCKS)])
    scales = rng.uniform(0.02, 0.08, BLOCKS)[:, None, None, None, None]
    return np.maximum(own * scales, 1e-4).astype(np.float32)


def _self_attention(rng: Generator, things: list[Thing], solid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys [F · n, 4 heads, D]: of things, nouns, places, and noise."""
    nouns, own = rng.standard_normal((2, KNOWN)), rng.standard_normal((len(things), KNOWN))
    ground = sum(_spots(rng, HEIGHT, WIDTH, size=5.0)[..., None] * rng.standard_normal(KNOWN) for _ in range(3))
    waves = [np.sin(ROWS / s) for s in (3, 7)] + [np.cos(COLUMNS / s) for s in (3, 7)]
    place = sum(wave[..., None] * rng.standard_normal(KNOWN) for wave in waves)
    of_things = np.einsum("tfhw,tc->fhwc", solid, 1.2 * own + nouns[[thing.noun for thing in things]])
    of_nouns = np.einsum("tfhw,tc->fhwc", solid, nouns[[thing.noun for thing in things]])
    seen = [of_things + 0.1 * ground + 0.1 * place, of_nouns + 0.1 * ground, np.broadcast_to(place, of_nouns.shape)]
    seen.append(np.zeros_like(of_nouns))
    q, k = [], []
    for features in seen:
        head = features.reshape(-1, KNOWN) @ (rng.standard_normal((KNOWN, HEAD)) / np.sqrt(HEAD))
        for kept in (q, k):
            kept.append(head + 0.3 * rng.standard_normal(head.shape))
    return np.stack(q, axis=1).astype(np.float32), np.stack(k, axis=1).astype(np.float32)


def clips(kind: str, level: str, number: int) -> Iterator[Clip]:
    yield from (clip(kind, level, place) for place in range(number))
