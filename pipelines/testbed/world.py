"""The counted world: coloured shapes that drift on a plain background, and the prompts that describe them.

Scenes are drawn with a seeded NumPy generator and rendered with PyTorch, by the same functions for training on a GPU
and for tests on a CPU. Legend: B scenes, N places for a shape (unused ones have kind -1), T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FRAMES = 17
"""Frames of a clip: 1 + 4·4, so five latent frames."""
SIZE = 128
"""Height and width in pixels: 16×16 latent cells."""
MAX_COUNT = 6
MAX_OBJECTS = 9
MIN_GAP = 10.0
"""Pixels that stay free between any two shapes in every frame: more than one latent cell."""
MAX_SPEED = 1.0
"""Pixels per frame."""
TEXT_TOKENS = 24
"""Text tokens of a prompt, the end mark included."""
TRANSFORMER = (8, 4)
"""Blocks and heads of 64 channels, of the model that is trained on this world."""
BATCH = 48
"""Clips in a step of the transformer's training."""
REFRESH_EVERY = 24
"""Such steps after which some of the clips are replaced by new ones."""
CROWDED: tuple[int, ...] = (1, 2, 2, 2)
"""Numbers of nouns in the prompts that autoencoder and text encoder are trained on."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
PLURALS: dict[str, str] = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
NOUNS: tuple[str, ...] = SHAPES
COLOURS: dict[str, tuple[int, int, int]] = {
    # 60 degrees of hue apart, and blending with a neutral background keeps the hue.
    "red": (225, 35, 35),
    "yellow": (225, 225, 35),
    "green": (35, 185, 35),
    "cyan": (35, 215, 215),
    "blue": (45, 45, 235),
    "magenta": (215, 35, 215),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (128, 128, 128),
    "black": (32, 32, 32),
    "white": (208, 208, 208),
}
NUMBER_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")
DIGITS: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6")
MOTIONS: tuple[str, ...] = ("moving on", "drifting on", "floating over")

_WITH_ARTICLE = ("zero", "a", *NUMBER_WORDS[2:])
# Reach of each shape from its centre, in units of its radius; a square's corner is farther out than a circle's rim.
_SQUARE_HALF_SIDE, _TRIANGLE_INRADIUS, _CROSS_LENGTH, _CROSS_WIDTH = 0.9, 0.6, 1.05, 0.38
REACH: NDArray[np.float64] = np.array([1.0, 0.9 * 2**0.5, 1.2, (1.05**2 + 0.38**2) ** 0.5])
UNIT_AREA = np.array([np.pi, 4 * 0.9**2, 3 * 3**0.5 * 0.6**2, 4 * 0.38 * (2 * 1.05 - 0.38)])
"""Area of each of SHAPES at radius 1."""

Split = Literal["train", "heldout", "all"]
P = TypeVar("P", bound="Prompt")


@dataclass(frozen=True, kw_only=True)
class Target:
    """`count` objects of one colour and shape."""

    colour: str
    shape: str
    count: int

    @property
    def singular(self) -> str:
        """One of the world's NOUNS."""
        return self.shape

    @property
    def noun(self) -> str:
        """The noun as it stands in a prompt: singular for one object."""
        return self.singular if self.count == 1 else plural(self.singular)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt's text, and what a video of it must show."""

    text: str
    targets: Sequence[Target]
    background: str


@dataclass(frozen=True)
class Scenes:
    """B scenes as arrays; positions (x, y) are in pixels, velocities in pixels per frame."""

    kind: NDArray[np.int64]  # [B, N], index into SHAPES, -1 where there is none
    colour: NDArray[np.int64]  # [B, N], index into COLOURS
    radius: NDArray[np.float64]  # [B, N]
    start: NDArray[np.float64]  # [B, N, 2]
    velocity: NDArray[np.float64]  # [B, N, 2]
    background: NDArray[np.int64]  # [B], index into BACKGROUNDS

    def centres(self, frames: int = FRAMES) -> NDArray[np.float64]:
        """Centres in every frame, [B, N, T, 2]."""
        return self.start[:, :, None] + self.velocity[:, :, None] * np.arange(frames)[:, None]


def plural(noun: str) -> str:
    """Of a world's noun."""
    return PLURALS.get(noun, f"{noun}s")


def split_words(text: str) -> list[str]:
    """The words and marks of a prompt, which are its tokens."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def words() -> list[str]:
    """Every word of the prompts."""
    said = [*NUMBER_WORDS[1:], *DIGITS[1:], "a", "and", "background"]
    said += [*COLOURS, *SHAPES, *PLURALS.values(), *BACKGROUNDS, *MOTIONS]
    return [word for phrase in said for word in split_words(phrase)]


def hashed_combinations(nouns: Sequence[str], max_count: int, *, each: int) -> frozenset[tuple[str, str, int]]:
    """(colour, noun, count) combinations, `each` for every count, chosen by a hash."""
    chosen: list[tuple[str, str, int]] = []
    for count in range(1, max_count + 1):
        combinations = [(colour, noun, count) for colour in COLOURS for noun in nouns]
        combinations.sort(key=lambda combination: hashlib.blake2b(repr(combination).encode()).digest())
        chosen += combinations[:each]
    return frozenset(chosen)


@cache
def heldout_combinations() -> frozenset[tuple[str, str, int]]:
    """The (colour, shape, count) combinations that training never shows: five for each count."""
    return hashed_combinations(SHAPES, MAX_COUNT, each=5)


def prompt_text(
    targets: Iterable[Target], background: str, motion: str = MOTIONS[0], *, numbers: Sequence[str] = NUMBER_WORDS
) -> str:
    """`three red circles and one blue square moving on a grey background`; `numbers` holds the word for each count."""
    phrases = [f"{numbers[target.count]} {target.colour} {target.noun}" for target in targets]
    return f"{' and '.join(phrases)} {motion} a {background} background"


@cache
def _choices(split: Split, count: int) -> tuple[tuple[str, str], ...]:
    held = heldout_combinations()
    return tuple(
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if split == "all" or ((colour, shape, count) in held) == (split == "heldout")
    )


def make_prompts(
    number: int,
    seed: int | np.random.Generator,
    *,
    nouns: Sequence[int] = (1, 2),
    counts: Sequence[int] = tuple(range(1, MAX_COUNT + 1)),
    split: Split = "all",
) -> list[Prompt]:
    """Draws prompts, in turn with each number of `nouns` and each of `counts`, so that a set is balanced over both.

    In a pair colours and shapes differ and there are at most MAX_OBJECTS objects. Every combination of a `heldout`
    prompt is held out, every combination of a `train` prompt is not.
    """
    rng = np.random.default_rng(seed)
    prompts = []
    for index in range(number):
        asked = [counts[(index // len(nouns)) % len(counts)]]
        if nouns[index % len(nouns)] == 2:
            fitting = [count for count in counts if count + asked[0] <= MAX_OBJECTS]
            asked.append(fitting[rng.integers(len(fitting))])
            if rng.random() < 0.5:
                asked.reverse()
        prompts.append(_draw_prompt(asked, split, rng))
    return prompts


def _draw_prompt(counts: Sequence[int], split: Split, rng: np.random.Generator) -> Prompt:
    while True:
        pairs = [_choices(split, count)[rng.integers(len(_choices(split, count)))] for count in counts]
        if all(len(set(values)) == len(counts) for values in zip(*pairs, strict=True)):
            break
    targets = tuple(
        Target(colour=colour, shape=shape, count=count) for (colour, shape), count in zip(pairs, counts, strict=True)
    )
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    motion = MOTIONS[rng.integers(len(MOTIONS))]
    numbers = (_WITH_ARTICLE, NUMBER_WORDS, DIGITS)[rng.choice(3, p=(0.45, 0.45, 0.1))]
    text = prompt_text(targets, background, motion, numbers=numbers)
    return Prompt(text=text, targets=targets, background=background)


def heldout_prompts(number: int, seed: int) -> list[Prompt]:
    """Prompts of combinations never seen in training, balanced over one and two nouns and over the counts 1 to 6."""
    return make_prompts(number, seed, split="heldout")


def miscount(prompts: Sequence[P], share: float, rng: np.random.Generator) -> list[P]:
    """The same texts, but of a `share` of their targets the video is to show one object more or fewer than they say.

    Captions of the web count as loosely, and models trained on them do: the embedded model is to need correction.
    """
    return loosely(prompts, share, rng, max_count=MAX_COUNT, max_objects=MAX_OBJECTS)


def loosely(
    prompts: Sequence[P], share: float, rng: np.random.Generator, *, max_count: int, max_objects: int
) -> list[P]:
    """`miscount` within a world's limits."""
    changed = []
    for prompt in prompts:
        targets = list(prompt.targets)
        for index, target in enumerate(targets):
            if rng.random() >= share:
                continue
            room = max_objects - sum(other.count for place, other in enumerate(targets) if place != index)
            near = [count for count in (target.count - 1, target.count + 1) if 1 <= count <= min(max_count, room)]
            if near:
                targets[index] = replace(target, count=near[rng.integers(len(near))])
        changed.append(replace(prompt, targets=tuple(targets)))
    return changed


def draw_scenes(prompts: Sequence[Prompt], rng: np.random.Generator, *, frames: int = FRAMES) -> Scenes:
    """One scene for each prompt: straight paths inside the frame that keep MIN_GAP between any two shapes."""
    places = len(prompts)
    kind = np.full((places, MAX_OBJECTS), -1, dtype=np.int64)
    colour = np.zeros_like(kind)
    for row, prompt in enumerate(prompts):
        kinds = [SHAPES.index(target.shape) for target in prompt.targets for _ in range(target.count)]
        kind[row, : len(kinds)] = kinds
        colours = [list(COLOURS).index(target.colour) for target in prompt.targets for _ in range(target.count)]
        colour[row, : len(kinds)] = colours
    background = np.array([list(BACKGROUNDS).index(prompt.background) for prompt in prompts])
    radius, start, velocity = (np.zeros(kind.shape), np.zeros((*kind.shape, 2)), np.zeros((*kind.shape, 2)))
    left = np.arange(places)
    while len(left):
        drawn = _draw_paths(kind[left], rng, frames)
        radius[left], start[left], velocity[left], placed = drawn
        left = left[~placed]
    return Scenes(kind, colour, radius, start, velocity, background)


def _draw_paths(
    kind: NDArray[np.int64], rng: np.random.Generator, frames: int, tries: int = 48
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Places the shapes one after another, each at the first of `tries` random paths that is free; the last array tells
    the scenes in which every shape found one."""
    scenes, places = kind.shape
    number = (kind >= 0).sum(1)
    # Fewer shapes may be larger, so that they fill the frame as a film would.
    low, high = np.where(number <= 4, 9.0, 7.5), np.select([number <= 4, number <= 6], [12.0, 10.0], 9.0)
    radius = rng.uniform(low[:, None], high[:, None], (scenes, places))
    reach = radius * REACH[np.maximum(kind, 0)]
    start, velocity = np.zeros((scenes, places, 2)), np.zeros((scenes, places, 2))
    placed = np.ones(scenes, dtype=bool)
    rows, last = np.arange(scenes), frames - 1
    for place in range(int(number.max())):
        margin = reach[:, place, None] + 2.0
        speed, angle = rng.uniform(0.0, MAX_SPEED, (scenes, tries)), rng.uniform(0.0, 2 * np.pi, (scenes, tries))
        v = speed[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        p = rng.uniform(margin[..., None], SIZE - margin[..., None], (scenes, tries, 2))
        end = p + v * last
        free = ((end >= margin[..., None]) & (end <= SIZE - margin[..., None])).all(-1)
        if place:
            dp, dv = p[:, :, None] - start[:, None, :place], v[:, :, None] - velocity[:, None, :place]
            nearest = np.clip(-(dp * dv).sum(-1) / np.maximum((dv * dv).sum(-1), 1e-9), 0, last)
            distance = np.linalg.norm(dp + dv * nearest[..., None], axis=-1)
            free &= (distance >= reach[:, None, :place] + reach[:, place, None, None] + MIN_GAP).all(-1)
        first = free.argmax(1)
        needed = place < number
        placed &= free.any(1) | ~needed
        start[:, place], velocity[:, place] = p[rows, first], v[rows, first]
    return radius, start, velocity, placed


def signed_distance(kind: int, x: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
    """Distance in pixels from the rim of one of SHAPES centred at the origin, negative inside; y points down."""
    match SHAPES[kind]:
        case "circle":
            return torch.sqrt(x * x + y * y) - radius
        case "square":
            return torch.maximum(x.abs(), y.abs()) - _SQUARE_HALF_SIDE * radius
        case "triangle":
            return torch.maximum(y, 3**0.5 / 2 * x.abs() - y / 2) - _TRIANGLE_INRADIUS * radius
        case _:
            long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
            return torch.maximum(long - _CROSS_LENGTH * radius, short - _CROSS_WIDTH * radius)


def render(scenes: Scenes, *, frames: Sequence[int] | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Antialiased video, [B, 3, T, H, W] in [-1, 1]; `frames` picks frame numbers (all by default)."""
    chosen = np.arange(FRAMES) if frames is None else np.asarray(frames)

    def put(array: NDArray[np.generic]) -> Tensor:
        return torch.as_tensor(np.asarray(array, dtype=np.float32), device=device)

    centres, radius = put(scenes.centres()[:, :, chosen]), put(scenes.radius)
    palette = put(np.array(list(COLOURS.values()))) / 127.5 - 1
    paper = (put(np.array(list(BACKGROUNDS.values()))) / 127.5 - 1)[torch.as_tensor(scenes.background, device=device)]
    video = paper[:, :, None, None, None].repeat(1, 1, len(chosen), SIZE, SIZE)
    pixel = torch.arange(SIZE, device=device, dtype=torch.float32) + 0.5
    for place in range(scenes.kind.shape[1]):
        for kind in range(len(SHAPES)):
            rows = np.flatnonzero(scenes.kind[:, place] == kind)
            if not len(rows):
                continue
            on = torch.as_tensor(rows, device=device)
            x = pixel - centres[on, place, :, 0, None, None]
            y = pixel[:, None] - centres[on, place, :, 1, None, None]
            cover = (0.5 - signed_distance(kind, x, y, radius[on, place, None, None, None])).clamp(0, 1)[:, None]
            ink = palette[torch.as_tensor(scenes.colour[rows, place], device=device)][:, :, None, None, None]
            video[on] = video[on].lerp(ink.expand(-1, -1, *cover.shape[2:]), cover)
    return video


def owners(drawn: Scenes, *, device: torch.device | str = "cpu") -> None:
    """Not asked for: the objects are apart, and a model tells them without being taught."""
    return


def to_uint8(video: Tensor) -> NDArray[np.uint8]:
    """[B, 3, T, H, W] in [-1, 1] to uint8 [B, T, H, W, 3]."""
    pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).cpu().numpy()


def clips(number: int, seed: int, *, split: Split = "train") -> tuple[list[Prompt], NDArray[np.uint8]]:
    """Prompts and true videos, uint8 [B, T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    prompts = make_prompts(number, rng, split=split)
    return prompts, to_uint8(render(draw_scenes(prompts, rng)))
