"""Annotations: what `pycocotools` reads is the layout, its boxes are in pixels of the video."""

import json

import numpy as np
import pyarrow as pa
import pytest

from cluster.export.annotations import ANNOTATIONS, annotations_of, covered

TARGETS = [{"noun": "cats", "count": 2}, {"noun": "dogs", "count": 1}]


def test_masks_are_what_coco_reads() -> None:
    """For masks of any size and share of ones the text is COCO's own, and decodes to the mask."""
    coco = pytest.importorskip("pycocotools.mask")
    chance = np.random.default_rng(0)
    for _ in range(100):
        height, width = (int(size) for size in chance.integers(1, 60, 2))
        masks = chance.random((3, height, width)) < chance.choice([0, 0.02, 0.5, 0.98, 1])
        row = {"targets": TARGETS[:1], "width": 16 * width, "height": 16 * height, "num_frames": 9}
        made = annotations_of(row, masks[None].astype(np.int16), refined=True)["annotations"]
        assert [own["image_id"] for own in made] == np.flatnonzero(masks.any((1, 2))).tolist()
        for own in made:
            mask, kept = masks[own["image_id"]], own["segmentation"]
            coded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert kept == {"size": [height, width], "counts": coded["counts"].decode()}
            assert (coco.decode(kept) == mask).all()
            assert own["bbox"] == [16 * side for side in coco.toBbox(coded).tolist()]
            assert own["area"] == 256 * mask.sum()


def test_boxes_are_in_pixels_and_masks_on_the_grid() -> None:
    """A token of a 30 × 52 grid is 16 pixels of 480 × 832; an instance has a box in each frame in which it is seen."""
    coco = pytest.importorskip("pycocotools.mask")
    labels = np.zeros((2, 3, 30, 52), np.int16)
    labels[0, :, 2:5, 10:14] = 1
    labels[0, 1:, 20, 0] = 2
    labels[1, 2, 29, 51] = 7
    row = {"targets": TARGETS, "width": 832, "height": 480, "num_frames": 9}
    row |= {"detected": [{"noun": "cats", "frames": [2] * 9}]}
    made = annotations_of(row, labels, refined=True)
    assert made["layout"] == "refined"
    assert made["categories"] == [
        {"id": 1, "name": "cats", "asked": 2, "detected": [2] * 9},
        {"id": 2, "name": "dogs", "asked": 1, "detected": None},
    ]
    assert [(own["first_frame"], own["last_frame"]) for own in made["images"]] == [(0, 0), (1, 4), (5, 8)]
    found = [(own["category_id"], own["instance_id"], own["image_id"], own["bbox"]) for own in made["annotations"]]
    assert found == [
        *((1, 1, frame, [160, 32, 64, 48]) for frame in range(3)),
        *((1, 2, frame, [0, 320, 16, 16]) for frame in (1, 2)),
        (2, 7, 2, [816, 464, 16, 16]),
    ]
    for own in made["annotations"]:
        mask = labels[own["category_id"] - 1, own["image_id"]] == own["instance_id"]
        assert (coco.decode(own["segmentation"]) == mask).all()
        assert own["area"] == mask.sum() * 256
    assert json.loads(json.dumps(made)) == made
    assert pa.array([made], ANNOTATIONS).to_pylist() == [made]


@pytest.mark.parametrize(
    ("latent", "frames", "expected"),
    [
        (1, 5, [(0, 4)]),
        (1, 1, [(0, 0)]),
        (3, 5, [(0, 0), (1, 2), (3, 4)]),
        (21, 81, [(0, 0), *((4 * n - 3, 4 * n) for n in range(1, 21))]),
        (13, 49, [(0, 0), *((4 * n - 3, 4 * n) for n in range(1, 13))]),
    ],
)
def test_latent_frames_cover_the_video(latent: int, frames: int, expected: list[tuple[int, int]]) -> None:
    """The first one a frame, each other as many as a causal VAE takes together."""
    assert covered(latent, frames) == expected


def test_any_length_is_covered() -> None:
    """Also where the frames can't be shared out evenly: no frame is left out, none beyond the last is named."""
    for frames in range(2, 40):
        for latent in range(2, frames + 1):
            found = covered(latent, frames)
            assert [own[0] for own in found] == [0, *(last + 1 for _, last in found[:-1])]
            assert found[-1][1] == frames - 1
