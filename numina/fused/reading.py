"""The fused reading of a clip: normalised responses, pieces per frame, tracks, and which of them are instances."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int16

from numina.config import IdentifyConfig
from numina.fused.links import link_pieces
from numina.fused.pieces import Piece, frame_pieces, labels_of
from numina.fused.responses import ground

LEAST_CONTRAST = 0.8  # standard deviations from its surroundings, below which a piece isn't a thing of its own
MOST_CONTRAST = 1.5  # times the typical contrast that count: at a frame's rim it may come out as anything
SEEN = 0.3  # share of the frames in which an instance must be seen
TYPICAL = 0.6  # quantile of the pieces' evidence that others are compared with
SCRAP = 1 / 3  # power of a track's area, as a share of the typical one, that its evidence is lowered by: ghosts are small
DISTINCT = 0.33  # log-ratio by which a faint noun's instances must answer more to it than to any other
FAINTEST = 0.3  # of the strongest noun's peak, below which a noun isn't in the clip at all


def fused_labels(
    shares: Float32[np.ndarray, "nouns frames H W"],
    peaks: Float[np.ndarray, " nouns"],
    coordinates: Float[np.ndarray, "frames H W r"],
    config: IdentifyConfig,
) -> Int16[np.ndarray, "nouns frames H W"]:
    """Instances as tracks, numbered per noun from 1; ``shares`` and ``peaks`` come from `normalised`.

    A track that lasts for ``min_presence`` of the frames is an instance if its evidence, response × contrast × ∛area ×
    presence, reaches ``evidence`` of what is typical in the clip. It is of the noun that it answers to most.
    """
    noise = ground(shares)[1][..., 0, 0]
    vectors = np.asarray(coordinates, dtype=np.float32)
    pieces = [
        piece
        for frame in range(shares.shape[1])
        for piece in frame_pieces(frame, shares[:, frame], noise[:, frame], vectors[frame], config)
        if piece.contrast > LEAST_CONTRAST
    ]
    frames = shares.shape[1]
    tracks = [track for track in link_pieces(pieces) if _lasts(track, frames, config.min_presence)]
    labels = np.zeros(shares.shape, dtype=np.int16)
    if not tracks:
        return labels
    answers = np.maximum([np.mean([piece.responses for piece in track], axis=0) for track in tracks], 1e-6)
    present = _present(answers, peaks, config)
    evidence = np.where(present, answers, 0.0).max(axis=1) * _substance(tracks, frames)
    typical = np.quantile(np.repeat(evidence, list(map(len, tracks))), TYPICAL)
    instance = evidence >= config.evidence * typical
    for noun in np.flatnonzero(present):
        own = np.flatnonzero(instance & (answers.argmax(axis=1) == noun))
        numbered = [(number, piece) for number, place in enumerate(own, start=1) for piece in tracks[place]]
        labels[noun] = labels_of(numbered, shares.shape[1:])
    return labels


def _lasts(track: Sequence[Piece], frames: int, least: float) -> bool:
    """Whether a track is there in a share of the frames, from its first to its last, and seen in enough of them.

    What is hidden comes back, and counts as there; what only flickers doesn't.
    """
    there = track[-1].frame - track[0].frame + 1
    return there >= least * frames and len(track) >= SEEN * frames


def _substance(tracks: Sequence[list[Piece]], frames: int) -> Float[np.ndarray, " tracks"]:
    """How much of a thing each track is, whatever noun it answers to: contrast × ∛area × presence, of typical ones."""
    contrasts = [piece.contrast for track in tracks for piece in track if np.isfinite(piece.contrast)]
    usual = float(np.median(contrasts)) if contrasts else 1.0
    contrast = [np.mean([min(_finite(piece.contrast, usual) / usual, MOST_CONTRAST) for piece in t]) for t in tracks]
    lengths = np.array(list(map(len, tracks)))
    areas = np.array([np.mean([piece.area for piece in track]) for track in tracks])
    share = np.minimum(areas / np.median(np.repeat(areas, lengths)), 1.0)
    return np.asarray(contrast * share**SCRAP * lengths / frames)


def _finite(contrast: float, usual: float) -> float:
    """Without surroundings to compare with, a piece's contrast is the usual one."""
    return contrast if np.isfinite(contrast) else usual


def _present(
    answers: Float[np.ndarray, "tracks nouns"], peaks: Float[np.ndarray, " nouns"], config: IdentifyConfig
) -> Bool[np.ndarray, " nouns"]:
    """Nouns that the clip shows. A faint one may only echo the others: then no track answers to it distinctly."""
    present = peaks >= FAINTEST * peaks.max()
    for noun in np.flatnonzero(present & (peaks < config.absence * peaks.max())):
        others = np.delete(answers, noun, axis=1).max(axis=1)
        present[noun] = bool((np.log(answers[:, noun] / others) > DISTINCT).any())
    return np.asarray(present)
