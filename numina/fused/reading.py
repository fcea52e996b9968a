"""The fused reading of a clip: normalised responses, pieces per frame, tracks, and which of them are instances."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int16
from scipy import ndimage

from numina.config import IdentifyConfig
from numina.fused.ground import noise
from numina.fused.links import link_pieces
from numina.fused.pieces import Piece, frame_pieces, labels_of

LEAST_CONTRAST = 0.8  # standard deviations from its surroundings, below which a piece isn't a thing of its own
MOST_CONTRAST = 1.5  # times the typical contrast that count: at a frame's rim it may come out as anything
SEEN = 0.3  # share of the frames in which an instance must be seen
TYPICAL = 0.6  # quantile of the pieces' evidence that others are compared with
SCRAP = (
    0.25  # power of a track's area, as a share of the typical one, that its evidence is lowered by: ghosts are small
)
FLICKER = 1.7  # power of the share of frames in which it is seen
DISTINCT = 0.33  # log-ratio by which a faint noun's instances must answer more to it than to any other
SURE = 4.0  # of a margin, a log-ratio: e^0.2 from the threshold is 0.69 sure, e^0.9 is 0.97
VISIBLE = 0.5  # share of an instance that others must leave free for it to be there in a frame that it isn't seen in
FAINTEST = 0.3  # of the strongest noun's peak, below which a noun isn't in the clip at all


def fused_labels(
    shares: Float[np.ndarray, "nouns frames H W"],
    peaks: Float[np.ndarray, " nouns"],
    coordinates: Float[np.ndarray, "frames H W r"],
    config: IdentifyConfig,
) -> tuple[Int16[np.ndarray, "nouns frames H W"], Float[np.ndarray, " nouns"]]:
    """Instances as tracks, numbered per noun from 1, and each noun's confidence; ``shares`` and ``peaks`` come from
    `normalised`.

    A track that lasts for ``min_presence`` of the frames is an instance if its evidence, response × contrast × powers
    of area and presence, reaches ``evidence`` of what is typical in the clip. It is of the noun that it answers to
    most, and is drawn in all frames but those in which others hide it. A noun's confidence, from 0.5 to 1, is that of
    its closest decision: a track's distance from the threshold.
    """
    shares = np.asarray(shares, dtype=np.float32)
    noises = noise(shares)
    vectors = np.asarray(coordinates, dtype=np.float32)
    pieces = [
        piece
        for frame in range(shares.shape[1])
        for piece in frame_pieces(frame, shares[:, frame], noises[:, frame], vectors[frame], config)
        if piece.contrast > LEAST_CONTRAST
    ]
    frames = shares.shape[1]
    tracks = [track for track in link_pieces(pieces) if _lasts(track, frames, config.min_presence)]
    labels = np.zeros(shares.shape, dtype=np.int16)
    margins = np.full(len(shares), np.inf)
    if not tracks:
        return labels, _confidence(margins)
    answers = np.maximum([np.mean([piece.responses for piece in track], axis=0) for track in tracks], 1e-6)
    present = _present(answers, peaks, config)
    answers = np.where(present, answers, 0.0)
    evidence = answers.max(axis=1) * _substance(tracks, frames)
    typical = np.quantile(np.repeat(evidence, list(map(len, tracks))), TYPICAL)
    least = max(config.evidence * typical, 1e-12)
    instances = list[tuple[int, int, Sequence[Piece]]]()
    for noun in np.flatnonzero(present):
        mine = answers.argmax(axis=1) == noun
        margins[noun] = np.abs(np.log(np.maximum(evidence[mine], 1e-12) / least)).min(initial=np.inf)
        own = np.flatnonzero(mine & (evidence >= least))
        numbered = [(number, piece) for number, place in enumerate(own, start=1) for piece in tracks[place]]
        labels[noun] = labels_of(numbered, shares.shape[1:])
        instances += [(int(noun), number, tracks[place]) for number, place in enumerate(own, start=1)]
    _fill_gaps(labels, instances)
    return labels, _confidence(margins)


def _fill_gaps(
    labels: Int16[np.ndarray, "nouns frames H W"], instances: Sequence[tuple[int, int, Sequence[Piece]]]
) -> None:
    """Draws an instance into the frames that it wasn't seen in, in place: as in the nearest frame that shows it, at the
    place between the frames before and after. Where others have most of that place it is hidden, and stays away."""
    taken = np.asarray((labels > 0).any(axis=0))
    for noun, number, track in instances:
        seen = [piece.frame for piece in track]
        for frame in sorted(set(range(len(taken))) - set(seen)):
            nearest = min(track, key=lambda piece: abs(piece.frame - frame))
            centre = [np.interp(frame, seen, [piece.centre[axis] for piece in track]) for axis in (0, 1)]
            mask = ndimage.shift(nearest.mask, np.round(centre - nearest.centre), order=0)
            free = mask & ~taken[frame]
            if free.sum() > VISIBLE * nearest.area:
                labels[noun, frame][free] = number
                taken[frame] |= free


def _confidence(margins: Float[np.ndarray, " nouns"]) -> Float[np.ndarray, " nouns"]:
    return np.asarray(1 / (1 + np.exp(-SURE * margins)))


def _lasts(track: Sequence[Piece], frames: int, least: float) -> bool:
    """Whether a track is there in a share of the frames, from its first to its last, and seen in enough of them.

    What is hidden comes back, and counts as there; what only flickers doesn't.
    """
    there = track[-1].frame - track[0].frame + 1
    return there >= least * frames and len(track) >= SEEN * frames


def _substance(tracks: Sequence[list[Piece]], frames: int) -> Float[np.ndarray, " tracks"]:
    """How much of a thing each track is, whatever noun it answers to: contrast, area and presence."""
    contrasts = [piece.contrast for track in tracks for piece in track if np.isfinite(piece.contrast)]
    usual = float(np.median(contrasts)) if contrasts else 1.0
    contrast = [np.mean([min(_finite(piece.contrast, usual) / usual, MOST_CONTRAST) for piece in t]) for t in tracks]
    lengths = np.array(list(map(len, tracks)))
    areas = np.array([np.mean([piece.area for piece in track]) for track in tracks])
    share = np.minimum(areas / np.median(np.repeat(areas, lengths)), 1.0)
    return np.asarray(contrast * share**SCRAP * (lengths / frames) ** FLICKER)


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
