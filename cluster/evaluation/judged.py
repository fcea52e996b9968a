"""One judge's verdicts on an output's clips as arrays, and each clip's measures by them (method.md §7).

Legend: n clips, m their targets (see `Clips`), L judged frames. A clip that the judge couldn't see has the measures of
one in which nothing was detected, as in `numina.metrics`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from cluster.evaluation.clips import Clips, read_clips, spread
from numina import metrics

if TYPE_CHECKING:
    from cluster.dataset.store import Store

COLUMNS = ("key", "detected", "count_accuracy", "problem", "clip_score", "temporal_consistency", "settings")
MEASURES = (
    *("count_accuracy", "within_one_accuracy", "all_frames_exact"),
    *("mean_absolute_error", "signed_bias", "count_stability"),
)


@dataclass(kw_only=True)
class Judged:
    """What a judge said; arrays are of all clips, known only where `judged`."""

    judge: str
    judged: Bool[np.ndarray, " n"]  # there is a verdict
    seen: Bool[np.ndarray, " n"]  # with detected counts
    accuracy: Float[np.ndarray, " n"]  # NaN where nothing was counted
    clip_score: Float[np.ndarray, " n"]  # NaN where it wasn't measured
    temporal_consistency: Float[np.ndarray, " n"]
    whole: dict[str, Float[np.ndarray, " n"]]  # MEASURES of clips
    single: dict[str, Float[np.ndarray, " m"]]  # MEASURES of each target alone
    commonest: Int[np.ndarray, " m"]  # detected count, the first of equals; -1 where no frame was judged
    problems: dict[int, str] = field(default_factory=dict)  # by clip
    counts: bool = False  # whether the judge is one that counts
    settings: str | None = None  # of the first verdict by key
    every: Int[np.ndarray, " n"]  # the judge looked at every k-th frame
    frames: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # targets, their counts [k, L]

    @property
    def failed(self) -> Bool[np.ndarray, " n"]:
        """Whether a video was missing or unreadable."""
        found = np.zeros(len(self.judged), bool)
        found[list(self.problems)] = True
        return found


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An output's clips and all verdicts on them."""

    clips: Clips
    judges: list[Judged]

    def by(self, judge: str) -> Judged | None:
        """What this judge said; None where there is no verdict of it."""
        return next((own for own in self.judges if own.judge == judge), None)


def read_evidence(store: Store) -> Evidence:
    """All rows and verdicts of an output, with what several judges detected in every frame."""
    clips, judges = read_clips(store), store.judges()
    several = len(judges) > 1
    return Evidence(clips=clips, judges=[read_judged(store, judge, clips, keep_frames=several) for judge in judges])


def read_judged(store: Store, judge: str, clips: Clips, *, keep_frames: bool = False) -> Judged:
    """All verdicts of a judge on these clips; with `keep_frames` also what it detected in every frame.

    Raises ValueError for a verdict on other nouns than the clip's.
    """
    own = nothing_judged(judge, clips)
    first: bytes | None = None
    for table in store.map_evaluations(judge, COLUMNS, lambda table: table):
        if len(table) and (first is None or pc.min(table["key"]).as_py().encode() < first):
            place = pc.index(table["key"], pc.min(table["key"])).as_py()
            first, own.settings = table["key"][place].as_py().encode(), table["settings"][place].as_py()
        own.counts |= table["count_accuracy"].null_count < len(table)
        places = clips.places(table["key"])
        known = places >= 0
        _note(own, table.filter(pa.array(known)), places[known], clips, keep_frames)
    return own


def nothing_judged(judge: str, clips: Clips) -> Judged:
    """What is known before there is any verdict."""
    n, m = len(clips), len(clips.asked)
    sums = np.bincount(np.repeat(np.arange(n), clips.targets), weights=clips.asked, minlength=n)
    means = sums / np.maximum(clips.targets, 1)
    errors = {"mean_absolute_error": 1.0, "signed_bias": -1.0}
    return Judged(
        judge=judge,
        judged=np.zeros(n, bool),
        seen=np.zeros(n, bool),
        accuracy=np.full(n, np.nan),
        clip_score=np.full(n, np.nan),
        temporal_consistency=np.full(n, np.nan),
        whole={name: errors.get(name, 0.0) * means for name in MEASURES},
        single={name: errors.get(name, 0.0) * clips.asked for name in MEASURES},
        commonest=np.full(m, -1),
        every=np.ones(n, np.int64),
    )


def _note(own: Judged, table: pa.Table, places: np.ndarray, clips: Clips, keep_frames: bool) -> None:
    own.judged[places] = True
    for name, values in (
        ("accuracy", table["count_accuracy"]),
        ("clip_score", table["clip_score"]),
        ("temporal_consistency", table["temporal_consistency"]),
    ):
        getattr(own, name)[places] = values.fill_null(np.nan).to_numpy()
    settings = table["settings"].fill_null("{}").combine_chunks().dictionary_encode()
    every = np.array([int(json.loads(text or "{}").get("every", 1)) for text in settings.dictionary.to_pylist()])
    own.every[places] = every[settings.indices.to_numpy()] if len(table) else 1
    for place, problem in zip(places.tolist(), table["problem"].to_pylist(), strict=True):
        own.problems.pop(place, None)
        if problem:
            own.problems[place] = problem
    sizes = pc.list_value_length(table["detected"]).fill_null(0).to_numpy()
    own.seen[places] = sizes > 0
    counted = (sizes > 0) & (clips.targets[places] > 0)
    if counted.any():
        _measure(own, table["detected"].filter(pa.array(counted)).combine_chunks(), places[counted], clips, keep_frames)


def _measure(own: Judged, detected: pa.ListArray, places: np.ndarray, clips: Clips, keep_frames: bool) -> None:
    """Takes in the detected counts of clips that have targets."""
    sizes = clips.targets[places]
    found = pc.list_value_length(detected).to_numpy()
    if (wrong := np.flatnonzero(found != sizes)).size:
        raise ValueError(
            f"the verdict of {own.judge!r} on {clips.texts(places[wrong[:1]])[0]} has {found[wrong[0]]} nouns, its clip"
            f" {sizes[wrong[0]]}: judge the output again under another name"
        )
    frames = pc.struct_field(detected.flatten(), "frames")
    targets = spread(clips.starts[places], sizes)
    clip = np.repeat(np.arange(len(places)), sizes)
    length = np.zeros(len(places), np.int64)
    sums = {name: np.zeros(len(places)) for name in ("exact", "near", "off", "more", "stable")}
    for some, counts in _by_length(frames):
        L = counts.shape[1]
        errors = counts - clips.asked[targets[some], None]
        told = {
            "exact": (errors == 0).sum(axis=1),
            "near": (np.abs(errors) <= 1).sum(axis=1),
            "off": np.abs(errors).sum(axis=1),
            "more": errors.sum(axis=1),
            "stable": (counts[:, 1:] == counts[:, :-1]).sum(axis=1),
        }
        _put(own.single, targets[some], told, np.full(len(some), L), np.ones(len(some), np.int64))
        for name, values in told.items():
            sums[name] += np.bincount(clip[some], weights=values, minlength=len(places))
        length[clip[some]] = L
        own.commonest[targets[some]] = _commonest(counts)
        if keep_frames:
            own.frames.append((targets[some], counts.astype(np.int16)))
    judged = length > 0
    _put(own.whole, places[judged], {name: of[judged] for name, of in sums.items()}, length[judged], sizes[judged])


def _put(
    into: dict[str, np.ndarray], places: np.ndarray, sums: dict[str, np.ndarray], L: np.ndarray, k: np.ndarray
) -> None:
    """MEASURES of clips of k targets with L judged frames each."""
    into["count_accuracy"][places] = sums["exact"] / (L * k)
    into["within_one_accuracy"][places] = sums["near"] / (L * k)
    into["all_frames_exact"][places] = sums["exact"] == L * k
    into["mean_absolute_error"][places] = sums["off"] / (L * k)
    into["signed_bias"][places] = sums["more"] / (L * k)
    into["count_stability"][places] = np.where(L > 1, sums["stable"] / np.maximum((L - 1) * k, 1), 1.0)


def _by_length(frames: pa.ListArray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Targets with as many judged frames each, at least one, and their counts [targets, L]."""
    lengths = pc.list_value_length(frames).fill_null(0).to_numpy()
    values = frames.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    for length in np.unique(lengths[lengths > 0]).tolist():
        some = np.flatnonzero(lengths == length)
        yield some, values[starts[some, None] + np.arange(length)]


def _commonest(counts: np.ndarray) -> np.ndarray:
    """The commonest value of each row, of equals the one that comes first."""
    values = np.unique(counts)
    times = np.stack([(counts == value).sum(axis=1) for value in values])
    most = times.max(axis=0)
    found = values[times.argmax(axis=0)]
    for row in np.flatnonzero((times == most).sum(axis=0) > 1).tolist():
        found[row] = Counter(counts[row].tolist()).most_common(1)[0][0]
    return found


def agreement(one: Judged, other: Judged, clips: Clips) -> float | None:
    """The mean of `numina.metrics.agreement` over the clips in which both judges counted; None where there is none.

    Both must have been read with their frames.
    """
    n = len(clips)
    of = np.repeat(np.arange(n), clips.targets)
    equal, size = np.zeros(n), np.zeros(n)
    for ours, counts in one.frames:
        for theirs, others in other.frames:
            targets, left, right = np.intersect1d(ours, theirs, return_indices=True)
            clip = of[targets]
            pairs = np.stack([one.every[clip], other.every[clip]], axis=1)
            for pair in np.unique(pairs, axis=0):
                some = (pairs == pair).all(axis=1)
                step = int(np.lcm(*pair))
                first, second = counts[left[some], :: step // pair[0]], others[right[some], :: step // pair[1]]
                if first.shape != second.shape:
                    metrics.agreement(counts[left[some][:1]].T, others[right[some][:1]].T, *map(int, pair))
                equal += np.bincount(clip[some], weights=(first == second).sum(axis=1), minlength=n)
                size += np.bincount(clip[some], minlength=n) * first.shape[1]
    both = size > 0
    return float(np.mean(equal[both] / size[both])) if both.any() else None
