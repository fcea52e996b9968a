"""An exact counter for videos of both worlds: colour classes, connected components, and a test of each one's shape.

Of `scenes` it counts the creatures' heads, which are shapes of the first world; bodies and backgrounds have no colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.testbed import scenes
from pipelines.testbed.scenes import DIGITS, KINDS, NUMBER_WORDS
from pipelines.testbed.world import COLOURS, SHAPES, UNIT_AREA, Target, plural, signed_distance, split_words

MIN_AREA = 40
"""Pixels; the smallest shape drawn has 124, so anything below is a speck or a fringe."""
MIN_CHROMA = 0.33
"""Largest minus smallest channel, of 1: about half a shape's, so that a blurred rim is cut in its middle."""
MIN_OVERLAP = 0.62
"""Intersection over union with the best template below which a component is no shape at all."""

_COLOUR_NAMES = tuple(COLOURS)
_SINGULAR = {form: noun for noun in (*SHAPES, *KINDS) for form in (noun, plural(noun))}
_COUNTS = {word: number for words in (NUMBER_WORDS, DIGITS) for number, word in enumerate(words)} | {"a": 1, "an": 1}


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object in one frame; pixels, x to the right and y down."""

    colour: str
    shape: str | None  # None: a coloured blob that is no shape of the world
    centroid: tuple[float, float]  # x, y
    box: tuple[int, int, int, int]  # x0, y0, x1, y1; the last two are outside
    area: int
    overlap: float  # intersection over union with the shape's template


def mentions(prompt: str) -> list[tuple[int, Target]]:
    """The targets of a prompt of either world, in order, each after the place of its number among `split_words`."""
    words = split_words(prompt)
    return [
        (place, _target(_COUNTS[number], colour, _SINGULAR[noun]))
        for place, (number, colour, noun) in enumerate(zip(words, words[1:], words[2:], strict=False))
        if number in _COUNTS and colour in COLOURS and noun in _SINGULAR
    ]


def _target(count: int, colour: str, noun: str) -> Target:
    if noun in KINDS:
        return scenes.target(colour, noun, count)
    return Target(colour=colour, shape=noun, count=count)


def parse(prompt: str) -> list[Target]:
    """The targets of a prompt, in order: `a red circle and two blue squares …` gives two."""
    return [target for _, target in mentions(prompt)]


def phrases(prompt: str) -> list[tuple[str, str]]:
    """The (colour, shape) pairs of a prompt, for `count`."""
    return [(target.colour, target.shape) for target in parse(prompt)]


def colour_classes(frame: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Index into COLOURS of every pixel of [H, W, 3], -1 where there is no colour."""
    rgb = frame.astype(np.float32) / 255
    top, chroma = rgb.max(-1), np.ptp(rgb, axis=-1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    scale = np.maximum(chroma, 1e-6)
    hue = np.select(
        [top == red, top == green], [(green - blue) / scale, 2 + (blue - red) / scale], 4 + (red - green) / scale
    )
    # The colours are 60 degrees apart and begin with red at 0, so the class is the nearest sixth.
    return np.where(chroma >= MIN_CHROMA, np.round(hue) % 6, -1).astype(np.int8)


def template_overlaps(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of a mask [h, w] with each of SHAPES, drawn at its centroid and with its area."""
    rows, columns = np.nonzero(mask)
    area = len(rows)
    side = max(mask.shape) // 2 + 4
    grid = torch.arange(-side, side + 1, dtype=torch.float32)
    y0, x0 = rows.mean(), columns.mean()
    inside = np.zeros((len(grid), len(grid)), dtype=bool)
    r, c = rows - round(y0) + side, columns - round(x0) + side
    fits = (r >= 0) & (r < len(grid)) & (c >= 0) & (c < len(grid))
    inside[r[fits], c[fits]] = True
    x, y = grid - (x0 - round(x0)), grid[:, None] - (y0 - round(y0))
    overlaps = []
    for kind in range(len(SHAPES)):
        template = (signed_distance(kind, x, y, float((area / UNIT_AREA[kind]) ** 0.5)) <= 0).numpy()
        overlaps.append((inside & template).sum() / (area + template.sum() - (inside & template).sum()))
    return np.array(overlaps)


def detect(frame: NDArray[np.uint8]) -> list[Detection]:
    """Everything coloured in one frame, uint8 [H, W, 3]."""
    classes = colour_classes(frame)
    detections = []
    for index in np.unique(classes[classes >= 0]):
        labels, _ = ndimage.label(classes == index)
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            mask = labels[window] == label
            area = int(mask.sum())
            if area < MIN_AREA:
                continue
            overlaps = template_overlaps(ndimage.binary_fill_holes(mask))
            best = int(overlaps.argmax())
            y, x = ndimage.center_of_mass(mask)
            vertical, horizontal = window
            detections.append(
                Detection(
                    colour=_COLOUR_NAMES[index],
                    shape=SHAPES[best] if overlaps[best] >= MIN_OVERLAP else None,
                    centroid=(horizontal.start + x, vertical.start + y),
                    box=(horizontal.start, vertical.start, horizontal.stop, vertical.stop),
                    area=area,
                    overlap=float(overlaps[best]),
                )
            )
    return detections


def count(video: NDArray[np.uint8], phrases: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    """How many objects of each (colour, shape) every frame of uint8 [T, H, W, 3] shows: [T, nouns]."""
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(
            f"video is {video.dtype} {video.shape}, but must be uint8 [frames, height, width, 3]: convert it"
        )
    counts = np.zeros((len(video), len(phrases)), dtype=np.int64)
    for index, frame in enumerate(video):
        seen = [(detection.colour, detection.shape) for detection in detect(frame)]
        counts[index] = [seen.count(phrase) for phrase in phrases]
    return counts
