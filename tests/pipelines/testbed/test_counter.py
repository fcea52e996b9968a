"""The counter is exact on the world, and refuses what only looks like an object of it."""

import numpy as np
import pytest
from scipy import ndimage

from pipelines.testbed import counter, world

FEW = [0, 8, 16]


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(11)
    prompts = world.make_prompts(200, rng)
    return prompts, world.to_uint8(world.render(world.draw_scenes(prompts, rng), frames=FEW))


def _right(prompts, videos):
    right = [
        counter.count(video, counter.phrases(prompt.text)) == [target.count for target in prompt.targets]
        for prompt, video in zip(prompts, videos, strict=True)
    ]
    return np.concatenate([clip.ravel() for clip in right]).mean()


def test_at_least_99_percent_right_on_true_frames(truth):
    assert _right(*truth) >= 0.99


def test_at_least_97_percent_right_on_blurred_and_noisy_frames(truth):
    prompts, videos = truth
    rng = np.random.default_rng(0)
    soft = ndimage.gaussian_filter(videos[:60].astype(np.float32), (0, 0, 1.0, 1.0, 0))
    soft = (soft + rng.normal(0, 8, soft.shape)).clip(0, 255).astype(np.uint8)
    assert _right(prompts[:60], soft) >= 0.97


def test_another_shape_or_colour_does_not_count(truth):
    for prompt, video in zip(*truth, strict=True):
        asked = {(target.colour, target.shape) for target in prompt.targets}
        others = [(colour, shape) for colour in world.COLOURS for shape in world.SHAPES if (colour, shape) not in asked]
        assert counter.count(video[:1], others).sum() == 0


def test_specks_and_merged_objects_are_no_objects():
    frame = np.full((128, 128, 3), 128, np.uint8)
    frame[10:15, 10:15] = world.COLOURS["red"]
    assert counter.detect(frame) == []
    frame[60:70, 20:110] = world.COLOURS["red"]
    (bar,) = counter.detect(frame)
    assert bar.shape is None
    assert bar.colour == "red"
    assert counter.count(frame[None], [("red", shape) for shape in world.SHAPES]).sum() == 0


def test_a_detection_says_where():
    frame = np.full((128, 128, 3), 32, np.uint8)
    frame[40:60, 70:90] = world.COLOURS["cyan"]
    (square,) = counter.detect(frame)
    assert (square.colour, square.shape, square.area) == ("cyan", "square", 400)
    assert square.box == (70, 40, 90, 60)
    assert square.centroid == (79.5, 49.5)


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        counter.count(np.zeros((2, 8, 8, 3), np.float32), [("red", "circle")])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "A red circle and Two blue squares moving on a grey background",
            [("red", "circle", 1), ("blue", "square", 2)],
        ),
        ("6 green crosses drifting on a black background", [("green", "cross", 6)]),
        ("a dog on a grey background", []),
    ],
)
def test_parse(prompt, expected):
    assert [(target.colour, target.shape, target.count) for target in counter.parse(prompt)] == expected
