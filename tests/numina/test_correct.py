"""One scene, drawn on any grid, is corrected alike: settings in tokens are those of a frame's share.

Places are (row, column) from the frame's middle, and lengths, in tokens of a 480p frame.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from numina.config import MethodConfig
from numina.correct import correct, correct_layout
from numina.layout import Capture, Layout
from numina.prompts.targets import Target
from numina.prompts.tokens import TokenSpans
from numina.regions import Region
from tests.numina.scenes import preset

SPANS = [TokenSpans(noun=(1,), phrase=(1,), first=(1,)), TokenSpans(noun=(2,), phrase=(2,), first=(2,))]
GRIDS = {"480p": (30, 52), "720p": (45, 80), "square": (40, 40), "portrait": (52, 30), "720p portrait": (80, 45)}
OWN_GRID = {"closed": (16, 16), "paper": (30, 52)}  # that the preset's lengths are given for


@dataclass(frozen=True)
class Blob:
    noun: int
    place: tuple[float, float]
    radius: float
    drift: float = 0.0  # columns from a frame to the next


BLOBS = {
    # Three of noun 0, the smallest of which is fast, and none of noun 1.
    "one too many, one missing": (
        Blob(0, (-10.5, -10.5), 3.0),
        Blob(0, (-10.5, 10.5), 3.4),
        Blob(0, (11.0, -9.0), 2.4, drift=5.0),
    ),
    # Noun 0 lacks one, and noun 1 stands on all sides of it but above.
    "one to copy": (
        Blob(0, (6.8, 0.0), 2.2),
        Blob(1, (6.8, -9.0), 2.6),
        Blob(1, (6.8, 9.0), 2.6),
        Blob(1, (12.8, 0.0), 2.2),
    ),
}
ASKED = {"one too many, one missing": (2, 1), "one to copy": (2, 3)}


def side(grid: tuple[int, int]) -> float:
    """Tokens of this grid to one of 480p."""
    return (grid[0] * grid[1] / (30 * 52)) ** 0.5


def drawn(name: str, grid: tuple[int, int], frames: int = 3) -> Capture:
    """Soft blobs in their own colours; in the frame's middle a thing of which noun 0's response shows a speck."""
    row, column = ((np.arange(n) - (n - 1) / 2) / side(grid) for n in grid)
    responses = np.zeros((2, frames, *grid))
    image = np.full((frames, *grid, 3), 0.1)
    for number, blob in enumerate(BLOBS[name]):
        colour = np.array([(number + 1 >> bit) % 2 for bit in range(3)])
        for frame in range(frames):
            right = blob.place[1] + blob.drift * frame
            away = np.hypot(row[:, None] - blob.place[0], column - right) / blob.radius
            inside = np.exp(-(away**4))
            responses[blob.noun, frame] = np.maximum(responses[blob.noun, frame], inside)
            image[frame][away < 1] = colour
    reach = np.maximum(abs(row[:, None]), abs(column))
    image[:, reach < 1.6] = (1.0, 1.0, 0.9)
    responses[0, :, reach < 0.95] = 0.08
    return Capture(responses.astype(np.float32), image.astype(np.float32))


def decisions(method: MethodConfig, name: str, grid: tuple[int, int]) -> tuple[list[int], np.ndarray]:
    """Counts per noun and frame; per noun and frame where the removed and the added one are, and √ of the latter's
    area (nan: none)."""
    targets = [Target(noun, count) for noun, count in zip("ab", ASKED[name], strict=True)]
    correction = correct(drawn(name, grid), targets, SPANS, method)
    nothing = np.zeros((2, 3, *grid), dtype=np.int8)
    all_regions = correction.refinement.regions if correction.refinement else nothing
    found = []
    for regions in all_regions.reshape(-1, *grid):
        removed, added = (np.argwhere(np.isin(regions, kinds)) for kinds in (Region.REMOVE, [3, 4]))
        middles = [(t.mean(axis=0) - (np.array(grid) - 1) / 2) if len(t) else [np.nan] * 2 for t in (removed, added)]
        found.append([*middles[0], *middles[1], len(added) ** 0.5 or np.nan])
    return correction.identified.counts().tolist(), np.array(found) / side(grid)


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize("form", OWN_GRID)
def test_a_scene_is_corrected_alike_on_every_grid(form: str, name: str) -> None:
    """Same counts, same instance removed, and the added one of the same size within a token of the same place."""
    method = preset(form)
    expected, places = decisions(method, name, OWN_GRID[form])
    for size, grid in GRIDS.items():
        token = 1 / min(side(grid), side(OWN_GRID[form]))  # of the coarser grid
        counts, found = decisions(method, name, grid)
        assert counts == expected, size
        np.testing.assert_allclose(found, places, atol=token, err_msg=size)


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize("form", OWN_GRID)
def test_without_scaling_it_is_not(form: str, name: str) -> None:
    """The same settings taken as they are on 720p's grid decide otherwise."""
    expected, places = decisions(preset(form), name, OWN_GRID[form])
    counts, found = decisions(replace(preset(form), grid=0), name, GRIDS["720p"])
    same = counts == expected and np.allclose(found, places, atol=1 / side(OWN_GRID[form]), equal_nan=True)
    assert not same


@pytest.mark.parametrize(
    ("confidence", "least", "left_alone"),
    [
        (None, 0.9, None),  # nothing is known against it
        ([0.2, 0.2], 0.0, None),  # guide always, the default
        ([0.5, 0.2], 0.5, None),  # only the second noun is doubtful, and it isn't edited
        ([0.49, 0.9], 0.5, "read with a confidence below 0.5: a 0.49"),
    ],
)
def test_a_doubtful_reading_is_left_alone(confidence, least, left_alone):
    """Below `guide.confidence` in a noun that has to be edited nothing is changed, and the row says why."""
    labels = np.zeros((2, 2, 8, 8), dtype=np.int16)
    labels[0, :, 1, 1], labels[0, :, 5, 5], labels[1, :, 3, 3] = 1, 2, 1
    layout = Layout(labels, tracked=True, confidence=None if confidence is None else np.array(confidence))
    method = preset("closed")
    method = replace(method, guide=replace(method.guide, confidence=least))
    found = correct_layout(layout, [Target("a", 1), Target("b", 1)], SPANS, method)
    assert found.left_alone == left_alone
    assert (found.plan is None) == (found.refinement is None) == (left_alone is not None)
    if found.refinement:
        assert found.refinement.layout.confidence is layout.confidence
    right = correct_layout(layout, [Target("a", 2), Target("b", 1)], SPANS, method)
    assert (right.plan, right.left_alone) == (None, None)
