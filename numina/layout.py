"""The countable layout: which tokens of which frame are which instance of which noun (arXiv 2604.08546 §3.2).

Legend: nouns in prompt order, F frames, H W the token grid of a frame. Three sources of instances: ``clusters``
(published: mean shift on the self-attention image, kept where the noun's cross-attention agrees), ``peaks`` (peaks of
the cross-attention response with their surroundings) and ``fused`` (`numina.fused`: pieces of the response, joined and
cut by self-attention's affinity). Instances are numbered frame by frame, or linked into tracks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Int, Int16
from scipy import ndimage

from numina.config import IdentifyConfig
from numina.fused.reading import fused_labels
from numina.meanshift import estimate_bandwidth, mean_shift
from numina.prompts.targets import Target
from numina.tracks import link_instances

COORDINATE_WEIGHT = 0.5  # of the normalised (row, column) beside the components, for mean shift (published)
BANDWIDTH_SAMPLES = 1000  # tokens the bandwidth is estimated on, at most (published)
BANDWIDTH_FALLBACK = 0.5  # where the estimate comes out as 0 (published)
NO_CONTRAST = 1e-6  # share of a response's peak, a few roundings of float32: what varies less is flat
NEIGHBOURS_8 = np.ones((3, 3), dtype=bool)  # tokens are coarse: instances that touch by a corner are one


@dataclass(frozen=True)
class Capture:
    """What identification takes off the GPUs: the selected heads, reduced to what a layout needs."""

    # cross-attention to each noun, float32; what fused reads is normalised, and so in float16
    responses: Float[np.ndarray, "nouns frames H W"]
    components: Float32[np.ndarray, "frames H W 3"] | None  # self-attention image; None where the source needs none
    # what self-attention's affinity is a product of, and the nouns' peaks in the maps' own unit: where fused reads them
    coordinates: Float16[np.ndarray, "frames H W r"] | None = None
    peaks: Float[np.ndarray, " nouns"] | None = None
    deviation: float = 1.0  # standard deviation of the phrases' scores q·k/√D: what strengths may be measured in


@dataclass(frozen=True)
class Layout:
    """Instances as integers: 0 none, k > 0 an instance; with tracks, the same k is the same instance in every frame."""

    labels: Int16[np.ndarray, "nouns frames H W"]
    tracked: bool = False
    # how far each noun's reading can be trusted, from 0 to 1; None where the source doesn't tell
    confidence: Float[np.ndarray, " nouns"] | None = None

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

    def right(self, targets: Sequence[Target]) -> Bool[np.ndarray, " nouns"]:
        """Which nouns have their asked count: of tracks, or in every frame where there are none.

        A track that is hidden in a frame counts there, too: nothing could be added to make it more.
        """
        asked = np.array([target.count for target in targets], dtype=np.int64)
        if self.tracked:
            return np.asarray(self.clip_counts() == asked)
        return np.asarray((self.counts() == asked[:, None]).all(axis=1))

    def matches(self, targets: Sequence[Target]) -> bool:
        """Whether every noun has its asked count."""
        return bool(self.right(targets).all())


def identify_layout(capture: Capture, config: IdentifyConfig) -> Layout:
    """Read the instances of every noun off a clip's attention.

    A token belongs to one noun at most, unless ``exclusive`` is off. A frame's response without contrast (the same on
    all tokens, and so always in a frame of one token) says nothing about where a noun is, and holds no instance of it.
    Raises ``ValueError`` for a capture without nouns, frames or tokens or with NaN or infinite values, and where
    ``source`` is "clusters" and the capture has no self-attention components.
    """
    _check(capture)
    if config.source == "fused":
        if capture.coordinates is None or capture.peaks is None:
            raise ValueError("source = fused reads self-attention, but the capture has none: capture it, or use peaks")
        labels, confidence = fused_labels(capture.responses, capture.peaks, capture.coordinates, config)
        return Layout(labels, tracked=True, confidence=confidence)
    if config.source == "peaks":
        labels = _peaks(_relative(_present(capture.responses, config)), config)
    elif capture.components is None:
        raise ValueError("source = clusters reads self-attention, but the capture has none: capture it, or use peaks")
    else:
        labels = _clusters(capture.responses, capture.components, config)
    if config.tracks:
        for noun in range(len(labels)):
            others = np.any(np.delete(labels, noun, axis=0) > 0, axis=0) & config.exclusive
            labels[noun] = link_instances(labels[noun], others, config)
    return Layout(labels=labels, tracked=config.tracks)


def combine_blocks(
    responses: Float32[np.ndarray, "blocks nouns frames H W"], mode: Literal["mean", "steadiest"]
) -> Float32[np.ndarray, "nouns frames H W"]:
    """One response per noun from those of several transformer blocks.

    ``mean``: each as a share of its own peak, averaged, and scaled by the mean of the peaks; what is in all blocks
    stands out, what one block alone sees doesn't. ``steadiest``: the block whose maps are most alike in neighbouring
    frames (mean correlation over nouns): objects stay where they are for a frame, noise doesn't.
    """
    if len(responses) == 1:
        return responses[0]
    if mode == "mean":
        relative = np.stack([_relative(block) for block in responses])
        return np.asarray(relative.mean(axis=0) * responses.max(axis=(2, 3, 4)).mean(axis=0)[:, None, None, None])
    return responses[int(np.argmax([steadiness(block) for block in responses]))]


def steadiness(responses: Float32[np.ndarray, "nouns frames H W"]) -> float:
    """Mean correlation of neighbouring frames' maps, over nouns; 0 for a single frame and for maps without contrast."""
    flat = responses.reshape(*responses.shape[:2], -1).astype(np.float64)
    flat = flat - flat.mean(axis=2, keepdims=True)
    norms = np.linalg.norm(flat, axis=2)
    products = (flat[:, 1:] * flat[:, :-1]).sum(axis=2)
    scale = norms[:, 1:] * norms[:, :-1]
    return float((products / np.where(scale > 0, scale, np.inf)).mean()) if products.size else 0.0


def _check(capture: Capture) -> None:
    """Raise a ``ValueError`` that says what of the capture can't be read.

    No ``InputError``: nobody asked for this, the model or its attention kernel computed it, and a retry may not.
    """
    if not capture.responses.size:
        nouns, frames, height, width = capture.responses.shape
        raise ValueError(
            f"the capture has {nouns} nouns, {frames} frames, {height} x {width} tokens: give at least one of each"
        )
    finite = np.isfinite(capture.responses).all(axis=(2, 3))
    if not finite.all():
        noun, frame = np.argwhere(~finite)[0].tolist()
        raise ValueError(
            f"the response to noun {noun} in frame {frame} (both from 0) has NaN or infinite values: "
            "cross-attention broke down; try another seed or a wider number format"
        )
    if capture.coordinates is not None and not np.isfinite(capture.coordinates).all():
        frame = int(np.argwhere(~np.isfinite(capture.coordinates))[0, 0])
        raise ValueError(
            f"the self-attention coordinates of frame {frame} (from 0) have NaN or infinite values: "
            "self-attention broke down; try another seed or a wider number format"
        )
    if capture.components is not None and not np.isfinite(capture.components).all():
        frame = int(np.argwhere(~np.isfinite(capture.components))[0, 0])
        raise ValueError(
            f"the self-attention components of frame {frame} (from 0) have NaN or infinite values: "
            "self-attention broke down; try another seed or a wider number format"
        )


def _relative(
    responses: Float32[np.ndarray, "nouns frames H W"],
) -> Float32[np.ndarray, "nouns frames H W"]:
    """Responses as shares of each noun's own peak over the clip: across nouns their sizes say nothing."""
    peaks = responses.max(axis=(1, 2, 3), keepdims=True)
    return np.asarray(responses / np.maximum(peaks, np.finfo(np.float32).tiny))


def _present(
    responses: Float32[np.ndarray, "nouns frames H W"], config: IdentifyConfig
) -> Float32[np.ndarray, "nouns frames H W"]:
    """Responses without those of nouns that nothing in the clip looks at, next to what looks at the strongest noun.

    An absent noun's response is noise, and noise has peaks, too.
    """
    peaks = responses.max(axis=(1, 2, 3), keepdims=True)
    return np.asarray(np.where(peaks >= config.absence * peaks.max(), responses, 0.0), dtype=np.float32)


def _contrasted(response: Float32[np.ndarray, "H W"]) -> bool:
    """Whether a response tells tokens apart at all."""
    peak = float(response.max())
    return peak - float(response.min()) > NO_CONTRAST * peak


def _peaks(
    relative: Float32[np.ndarray, "nouns frames H W"], config: IdentifyConfig
) -> Int16[np.ndarray, "nouns frames H W"]:
    """Instances as the peaks of a noun's response with their surroundings, where no other noun's is higher."""
    strongest = relative.argmax(axis=0)
    labels = np.zeros(relative.shape, dtype=np.int16)
    for noun, frame in np.ndindex(relative.shape[:2]):
        response = relative[noun, frame]
        if not _contrasted(response):
            continue
        if config.exclusive:
            response = np.where(strongest[frame] == noun, response, 0.0)
        labels[noun, frame] = _flood(response, config)
    return labels


def _flood(response: Float32[np.ndarray, "H W"], config: IdentifyConfig) -> Int16[np.ndarray, "H W"]:
    """Peaks of at least ``threshold``, each with the tokens that fall towards it, down to ``extent``.

    Tokens are taken from the highest down: one without a labelled neighbour is a new peak, another joins its highest
    neighbour's. Where two peaks meet, the lower one is a bump of the higher unless the response fell by the share
    ``prominence`` of it in between (the watershed of an h-maxima transform, h relative to the peak). So neighbours
    are told apart where no single threshold can, and each keeps its whole body: guidance must know its rim.
    """
    width = response.shape[1] + 2  # with a rim that is never labelled, so that all tokens have eight neighbours
    values = np.pad(response, 1).ravel().tolist()
    owner = [-1] * len(values)  # a token of the same peak, up to the peak itself
    order = np.argsort(-response.ravel(), kind="stable")
    order = order[response.ravel()[order] >= max(config.extent, np.finfo(np.float32).tiny)]

    def peak_of(token: int) -> int:
        while owner[token] != token:
            owner[token] = owner[owner[token]]
            token = owner[token]
        return token

    for row, column in zip(*divmod(order, response.shape[1]), strict=True):
        token = int(row + 1) * width + int(column) + 1
        around = [token + down * width + right for down in (-1, 0, 1) for right in (-1, 0, 1)]
        labelled = [other for other in around if owner[other] >= 0]
        owner[token] = peak_of(max(labelled, key=values.__getitem__)) if labelled else token
        met = sorted({peak_of(other) for other in labelled}, key=values.__getitem__)
        for lower in met[:-1]:
            if values[token] > (1 - config.prominence) * values[lower]:
                owner[lower] = met[-1]
    owners = np.array([peak_of(token) if owner[token] >= 0 else -1 for token in range(len(values))])
    peaks, areas = np.unique(owners[owners >= 0], return_counts=True)
    kept = [peak for peak, area in zip(peaks, areas, strict=True) if area >= config.min_area]
    kept = [peak for peak in kept if values[peak] >= config.threshold]
    labels = np.zeros(len(values), dtype=np.int16)
    for number, peak in enumerate(kept, start=1):
        labels[owners == peak] = number
    return labels.reshape(-1, width)[1:-1, 1:-1]


def _clusters(
    responses: Float32[np.ndarray, "nouns frames H W"],
    components: Float32[np.ndarray, "frames H W 3"],
    config: IdentifyConfig,
) -> Int16[np.ndarray, "nouns frames H W"]:
    """Instances as clusters of the self-attention image, each kept for the noun whose focus mask holds most of it.

    Not ``exclusive``: for every noun whose focus mask holds enough of it. Numbered in the clusters' own order.
    """
    relative = _relative(responses)
    labels = np.zeros(responses.shape, dtype=np.int16)
    for frame, image in enumerate(components):
        proposals = _proposals(image, config)
        areas = np.bincount(proposals.ravel())
        focus = [_focus_mask(response, config) for response in responses[:, frame]]
        shares = np.stack([np.bincount(proposals[mask], minlength=len(areas)) / np.maximum(areas, 1) for mask in focus])
        kept = (shares >= config.min_focus) & (areas > 0) & (np.arange(len(areas)) > 0)
        kept &= [[_contrasted(response)] for response in responses[:, frame]]
        if config.exclusive:
            meant = [np.bincount(proposals.ravel(), r.ravel()) / np.maximum(areas, 1) for r in relative[:, frame]]
            kept &= _strongest_claim(np.where(kept, shares, -1.0), np.stack(meant))
        numbers = np.where(kept, np.cumsum(kept, axis=1), 0)
        labels[:, frame] = numbers[:, proposals]
    return labels


def _strongest_claim(
    shares: Float[np.ndarray, "nouns proposals"], meant: Float[np.ndarray, "nouns proposals"]
) -> Bool[np.ndarray, "nouns proposals"]:
    """Which noun gets a proposal: the one with the larger share in focus, then with the stronger mean response."""
    most = shares == shares.max(axis=0)
    winner = np.where(most, meant, -np.inf).argmax(axis=0)  # the first of equals
    return np.asarray(np.arange(len(shares))[:, None] == winner)


def _proposals(image: Float32[np.ndarray, "H W 3"], config: IdentifyConfig) -> Int[np.ndarray, "H W"]:
    """Mean-shift clusters of a frame's tokens by component and place, numbered from 1; 0 is what was dropped."""
    height, width = image.shape[:2]
    row, column = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    places = np.stack([row, column], axis=-1)
    features = (
        np.concatenate([image, COORDINATE_WEIGHT * places], axis=-1).reshape(height * width, 5).astype(np.float64)
    )
    bandwidth = estimate_bandwidth(features, config.bandwidth_quantile, BANDWIDTH_SAMPLES)
    clusters = mean_shift(features, bandwidth if bandwidth > 0 else BANDWIDTH_FALLBACK).reshape(height, width) + 1
    if config.connected:
        pieces = np.zeros_like(clusters)
        for cluster in range(1, clusters.max() + 1):
            found = _pieces(clusters == cluster, config.min_area)
            pieces += np.where(found > 0, found + pieces.max(), 0)
        return np.asarray(pieces)
    return np.asarray(np.where(np.bincount(clusters.ravel())[clusters] >= config.min_area, clusters, 0))


def _focus_mask(response: Float32[np.ndarray, "H W"], config: IdentifyConfig) -> Bool[np.ndarray, "H W"]:
    """Tokens that look at the noun at least ρ times as much as the frame's peak does, less those that stand alone."""
    mask = np.asarray((response >= config.focus * response.max()) & (response > 0))
    return dense_tokens(mask, config.dbscan_eps, config.dbscan_min_samples)


def dense_tokens(mask: Bool[np.ndarray, "H W"], eps: float, min_samples: int) -> Bool[np.ndarray, "H W"]:
    """The tokens of a mask that DBSCAN puts into some cluster; the others are its noise.

    A core token has ``min_samples`` tokens of the mask within ``eps`` of it, itself included; what lies within ``eps``
    of a core is in its cluster. Which cluster doesn't matter here, so on a grid this is a correlation and a dilation.
    """
    reach = int(min(eps, max(mask.shape)))  # the disc never needs to be larger than the frame
    row, column = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    near = row**2 + column**2 <= eps**2
    within = ndimage.correlate(mask.astype(np.int32), near.astype(np.int32), mode="constant")
    return np.asarray(mask & ndimage.binary_dilation(mask & (within >= min_samples), structure=near))


def _pieces(mask: Bool[np.ndarray, "H W"], min_area: int) -> Int16[np.ndarray, "H W"]:
    """Connected components of a mask, numbered from 1 in reading order, without those smaller than ``min_area``."""
    pieces, _ = ndimage.label(mask, structure=NEIGHBOURS_8)
    large = np.bincount(pieces.ravel()) >= min_area
    large[0] = False
    return np.asarray(np.where(large, np.cumsum(large), 0)[pieces], dtype=np.int16)
