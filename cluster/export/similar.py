"""How alike the clips of an export are: each clip's nearest other one with the same targets, by verdicts' embeddings.

A judge that runs CLIP keeps CLIP's embedding of each clip, any other one a thumbnail's. Clips that are asked for other
counts are never compared: they are meant to differ in just that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from cluster.dataset.store import Store
from cluster.evaluation.judged import Evidence
from cluster.evaluation.rows import verdict_table

ROUNDING = 1e-5  # of a cosine in float32


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Of k clips."""

    judge: str  # whose embeddings were compared
    nearest: Float[
        np.ndarray, " k"
    ]  # cosine with the most similar other clip of the same targets; NaN: none or unknown
    first: Int[np.ndarray, " k"]  # of a clip that is too similar to a kept one, that one's place among the k; else -1


def similarity_of(
    store: Store, evidence: Evidence, places: Int[np.ndarray, " k"], judge: str | None, distinct: float | None
) -> Similarity | None:
    """Of these clips, with CLIP's embeddings where a judge has them, else this judge's; None where there is none.

    Of clips whose cosine is `distinct` or more the first one, in the order of `places`, is kept.
    """
    names = [own.judge for own in evidence.judges if not own.counts]
    names += [own.judge for own in evidence.judges if own.counts and own.judge == judge]
    for name in names:
        vectors = _vectors(store, evidence, name, places)
        if vectors is not None:
            groups = evidence.clips.target[places]
            nearest, first = compared(vectors, groups, distinct)
            if (kept := first < 0).sum() < len(first):
                nearest[kept] = compared(vectors[kept], groups[kept], None)[0]
            return Similarity(judge=name, nearest=nearest, first=first)
    return None


def compared(
    vectors: Float[np.ndarray, "k D"], groups: Int[np.ndarray, " k"], distinct: float | None
) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Of vectors (NaN: unknown) the cosine with the nearest other one of the same group, and which are too near."""
    from sklearn.neighbors import NearestNeighbors  # a second, for those who compare alone

    nearest, first = np.full(len(vectors), np.nan), np.full(len(vectors), -1)
    known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    known = known[np.argsort(groups[known], kind="stable")]
    bounds = np.flatnonzero(np.diff(groups[known])) + 1
    for members in np.split(known, bounds):
        if len(members) < 2:
            continue
        index = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(vectors[members])
        nearest[members] = 1 - index.kneighbors()[0][:, 0]  # without arguments none is its own neighbour
        if distinct is not None:
            close = np.flatnonzero(nearest[members] >= distinct - ROUNDING)
            if len(close):
                reach = 1 - distinct + ROUNDING
                _keep_first(members, close, index.radius_neighbors(vectors[members[close]], reach)[1], first)
    return nearest, first


def _keep_first(members: np.ndarray, close: np.ndarray, near: np.ndarray, first: np.ndarray) -> None:
    """Marks, member by member, those that are near to an earlier one that is kept."""
    for own, neighbours in zip(close.tolist(), near, strict=True):
        kept = [other for other in neighbours.tolist() if other < own and first[members[other]] < 0]
        if kept:
            first[members[own]] = members[min(kept)]


def _vectors(store: Store, evidence: Evidence, judge: str, places: np.ndarray) -> np.ndarray | None:
    """The embeddings of these clips; NaN where there is none, None where there is none at all."""
    table, where = verdict_table(store, judge, evidence.clips, places, ["key", "embedding"])
    lists = table["embedding"].combine_chunks()
    sizes = pc.list_value_length(lists).fill_null(0).to_numpy()
    if not sizes.any():
        return None
    width = int(sizes.max())
    vectors = np.full((len(lists) + 1, width), np.nan, np.float32)  # the last one for clips without a verdict
    vectors[np.flatnonzero(sizes == width)] = (
        lists.filter(pa.array(sizes == width)).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    )
    return vectors[where[places]]
