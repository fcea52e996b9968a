"""How balanced an export is over nouns and counts, and how much its clips differ: a line of the card for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FAR = 0.05  # distance above which a clip is distinct: a cosine below 0.95
NOUNS_SHOWN = 30


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """The clips that have a noun or a count in common."""

    name: str
    targets: int
    share: float  # of all targets
    distance: float | None  # mean of 1 − cosine with the nearest clip of the same targets; None where none is known
    distinct: float | None  # share of clips whose distance is above FAR
    far: float = FAR


def diversity_of(rows: pa.Table) -> list[Diversity]:
    """The commonest nouns, then all counts in ascending order; empty for rows without targets."""
    targets = rows["targets"].combine_chunks()
    sizes = pc.list_value_length(targets).fill_null(0).to_numpy()
    if not sizes.sum():
        return []
    similarity = rows["nearest_similarity"].fill_null(np.nan).to_numpy()
    distance = 1 - np.repeat(similarity, sizes)
    flat = targets.flatten()
    nouns = pc.struct_field(flat, "noun").to_numpy(zero_copy_only=False).astype(str)
    counts = pc.struct_field(flat, "count").to_numpy(zero_copy_only=False)
    by_noun = sorted(_lines(nouns, distance), key=lambda own: (-own.targets, own.name))[:NOUNS_SHOWN]
    return [*by_noun, *_lines(counts, distance)]


def _lines(values: np.ndarray, distance: np.ndarray) -> list[Diversity]:
    found = []
    for value in np.unique(values).tolist():
        own = distance[values == value]
        known = own[~np.isnan(own)]
        found.append(
            Diversity(
                name=str(value),
                targets=len(own),
                share=len(own) / len(values),
                distance=float(known.mean()) if len(known) else None,
                distinct=float((known > FAR).mean()) if len(known) else None,
            )
        )
    return found
