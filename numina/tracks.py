"""Linking one noun's instances over frames, so that a clip's count is one decision and not one per frame.

Legend: an *instance* is one label in one frame, a *track* the same thing in successive frames. F frames, H W the grid.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int16
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from numina.config import IdentifyConfig

Mask = Bool[np.ndarray, "H W"]
Labels = Int16[np.ndarray, "frames H W"]

_NEVER = 1e6  # cost of a pair that is too far apart to be the same instance
_OVERLAP = 1 / 3  # share of the link distance that a full overlap is worth: one token of 3, and it scales alike


@dataclass
class _Track:
    masks: dict[int, Mask] = field(default_factory=dict)  # by frame

    @property
    def last(self) -> Mask:
        return self.masks[max(self.masks)]


def link_instances(labels: Labels, taken: Bool[np.ndarray, "frames H W"], config: IdentifyConfig) -> Labels:
    """Renumber a noun's instances so that a label is one thing over the whole clip.

    Tracks seen in fewer than ``min_presence`` of the frames are dropped; in frames that miss a track, it is put where
    its nearest frame has it, except on tokens ``taken`` by other nouns. Tracks are numbered by first appearance.
    """
    frames = len(labels)
    tracks = _build_tracks(labels, config.link_distance)
    kept = [track for track in tracks if len(track.masks) >= config.min_presence * frames]
    linked = np.zeros_like(labels)
    for number, track in enumerate(kept, start=1):
        for frame, mask in track.masks.items():
            linked[frame][mask] = number
    for number, track in enumerate(kept, start=1):
        for frame in sorted(set(range(frames)) - set(track.masks)):
            _fill_gap(linked[frame], taken[frame], number, track, frame)
    return linked


def _build_tracks(labels: Labels, link_distance: float) -> list[_Track]:
    """Match each frame's instances with the tracks so far; who finds no partner starts a track of its own."""
    tracks: list[_Track] = []
    for frame, image in enumerate(labels):
        masks = [image == label for label in np.unique(image) if label > 0]
        costs = _link_costs([track.last for track in tracks], masks, link_distance)
        partners = {
            int(j): tracks[i] for i, j in zip(*linear_sum_assignment(costs), strict=True) if costs[i, j] < _NEVER
        }
        for j, mask in enumerate(masks):
            if j not in partners:
                tracks.append(partners.setdefault(j, _Track()))
            partners[j].masks[frame] = mask
    return tracks


def _link_costs(before: list[Mask], now: list[Mask], link_distance: float) -> Float[np.ndarray, "before now"]:
    """Cost of each pair being the same instance: centroid distance in tokens, less up to ⅓ link distance for overlap.

    All pairs at once: where responses are noise there are a hundred pieces in a frame, and thousands of tracks.
    """
    if not before or not now:
        return np.full((len(before), len(now)), _NEVER)
    old, new = np.stack(before), np.stack(now)
    shared = np.tensordot(old.astype(np.float32), new.astype(np.float32), axes=((1, 2), (1, 2)))  # counts: exact
    areas = np.add.outer(old.sum(axis=(1, 2)), new.sum(axis=(1, 2)))
    overlap = shared / (areas - shared)
    distance = cdist(_centroids(old), _centroids(new))
    near = (distance <= link_distance) | (overlap > 0.5)
    return np.where(near, distance - _OVERLAP * link_distance * overlap, _NEVER)


def _fill_gap(image: Int16[np.ndarray, "H W"], taken: Mask, number: int, track: _Track, frame: int) -> None:
    """Put a track into a frame that misses it, where its nearest frame has it.

    Two instances that touch are one piece for a while, taken by one of the two tracks: the tokens of that piece nearer
    to the missing one's place are its own.
    """
    nearest = min(track.masks, key=lambda seen: (abs(seen - frame), seen))
    mask = track.masks[nearest]
    place = centroid(mask)
    gained = mask & (image == 0) & ~taken
    for owner in np.unique(image[mask]):
        if owner > 0:
            held = np.argwhere(image == owner)
            nearer = np.linalg.norm(held - place, axis=1) < np.linalg.norm(held - held.mean(axis=0), axis=1)
            if 0 < nearer.sum() < len(held):
                gained[tuple(held[nearer].T)] = True
    image[gained] = number


def centroid(mask: Mask) -> Float[np.ndarray, "2"]:
    """Mean (row, column) of a mask's tokens."""
    return np.asarray(np.argwhere(mask).mean(axis=0))


def _centroids(masks: Bool[np.ndarray, "masks H W"]) -> Float[np.ndarray, "masks 2"]:
    rows, columns = masks.sum(axis=2), masks.sum(axis=1)
    moments = np.stack([rows @ np.arange(rows.shape[1]), columns @ np.arange(columns.shape[1])], axis=1)
    return np.asarray(moments / rows.sum(axis=1)[:, None])
