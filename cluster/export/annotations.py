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

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

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
        with np.load(io.BytesIO(store.read(row["layout_file"])), allow_pickle=False) as arrays:
            name = "refined" if "refined" in arrays else "labels"
            return annotations_of(row, arrays[name], refined=name == "refined")
    except (FileNotFoundError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
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
    for noun, own in enumerate(labels, 1):
        for instance in np.unique(own[own > 0]):
            mask = own == instance
            present = mask.any((1, 2))
            mask = mask[present]
            tops, bottoms = _ends(mask.any(2))
            lefts, rights = _ends(mask.any(1))
            areas, counts = mask.sum((1, 2)) * across * down, run_lengths(mask)
            for place, frame in enumerate(np.flatnonzero(present)):
                x, y = lefts[place] * across, tops[place] * down
                yield {
                    "image_id": int(frame),
                    "category_id": noun,
                    "instance_id": int(instance),
                    "bbox": [x, y, rights[place] * across - x, bottoms[place] * down - y],
                    "area": float(areas[place]),
                    "iscrowd": 0,
                    "segmentation": {"size": [H, W], "counts": counts[place]},
                }


def _ends(there: np.ndarray) -> tuple[list[int], list[int]]:
    """Of each row of [F, n] the first place that is true, and the one after the last."""
    return there.argmax(1).tolist(), (there.shape[1] - there[:, ::-1].argmax(1)).tolist()


def run_lengths(masks: np.ndarray) -> list[str]:
    """Each of [F, H, W] masks as COCO's compressed RLE: lengths of runs, column by column, that of zeros first."""
    flat = masks.transpose(0, 2, 1).reshape(len(masks), -1).astype(np.int8)
    frames, places = np.nonzero(np.diff(flat, axis=1, prepend=0, append=2))  # the end is a change, whatever it ends on
    cuts = np.searchsorted(frames, np.arange(1, len(masks)))
    return [_text(np.diff(own, prepend=0).tolist()) for own in np.split(places, cuts)]


def _text(runs: Sequence[int]) -> str:
    """COCO's text for runs (`rleToString` of its maskApi.c): from the third on the difference to the last but one, in
    groups of 5 bits, lowest first; a sixth bit says that more follow."""
    text = bytearray()
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(48 + group + 32 * more)
    return text.decode()
