"""Layouts as small pictures: one PNG per clip and layout, its latent frames side by side, nearest-neighbour.

Shapes: labels and regions [nouns, F, H, W] as in the layout files; a picture is [H·s, F·W·s] at s pixels per token.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from numina.refine import Region

# Blue, amber, violet, cyan, pink, lime: told apart with any colour vision, and none is the red or green of a change.
NOUN_COLOURS = ("#4c8dff", "#f2a93b", "#a571e6", "#21b8c9", "#e667a3", "#a9b83a")

_NONE, _REMOVED, _ADDED, _REFERENCE, _EDGE, _FIRST_NOUN = range(6)
_MARKS = {_REMOVED: "#ff5a4f", _ADDED: "#2fd06f", _REFERENCE: "#ffffff", _EDGE: "#10131a"}
_PICTURE_TOKENS = 128  # pixels that a frame's longer side is drawn with, about
_HATCH = 4  # pixels from one stripe to the next


@dataclass(frozen=True, kw_only=True)
class LayoutImage:
    """A picture of all latent frames of a layout."""

    uri: str  # data:image/png;base64,…
    frames: int
    width: int  # pixels of one frame
    height: int


def noun_colour(noun: int) -> str:
    """The colour of a prompt's noun number `noun`."""
    return NOUN_COLOURS[noun % len(NOUN_COLOURS)]


def layout_image(labels: np.ndarray, regions: np.ndarray | None = None) -> LayoutImage:
    """Draws instances in their noun's colour with an edge around each. With `regions`, what was removed is hatched red,
    what was added is outlined green, and what it was copied from is outlined white."""
    nouns, frames, height, width = labels.shape
    scale = int(np.clip(_PICTURE_TOKENS // max(height, width), 2, 32))
    picture = np.zeros((frames, height * scale, width * scale), np.uint8)
    for noun in range(nouns):
        instances = _enlarge(labels[noun], scale)
        picture[instances > 0] = _FIRST_NOUN + noun % len(NOUN_COLOURS)
        picture[_inner_edge(instances)] = _EDGE
    for noun in range(nouns if regions is not None else 0):
        assert regions is not None
        region, instances = _enlarge(regions[noun], scale), _enlarge(labels[noun], scale)
        edge = _inner_edge(instances)
        removed = region == Region.REMOVE
        picture[removed & _stripes(picture.shape)] = _REMOVED
        picture[_inner_edge(removed)] = _REMOVED
        picture[edge & np.isin(region, (Region.ADD_DISC, Region.ADD_COPY))] = _ADDED
        picture[edge & (region == Region.REFERENCE)] = _REFERENCE
    strip = picture.transpose(1, 0, 2).reshape(height * scale, frames * width * scale)
    return LayoutImage(uri=_data_uri(strip), frames=frames, width=width * scale, height=height * scale)


def _enlarge(tokens: np.ndarray, scale: int) -> np.ndarray:
    """[F, H, W] to [F, H·s, W·s], every token a square of equal pixels."""
    return np.repeat(np.repeat(tokens, scale, axis=1), scale, axis=2)


def _inner_edge(values: np.ndarray) -> np.ndarray:
    """Pixels of an instance [F, H, W] that touch another value, or the frame's border."""
    padded = np.pad(values.astype(np.int32), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    centre = padded[:, 1:-1, 1:-1]
    neighbours = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    edge: np.ndarray = np.any([other != centre for other in neighbours], axis=0) & (centre > 0)
    return edge


def _stripes(shape: tuple[int, ...]) -> np.ndarray:
    _, height, width = shape
    diagonal = np.add.outer(np.arange(height), np.arange(width)) % _HATCH < _HATCH // 2
    return np.broadcast_to(diagonal, shape)


def _data_uri(picture: np.ndarray) -> str:
    image = Image.fromarray(picture, mode="P")
    colours = ["#000000", *_MARKS.values(), *NOUN_COLOURS]
    image.putpalette([int(colour[place : place + 2], 16) for colour in colours for place in (1, 3, 5)])
    sink = io.BytesIO()
    image.save(sink, "PNG", transparency=_NONE, optimize=True)
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()
