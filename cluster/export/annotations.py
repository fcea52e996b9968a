"""A clip's labels in COCO's terms: from its layout to a box and a mask per noun, instance and latent frame.

    images        a latent frame each: which of the video's frames it covers
    categories    a noun each: its asked count, and what the judge counted in each frame
    annotations   an instance in a latent frame each: `bbox` and `area` in pixels of the video, `segmentation` on the
                  layout's grid of tokens

The labels are coarse. They say where guidance put each instance, to a token (16 pixels for Wan), not what a detector
found in the video. `segmentation` is COCO's compressed RLE with `size` [H, W] of the grid: `pycocotools.mask.decode`
reads it, and each of its cells stands for the same share of the video's height and width.

Legend: F latent frames, H W the grid of tokens.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.dataset.layouts import arrays_of
from cluster.dataset.store import Store
from cluster.rows import DETECTED

Row = Mapping[str, Any]

COUNTS = DETECTED.value_type.field("frames").type
IMAGE = pa.struct([(name, pa.int32()) for name in ("id", "width", "height", "first_frame", "last_frame")])
CATEGORY = pa.struct([("id", pa.int32()), ("name", pa.string()), ("asked", pa.int32()), ("detected", COUNTS)])
MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
ANNOTATION = pa.struct(
    [
        *((name, pa.int32()) for name in ("id", "image_id", "category_id", "instance_id")),
        ("bbox", pa.list_(pa.float32())),
        ("area", pa.float32()),
        ("iscrowd", pa.int32()),
        ("segmentation", MASK),
    ]
)
ANNOTATIONS = pa.struct(
    [
        ("layout", pa.string()),  # refined, or identified where the clip was not guided
        ("images", pa.list_(IMAGE)),
        ("categories", pa.list_(CATEGORY)),
        ("annotations", pa.list_(ANNOTATION)),
    ]
)
"""The type of what `annotations_of` gives."""


def read_annotations(store: Store, row: Row) -> dict[str, Any] | None:
    """The annotations of a row; None if it has no layout or no size, or the layout's file is gone or torn."""
    if None in (row["layout_file"], row["width"], row["height"], row["num_frames"]):
        return None
    try:
        arrays = arrays_of(store.read(row["layout_file"])) or {}
        name = "refined" if "refined" in arrays else "labels"
        return annotations_of(row, arrays[name], refined=name == "refined")
    except (FileNotFoundError, ValueError, KeyError):
        return None


def annotations_of(row: Row, labels: np.ndarray, *, refined: bool) -> dict[str, Any]:
    """What the module's docstring says, of a layout's labels [nouns, F, H, W]; of type ANNOTATIONS."""
    found = {own["noun"]: own["frames"] for own in row.get("detected") or ()}
    size = {"width": row["width"], "height": row["height"]}
    frames = covered(labels.shape[1], row["num_frames"])
    return {
        "layout": "refined" if refined else "identified",
        "images": [
            {"id": number, **size, "first_frame": first, "last_frame": last}
            for number, (first, last) in enumerate(frames)
        ],
        "categories": [
            {"id": number, "name": own["noun"], "asked": own["count"], "detected": found.get(own["noun"])}
            for number, own in enumerate(row["targets"], 1)
        ],
        "annotations": [{"id": number, **own} for number, own in enumerate(_instances(labels, **size), 1)],
    }


def covered(latent_frames: int, frames: int) -> list[tuple[int, int]]:
    """The first and the last of the video's frames that each latent frame covers.

    A causal VAE encodes the first frame alone and then as many at a time as fit, 4 for Wan and CogVideoX. The only
    latent frame covers all.
    """
    if latent_frames == 1:
        return [(0, frames - 1)]
    ends = [1 + number * (frames - 1) // (latent_frames - 1) for number in range(latent_frames)]
    return [(start, max(start, end - 1)) for start, end in zip([0, *ends], ends, strict=False)]


def _instances(labels: np.ndarray, width: int, height: int) -> Iterator[dict[str, Any]]:
    """Annotations without ids: by noun, then instance, then latent frame."""
    _, _, H, W = labels.shape
    across, down = width / W, height / H  # pixels of a token
    noun, frame, y, x = np.nonzero(labels > 0)
    instance, place = labels[noun, frame, y, x], x * H + y  # COCO's masks go column by column
    order = np.lexsort((place, frame, instance, noun))
    noun, frame, y, x, instance, place = (own[order] for own in (noun, frame, y, x, instance, place))
    begins = np.flatnonzero(np.logical_or.reduce([np.diff(own, prepend=-1) != 0 for own in (noun, instance, frame)]))
    if not len(begins):
        return
    lefts, tops = (np.minimum.reduceat(own, begins).tolist() for own in (x, y))
    rights, bottoms = ((np.maximum.reduceat(own, begins) + 1).tolist() for own in (x, y))
    sizes = np.diff(begins, append=len(place)).tolist()
    runs = run_lengths(place, begins, H * W)
    named = zip(*(own[begins].tolist() for own in (noun, instance, frame)), strict=True)
    for number, (of, own, at) in enumerate(named):
        left, top = lefts[number] * across, tops[number] * down
        yield {
            "image_id": at,
            "category_id": of + 1,
            "instance_id": own,
            "bbox": [left, top, rights[number] * across - left, bottoms[number] * down - top],
            "area": sizes[number] * across * down,
            "iscrowd": 0,
            "segmentation": {"size": [H, W], "counts": runs[number]},
        }


def run_lengths(places: np.ndarray, begins: np.ndarray, size: int) -> list[str]:
    """Masks of `size` places each as COCO's compressed RLE: lengths of runs, that of zeros first. `places` are those
    that a mask covers, ascending, one mask after the other; each begins where `begins` says."""
    starts = np.union1d(begins, np.flatnonzero(np.diff(places, prepend=-2) != 1))  # of runs of ones
    ends = np.append(starts[1:], len(places)) - 1
    ones = list(zip(places[starts].tolist(), (places[ends] + 1).tolist(), strict=True))
    firsts = [*np.searchsorted(starts, begins).tolist(), len(ones)]
    return [_text(_runs(ones[first:last], size)) for first, last in pairwise(firsts)]


def _runs(ones: Sequence[tuple[int, int]], size: int) -> Iterator[int]:
    end = 0
    for start, stop in ones:
        yield start - end
        yield stop - start
        end = stop
    if end < size:
        yield size - end


def _text(lengths: Iterable[int]) -> str:
    """COCO's text for runs (`rleToString` of its maskApi.c): from the third on the difference to the last but one, in
    groups of 5 bits, lowest first; a sixth bit says that more follow."""
    text, runs = bytearray(), list(lengths)
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(48 + group + 32 * more)
    return text.decode()
