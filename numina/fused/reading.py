"""The fused reading of a clip: normalised responses, pieces per frame, tracks, and which of them are instances."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int16

from numina.config import IdentifyConfig
from numina.fused.links import link_pieces
from numina.fused.pieces import Piece, frame_pieces, labels_of
from numina.fused.responses import ground

LEAST_CONTRAST = 0.8  # standard deviations from its surroundings, below which a piece isn't a thing of its own
MOST_CONTRAST = 1.5  # times the typical contrast that count: at a frame's rim it may come out as anything
SEEN = 0.3  # share of the frames in which an instance must be seen
TYPICAL = 0.6  # quantile of the pieces' evidence that others are compared with
DISTINCT = 0.35  # log-ratio by which a faint noun's instances must answer more to it than to any other


def fused_labels(
    shares: Float32[np.ndarray, "nouns frames H W"],
    peaks: Float[np.ndarray, " nouns"],
    coordinates: Float[np.ndarray, "frames H W r"],
    config: IdentifyConfig,
) -> Int16[np.ndarray, "nouns frames H W"]:
    """Instances as tracks, numbered per noun from 1; ``shares`` and ``peaks`` come from `normalised`.

    A track is an instance if its evidence, response × contrast × √presence, reaches ``evidence`` of what is typical in
    the clip, and it lasts for ``min_presence`` of the frames. It is of the noun that it answers to most.
    """
    noise = ground(shares)[1][..., 0, 0]
    vectors = np.asarray(coordinates, dtype=np.float32)
    pieces = [
        piece
        for frame in range(shares.shape[1])
        for piece in frame_pieces(frame, shares[:, frame], noise[:, frame], vectors[frame], config)
        if piece.contrast > LEAST_CONTRAST
    ]
    tracks = _instances(link_pieces(pieces), shares.shape[1], config)
    nouns = _nouns(tracks, peaks, config)
    labels = np.zeros(shares.shape, dtype=np.int16)
    for noun in range(len(labels)):
        own = [track for track, meant in zip(tracks, nouns, strict=True) if meant == noun]
        labels[noun] = labels_of(
            [(number, piece) for number, track in enumerate(own, start=1) for piece in track], shares.shape[1:]
        )
    return labels


def _instances(tracks: Sequence[list[Piece]], frames: int, config: IdentifyConfig) -> list[list[Piece]]:
    tracks = [track for track in tracks if _lasts(track, frames, config.min_presence)]
    contrasts = [piece.contrast for track in tracks for piece in track if np.isfinite(piece.contrast)]
    usual = float(np.median(contrasts)) if contrasts else 1.0

    def evidence(track: Sequence[Piece]) -> float:
        seen = [piece.responses.max() * min(_finite(piece.contrast, usual) / usual, MOST_CONTRAST) for piece in track]
        return float(np.mean(seen) * np.sqrt(len(track) / frames))

    found = [evidence(track) for track in tracks]
    typical = np.quantile(np.repeat(found, list(map(len, tracks))), TYPICAL) if tracks else 0.0
    return [track for track, own in zip(tracks, found, strict=True) if own >= config.evidence * typical]


def _lasts(track: Sequence[Piece], frames: int, least: float) -> bool:
    """Whether a track is there in a share of the frames, from its first to its last, and seen in enough of them.

    What is hidden comes back, and counts as there; what only flickers doesn't.
    """
    there = track[-1].frame - track[0].frame + 1
    return there >= least * frames and len(track) >= SEEN * frames


def _finite(contrast: float, usual: float) -> float:
    """Without surroundings to compare with, a piece's contrast is the usual one."""
    return contrast if np.isfinite(contrast) else usual


def _nouns(tracks: Sequence[list[Piece]], peaks: Float[np.ndarray, " nouns"], config: IdentifyConfig) -> list[int]:
    """Each track's noun. A faint noun may only echo the others: it is there if its tracks answer to it distinctly."""
    if not tracks:
        return []
    answers = np.maximum(np.stack([np.mean([piece.responses for piece in own], axis=0) for own in tracks]), 1e-6)
    present = np.ones(len(peaks), dtype=bool)
    for noun in np.flatnonzero(peaks < config.absence * peaks.max()):
        others = np.where(np.arange(len(peaks)) == noun, 0.0, answers).max(axis=1)
        lead = np.log(answers[:, noun] / np.maximum(others, 1e-6))
        present[noun] = bool((lead > DISTINCT).any())
    return [int(noun) for noun in np.where(present, answers, 0.0).argmax(axis=1)]
