"""The harder world: creatures that touch, cross and hide one another before a moving camera, and prompts for them.

Truth is exact by construction. Every creature wears a mark that the counter reads: its head, one of the first world's
shapes in one of its colours. Heads are painted after all bodies, so none is ever hidden; in every frame they are whole,
inside the picture and MIN_GAP apart, whatever the camera does (it moves all alike). Bodies and backgrounds stay below
`creatures.BODY_CHROMA`, where the counter sees no colour, so they may do what they like: overlap, cross, leave the
picture, look like one thing. A noun tells its body and its head's shape (two kinds share each), its colour the head's
colour and the body's hue; nouns of a prompt share one of colour and head's shape or none, never both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.testbed import world
from pipelines.testbed.creatures import BODIES, KINDS, SIZE, Ground, Scenes, head_reach, masks, render, tail
from pipelines.testbed.world import COLOURS, FRAMES, MIN_GAP, Split, to_uint8

NOUNS: tuple[str, ...] = KINDS
MAX_COUNT = 8
MAX_OBJECTS = 10
MAX_SPEED = 1.2
"""Pixels per frame, of a creature."""
MAX_PAN = 1.0
"""Pixels per frame, of the camera."""
SHAKE = 2.0
"""Pixels that a camera in the hand moves to either side."""
TEXT_TOKENS = 32
"""Text tokens of a prompt, the end mark included."""
TRANSFORMER = (6, 3)
"""Blocks and heads of 64 channels, of the model that is trained on this world."""
BATCH = 48
"""Clips in a step of the transformer's training."""
REFRESH_EVERY = 48
"""Such steps after which some of the clips are replaced by new ones."""
CROWDED: tuple[int, ...] = (1, 2, 3, 3)
"""Numbers of nouns in the prompts that autoencoder and text encoder are trained on."""
CELL = 8
"""Pixels of a token's side."""
SHOWN = 24
"""Of a token's 64 pixels, which a creature must have for the token to be its own."""
MIDDLES = (0, 2, 6, 10, 14)
"""The middle frame of each latent frame."""

NUMBER_WORDS: tuple[str, ...] = (*world.NUMBER_WORDS, "seven", "eight")
DIGITS: tuple[str, ...] = tuple(str(number) for number in range(MAX_COUNT + 1))
_WITH_ARTICLE = ("zero", "a", *NUMBER_WORDS[2:])

# Places, times and most sentences are of the kind that `numina prompts make` writes.
PLACES: dict[str, Ground] = {
    "in a large studio": Ground((190, 190, 190), 0.1, (0.0, 0.0), 0.0),
    "on a quiet beach": Ground((206, 196, 180), 0.3, (0.06, 0.3), 0.06),
    "in a snowy field": Ground((222, 226, 232), -0.15, (0.1, 0.1), 0.05),
    "on a wooden stage": Ground((168, 156, 142), 0.2, (0.35, 0.0), 0.12),
    "in a sandy desert": Ground((200, 188, 170), -0.35, (0.15, 0.15), 0.08),
    "on a village street": Ground((150, 150, 156), 0.15, (0.4, 0.4), 0.14),
    "in a green valley": Ground((156, 174, 150), 0.4, (0.0, 0.12), 0.08),
    "on a stone terrace": Ground((176, 172, 168), 0.0, (0.25, 0.25), 0.12),
}
TIMES: dict[str, float] = {"at noon": 1.0, "at dusk": 0.72, "by moonlight": 0.46}
"""How bright the ground is."""
SENTENCES: dict[str, str] = {
    "A video of {targets} {place} {time}.": "still",
    "A wide shot of {targets} {place} {time}.": "still",
    "Handheld footage of {targets} {place} {time}.": "shake",
    "{targets} {place} {time}, filmed with a steady camera.": "still",
    "{targets} moving gently {place} {time}.": "pan",
    "The camera glides past {targets} {place} {time}.": "pan",
    "A slow pan across {targets} {place} {time}.": "pan",
    "Seen from above, {targets} {place} {time}.": "still",
    "{targets} resting {place} {time}.": "pan",
    "{targets} drifting {place} {time}": "shake",
}
"""Every form of a sentence, and what the camera does in it."""


@dataclass(frozen=True, kw_only=True)
class Target(world.Target):
    """`count` creatures of one colour and kind; `shape` is their heads'."""

    kind: str

    @property
    def singular(self) -> str:
        return self.kind


@dataclass(frozen=True, kw_only=True)
class Prompt(world.Prompt):
    """A prompt's text, and what a video of it must show."""

    targets: tuple[Target, ...]
    time: str
    camera: str  # still, pan or shake


def target(colour: str, kind: str, count: int) -> Target:
    """`count` creatures of this colour and kind."""
    return Target(colour=colour, kind=kind, shape=BODIES[kind].head, count=count)


def words() -> list[str]:
    """Every word and mark of the prompts."""
    said = [*NUMBER_WORDS[1:], *DIGITS[1:], "a", "and", ",", ".", *COLOURS, *KINDS, *map(world.plural, KINDS)]
    said += [*PLACES, *TIMES, *(form.format(targets="", place="", time="") for form in SENTENCES)]
    return [word for phrase in said for word in world.split_words(phrase)]


@cache
def heldout_combinations() -> frozenset[tuple[str, str, int]]:
    """The (colour, kind, count) combinations that training never shows: ten for each count, chosen by a hash."""
    return world.hashed_combinations(KINDS, MAX_COUNT, each=10)


@cache
def _choices(split: Split, count: int) -> tuple[tuple[str, str], ...]:
    held = heldout_combinations()
    return tuple(
        (colour, kind)
        for colour in COLOURS
        for kind in KINDS
        if split == "all" or ((colour, kind, count) in held) == (split == "heldout")
    )


def prompt_text(
    targets: Iterable[Target],
    place: str,
    time: str,
    sentence: str = next(iter(SENTENCES)),
    *,
    numbers: Sequence[str] = NUMBER_WORDS,
) -> str:
    """`A video of three red snails, a blue whale and two red moths on a quiet beach at dusk.`"""
    phrases = [f"{numbers[target.count]} {target.colour} {target.noun}" for target in targets]
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    text = sentence.format(targets=listed, place=place, time=time)
    return text[:1].upper() + text[1:]


def make_prompts(
    number: int,
    seed: int | np.random.Generator,
    *,
    nouns: Sequence[int] = (1, 2, 3),
    counts: Sequence[int] = tuple(range(1, MAX_COUNT + 1)),
    split: Split = "all",
) -> list[Prompt]:
    """Draws prompts, in turn with each number of `nouns` and each of `counts`, so that a set is balanced over both.

    Kinds of a prompt differ, at least every other prompt of several nouns has two that share colour or head's shape,
    none has two that share both, and there are at most MAX_OBJECTS creatures. Every combination of a `heldout` prompt
    is held out, every combination of a `train` prompt is not.
    """
    rng = np.random.default_rng(seed)
    prompts = []
    for index in range(number):
        asked = [counts[(index // len(nouns)) % len(counts)]]
        more = nouns[index % len(nouns)] - 1
        for left in range(more, 0, -1):
            room = MAX_OBJECTS - sum(asked) - (left - 1) * min(counts)
            fitting = [count for count in counts if count <= room]
            asked.append(fitting[rng.integers(len(fitting))])
        prompts.append(_draw_prompt([asked[place] for place in rng.permutation(len(asked))], split, rng))
    return prompts


def _draw_prompt(counts: Sequence[int], split: Split, rng: np.random.Generator) -> Prompt:
    bound = len(counts) > 1 and rng.random() < 0.5
    for attempt in range(10_000):
        chosen = [(_choices(split, count), count) for count in counts]
        targets = tuple(target(*pairs[rng.integers(len(pairs))], count) for pairs, count in chosen)
        marks = {(one.colour, one.shape) for one in targets}
        if not len(counts) == len(marks) == len({one.kind for one in targets}):
            continue
        shared = min(len({colour for colour, _ in marks}), len({shape for _, shape in marks})) < len(counts)
        if shared or not bound or attempt >= 100:
            break
    else:
        raise AssertionError(f"no {split} targets for counts {counts}")
    place, time = (list(names)[rng.integers(len(names))] for names in (PLACES, TIMES))
    sentence = list(SENTENCES)[rng.integers(len(SENTENCES))]
    numbers = (_WITH_ARTICLE, NUMBER_WORDS, DIGITS)[rng.choice(3, p=(0.45, 0.45, 0.1))]
    text = prompt_text(targets, place, time, sentence, numbers=numbers)
    return Prompt(text=text, targets=targets, background=place, time=time, camera=SENTENCES[sentence])


def heldout_prompts(number: int, seed: int) -> list[Prompt]:
    """Prompts of combinations never seen in training, balanced over one to three nouns and over the counts 1 to 8."""
    return make_prompts(number, seed, split="heldout")


def miscount(prompts: Sequence[Prompt], share: float, rng: np.random.Generator) -> list[Prompt]:
    """The same texts, but of a `share` of their targets the video is to show one creature more or fewer than they
    say."""
    return world.loosely(prompts, share, rng, max_count=MAX_COUNT, max_objects=MAX_OBJECTS)


def draw_scenes(prompts: Sequence[Prompt], rng: np.random.Generator, *, frames: int = FRAMES) -> Scenes:
    """One scene for each prompt: straight paths below a moving camera, heads MIN_GAP apart and inside in every frame.

    In many scenes the creatures crowd in a part of the picture, so that bodies meet; which lies in front is drawn too.
    """
    kind = np.full((len(prompts), MAX_OBJECTS), -1, dtype=np.int64)
    colour = np.zeros_like(kind)
    for row, prompt in enumerate(prompts):
        drawn = [
            (KINDS.index(one.kind), list(COLOURS).index(one.colour)) for one in prompt.targets for _ in range(one.count)
        ]
        order = rng.permutation(len(drawn))
        kind[row, : len(drawn)], colour[row, : len(drawn)] = np.array(drawn)[order].T
    scale = rng.uniform(0.92, 1.06, kind.shape)
    angle, start, velocity = np.zeros(kind.shape), np.zeros((*kind.shape, 2)), np.zeros((*kind.shape, 2))
    camera = _draw_cameras([prompt.camera for prompt in prompts], rng, frames)
    spread = rng.uniform(0.45, 1.0, len(prompts))
    left = np.arange(len(prompts))
    while len(left):
        drawn_paths = _draw_paths(kind[left], scale[left], camera[left], spread[left], rng)
        angle[left], start[left], velocity[left], placed = drawn_paths
        spread[left] = np.minimum(spread[left] + 0.05, 1.0)
        left = left[~placed]
    return Scenes(kind, colour, scale, angle, start, velocity, camera, _draw_grounds(prompts, rng))


def _draw_cameras(moves: Sequence[str], rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """How far each camera has moved in every frame, [B, T, 2]."""
    time = np.arange(frames)[:, None]
    number = len(moves)
    speed, angle = rng.uniform(0.3, 1.0, number) * MAX_PAN, rng.uniform(0, 2 * np.pi, number)
    pans = (speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1))[:, None] * time
    rate, phase = rng.uniform(0.3, 0.8, (number, 1, 2)), rng.uniform(0, 2 * np.pi, (number, 1, 2))
    shakes = SHAKE * np.sin(rate * time + phase)
    kinds = np.array(moves)[:, None, None]
    return np.where(kinds == "pan", pans, np.where(kinds == "shake", shakes, 0.0))


def _draw_grounds(prompts: Sequence[Prompt], rng: np.random.Generator) -> NDArray[np.float64]:
    rows = []
    for prompt in prompts:
        ground = PLACES[prompt.background]
        shaded = TIMES[prompt.time] * np.array(ground.colour)
        rows.append([*shaded, ground.slope, *ground.waves, ground.depth, rng.uniform(0, 2 * np.pi)])
    return np.array(rows)


def _draw_paths(
    kind: NDArray[np.int64],
    scale: NDArray[np.float64],
    camera: NDArray[np.float64],
    spread: NDArray[np.float64],
    rng: np.random.Generator,
    tries: int = 48,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Places the creatures one after another, each at the first of `tries` random paths that is free.

    Returns angle [B, N], start and velocity [B, N, 2], and the scenes in which every creature found a path. Heads stay
    inside the picture with a margin, the other ends of bodies inside it.
    """
    scenes, places = kind.shape
    number, last = (kind >= 0).sum(1), camera.shape[1] - 1
    reach = head_reach(kind, scale)
    heading, start, velocity = np.zeros(kind.shape), np.zeros((scenes, places, 2)), np.zeros((scenes, places, 2))
    placed, rows = np.ones(scenes, dtype=bool), np.arange(scenes)
    crowd = rng.uniform(0, SIZE, (scenes, 1, 2))
    steps = np.arange(last + 1)[:, None]
    for place in range(int(number.max())):
        angle = rng.uniform(0, 2 * np.pi, (scenes, tries))
        speed, course = rng.uniform(0, MAX_SPEED, angle.shape), angle + rng.normal(0, 0.3, angle.shape)
        v = speed[..., None] * np.stack([np.cos(course), np.sin(course)], -1)
        p = crowd + spread[:, None, None] * (rng.uniform(0, SIZE, (scenes, tries, 2)) - crowd)
        # The middle of the path is what is drawn, so that fast ones stay in the crowd too.
        p = p - v * last / 2 + camera[:, None, last // 2]
        seen = p[:, :, None] + v[:, :, None] * steps - camera[:, None]
        back = seen + tail(kind[:, place, None], scale[:, place, None], angle)[:, :, None]
        margin = (reach[:, place] + 2.0)[:, None, None, None]
        inside = (seen >= margin) & (seen <= SIZE - margin) & (back >= 0) & (back <= SIZE)
        free = inside.all((-1, -2))
        if place:
            dp, dv = p[:, :, None] - start[:, None, :place], v[:, :, None] - velocity[:, None, :place]
            nearest = np.clip(-(dp * dv).sum(-1) / np.maximum((dv * dv).sum(-1), 1e-9), 0, last)
            distance = np.linalg.norm(dp + dv * nearest[..., None], axis=-1)
            free &= (distance >= reach[:, None, :place] + reach[:, place, None, None] + MIN_GAP).all(-1)
        first = free.argmax(1)
        placed &= free.any(1) | (place >= number)
        heading[:, place], start[:, place], velocity[:, place] = angle[rows, first], p[rows, first], v[rows, first]
    return heading, start, velocity, placed


def clips(number: int, seed: int, *, split: Split = "train") -> tuple[list[Prompt], NDArray[np.uint8]]:
    """Prompts and true videos, uint8 [B, T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    prompts = make_prompts(number, rng, split=split)
    return prompts, to_uint8(render(draw_scenes(prompts, rng)))


def owners(drawn: Scenes, *, device: torch.device | str = "cpu") -> Tensor:
    """Whose each token is, int8 [B, 5, 24, 24]: the place of the creature that most of its pixels show, else -1."""
    pixels = masks(drawn, frames=MIDDLES, device=device)
    cells = pixels.unflatten(3, (-1, CELL)).unflatten(2, (-1, CELL)).transpose(3, 4).flatten(4)
    shown = torch.stack([(cells == place).sum(-1) for place in range(drawn.kind.shape[1])], -1)
    most, place = shown.max(-1)
    return torch.where(most >= SHOWN, place, -1).to(torch.int8)
