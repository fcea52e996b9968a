"""A figure of how `fused` reads synthetic clips: a row for each kind of trouble, from the maps to the instances.

    python -m tests.benchmarks.readings_figure .readme/readings.png [--kinds parts,touching] [--level hard]

Of each clip its middle frame is shown: both nouns' cross-attention (red and blue, mean of the blocks), the same
normalised, the many pieces that cross-attention proposes, and the instances that `fused` and `closed` end with.
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import hsv_to_rgb

from numina.fused.pieces import _basins
from tests.benchmarks.stress import identify_config
from tests.numina.fused.read import captured, read
from tests.numina.fused.troubles import FRAMES, Clip, clips

KINDS = "parts,touching,elongated,dim,hidden,floor,leak,sink"
NAMES = {"dim": "weak beside strong", "leak": "other noun answers", "sink": "sink tokens", "floor": "high floor"}
COLUMNS = ("cross-attention", "normalised", "pieces", "instances, fused", "instances, closed")
NOUNS = np.array([[1.0, 0.35, 0.25], [0.3, 0.55, 1.0]])  # a colour of each


def tinted(maps: np.ndarray) -> np.ndarray:
    """Maps [nouns, H, W] as one picture, each in its noun's colour, white where a noun's own highest is."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    share = (maps - low) / np.maximum(high - low, 1e-12)
    return np.clip(np.einsum("nhw,nc->hwc", share, NOUNS), 0, 1)


def coloured(labels: np.ndarray) -> np.ndarray:
    """Labels [nouns, H, W] as one picture: warm colours for the first noun's, cold ones for the second's."""
    picture = np.full((*labels.shape[1:], 3), 0.12)
    for noun, own in enumerate(labels):
        numbers = np.unique(own[own > 0])
        for place, number in enumerate(numbers):
            hue = (0.55 * noun + 0.3 * place / max(len(numbers), 1)) % 1
            picture[own == number] = hsv_to_rgb((hue, 0.75, 0.95 - 0.3 * (place % 2)))
    return picture


def row(clip: Clip) -> list[np.ndarray]:
    frame, fused = FRAMES // 2, identify_config("fused")
    shares = np.asarray(captured(clip).responses[:, frame], dtype=np.float32)
    pieces = np.zeros((1, *shares.shape[1:]), np.int16)
    top = np.where(shares >= fused.threshold, shares, 0.0).max(axis=0)
    for number, region in enumerate(_basins(top, fused.extent), start=1):
        pieces[0][region.mask] = number
    layouts = [read(clip, config).labels[:, frame] for config in (fused, identify_config("closed"))]
    return [tinted(clip.blocks[:, :, frame].mean(axis=0)), tinted(shares), *map(coloured, [pieces, *layouts])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--kinds", default=KINDS)
    parser.add_argument("--level", default="hard", choices=["mild", "hard"])
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    figure, axes = plt.subplots(len(kinds), len(COLUMNS), figsize=(11, 1.42 * len(kinds)), squeeze=False)
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title, fontsize=10)
    for kind, line in zip(kinds, axes, strict=True):
        clip = next(clips(kind, options.level, 1))
        for axis, picture in zip(line, row(clip), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{NAMES.get(kind, kind)}\n{clip.counts[0]} and {clip.counts[1]}", fontsize=9)
    figure.tight_layout(pad=0.4)
    figure.savefig(options.output, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
