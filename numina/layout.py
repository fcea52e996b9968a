"""The countable layout: which tokens of which frame are which instance of which noun (arXiv 2604.08546 §3.2).

Legend: nouns in prompt order, F frames, H W the token grid of a frame. Two sources of instances: ``clusters``
(published: mean shift on the self-attention image, kept where the noun's cross-attention agrees) and ``components``
(connected components of the cross-attention response). Instances are numbered frame by frame, or linked into tracks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, Int16
from scipy import ndimage
from sklearn.cluster import DBSCAN, MeanShift, estimate_bandwidth

from numina.config import IdentifyConfig
from numina.prompts import Target
from numina.tracks import link_instances

COORDINATE_WEIGHT = 0.5  # of the normalised (row, column) beside the components, for mean shift (published)
BANDWIDTH_SAMPLES = 1000  # tokens the bandwidth is estimated on, at most (published)
BANDWIDTH_FALLBACK = 0.5  # where the estimate comes out as 0 (published)
NEIGHBOURS_8 = np.ones((3, 3), dtype=bool)  # tokens are coarse: instances that touch by a corner are one


@dataclass(frozen=True)
class Capture:
    """What identification takes off the GPUs: the selected heads, reduced to what a layout needs."""

    responses: Float32[np.ndarray, "nouns frames H W"]  # cross-attention to each noun
    components: Float32[np.ndarray, "frames H W 3"] | None  # self-attention image; None where the source needs none


@dataclass(frozen=True)
class Layout:
    """Instances as integers: 0 none, k > 0 an instance; with tracks, the same k is the same instance in every frame."""

    labels: Int16[np.ndarray, "nouns frames H W"]
    tracked: bool = False

    def instances(self, noun: int) -> Int[np.ndarray, " instances"]:
        """Labels of a noun's instances over the clip, ascending."""
        found = np.unique(self.labels[noun])
        return np.asarray(found[found > 0], dtype=np.int64)

    def counts(self) -> Int[np.ndarray, "nouns frames"]:
        """Instances per noun and frame."""
        return np.array(
            [[np.count_nonzero(np.unique(frame)) for frame in noun] for noun in self.labels], dtype=np.int64
        )

    def clip_counts(self) -> Int[np.ndarray, " nouns"]:
        """Instances per noun in the clip: the number of tracks, or the (lower) median over frames without tracks."""
        if self.tracked:
            return np.array([len(self.instances(noun)) for noun in range(len(self.labels))], dtype=np.int64)
        return np.asarray(np.quantile(self.counts(), 0.5, axis=1, method="lower"), dtype=np.int64)

    def matches(self, targets: Sequence[Target]) -> bool:
        """Whether every noun has its asked count in every frame."""
        asked = np.array([target.count for target in targets], dtype=np.int64)
        return bool((self.counts() == asked[:, None]).all())


def identify_layout(capture: Capture, config: IdentifyConfig) -> Layout:
    """Read the instances of every noun off a clip's attention; a token belongs to one noun at most.

    Raises ``ValueError`` where ``source`` is "clusters" and the capture has no self-attention components.
    """
    # A response says nothing across nouns: each is taken relative to its own peak over the clip.
    peaks = capture.responses.max(axis=(1, 2, 3), keepdims=True)
    relative = capture.responses / np.maximum(peaks, np.finfo(np.float32).tiny)
    if config.source == "components":
        labels = _components(relative, config)
    elif capture.components is None:
        raise ValueError(
            "source = clusters reads self-attention, but the capture has none: capture it, or use components"
        )
    else:
        labels = _clusters(relative, capture.components, config)
    if config.tracks:
        for noun in range(len(labels)):
            others = np.any(np.delete(labels, noun, axis=0) > 0, axis=0)
            labels[noun] = link_instances(labels[noun], others, config)
    return Layout(labels=labels, tracked=config.tracks)


def _components(
    relative: Float32[np.ndarray, "nouns frames H W"], config: IdentifyConfig
) -> Int16[np.ndarray, "nouns frames H W"]:
    """Instances as connected components of the tokens where a noun's response is high, and above any other noun's."""
    strongest = relative.argmax(axis=0)
    labels = np.zeros(relative.shape, dtype=np.int16)
    for noun, frame in np.ndindex(relative.shape[:2]):
        response = np.where(strongest[frame] == noun, relative[noun, frame], 0.0)
        cores = _pieces((response >= config.threshold) & (response > 0), config.min_area)
        labels[noun, frame] = _grown(cores, (response >= config.extent) & (response > 0))
    return labels


def _grown(cores: Int16[np.ndarray, "H W"], extent: Bool[np.ndarray, "H W"]) -> Int16[np.ndarray, "H W"]:
    """Cores with their surroundings: tokens of ``extent`` that hang together with a core are the nearest core's.

    A high threshold tells neighbours apart but sees only the middle of each; guidance must know the whole of it, lest
    it suppresses the rim.
    """
    if not cores.any():
        return cores
    pieces, _ = ndimage.label(extent | (cores > 0), structure=NEIGHBOURS_8)
    held = np.isin(pieces, pieces[cores > 0])
    nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    return np.where(held, cores[tuple(nearest)], 0).astype(np.int16)


def _clusters(
    relative: Float32[np.ndarray, "nouns frames H W"],
    components: Float32[np.ndarray, "frames H W 3"],
    config: IdentifyConfig,
) -> Int16[np.ndarray, "nouns frames H W"]:
    """Instances as clusters of the self-attention image, each kept for the noun whose focus mask holds most of it."""
    labels = np.zeros(relative.shape, dtype=np.int16)
    for frame, image in enumerate(components):
        proposals = _proposals(image, config)
        areas = np.bincount(proposals.ravel())
        focus = np.stack([_focus_mask(response, config) for response in relative[:, frame]])
        shares = np.stack([np.bincount(proposals[mask], minlength=len(areas)) / np.maximum(areas, 1) for mask in focus])
        meant = np.stack([np.bincount(proposals.ravel(), r.ravel()) / np.maximum(areas, 1) for r in relative[:, frame]])
        for proposal in range(1, len(areas)):
            # Several nouns may claim a cluster: the larger share in focus decides, then the stronger response.
            noun = max(range(len(relative)), key=lambda i: (shares[i, proposal], meant[i, proposal], -i))
            if areas[proposal] and shares[noun, proposal] >= config.min_focus:
                labels[noun, frame][proposals == proposal] = labels[noun, frame].max() + 1
    return labels


def _proposals(image: Float32[np.ndarray, "H W 3"], config: IdentifyConfig) -> Int[np.ndarray, "H W"]:
    """Mean-shift clusters of a frame's tokens by component and place, numbered from 1; 0 is what was dropped."""
    height, width = image.shape[:2]
    row, column = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    places = np.stack([row, column], axis=-1)
    features = (
        np.concatenate([image, COORDINATE_WEIGHT * places], axis=-1).reshape(height * width, 5).astype(np.float64)
    )
    samples = min(BANDWIDTH_SAMPLES, len(features))
    bandwidth = estimate_bandwidth(features, quantile=config.bandwidth_quantile, n_samples=samples, random_state=0)
    shift = MeanShift(bandwidth=bandwidth if bandwidth > 0 else BANDWIDTH_FALLBACK, bin_seeding=True).fit(features)
    clusters = shift.labels_.reshape(height, width).astype(np.int64) + 1
    if config.connected:
        pieces = np.zeros_like(clusters)
        for cluster in range(1, clusters.max() + 1):
            found = _pieces(clusters == cluster, config.min_area)
            pieces += np.where(found > 0, found + pieces.max(), 0)
        return np.asarray(pieces)
    return np.asarray(np.where(np.bincount(clusters.ravel())[clusters] >= config.min_area, clusters, 0))


def _focus_mask(response: Float32[np.ndarray, "H W"], config: IdentifyConfig) -> Bool[np.ndarray, "H W"]:
    """Tokens that look at the noun at least ρ times as much as the frame's peak does, DBSCAN noise dropped."""
    mask = np.asarray((response >= config.focus * response.max()) & (response > 0))
    if mask.any():
        found = DBSCAN(eps=config.dbscan_eps, min_samples=config.dbscan_min_samples).fit(np.argwhere(mask))
        mask[mask] = found.labels_ >= 0
    return mask


def _pieces(mask: Bool[np.ndarray, "H W"], min_area: int) -> Int16[np.ndarray, "H W"]:
    """Connected components of a mask, numbered from 1 in reading order, without those smaller than ``min_area``."""
    pieces, _ = ndimage.label(mask, structure=NEIGHBOURS_8)
    large = np.bincount(pieces.ravel()) >= min_area
    large[0] = False
    return np.asarray(np.where(large, np.cumsum(large), 0)[pieces], dtype=np.int16)
