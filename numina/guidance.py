"""What is added to cross-attention scores so that the refined layout grows (arXiv 2604.08546 §3.4).

A plan is small: a region per row and noun, the nouns' text tokens, and strengths. Every rank builds from it what its
own rows and its own kernel need. All rules apply before the softmax, to the conditional pass only:

    region of the row, for a noun        score of the noun's tokens
    removed                              − s·δ
    added, nothing to copy from          + k·δ
    added copy                           the reference's mean score m, weighted by δ (or + k·δ without ``overwrite``)
    kept, reference                      + κ·δ
    none                                 − β·δ
    any, where another noun is added     − o·δ, on top of the above

Legend: rows = F·H·W latent tokens in (frame, row, column) order, text = text tokens, N heads, D head size, δ = δ(t).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

from numina.config import GuideConfig
from numina.refine import Refinement, Region
from numina.tokens import TokenSpans

PUBLISHED_STEPS = 50  # the schedule that δ(t) is written for


def intensity(step: int, steps: int, config: GuideConfig) -> float:
    """δ(t) at step index ``step`` (from 0) of ``steps``; 0 where guidance is off.

    tanh: ¼·(4 − 3·tanh(t − 25)) with t = step·50/steps, from 1.75 down to 0.25 (published, for 50 steps).
    """
    if step >= config.until * steps - 1e-9:
        return 0.0
    if config.schedule == "constant":
        return config.strength
    t = step * PUBLISHED_STEPS / steps
    return 0.25 * (4.0 - 3.0 * math.tanh(t - PUBLISHED_STEPS / 2))


@dataclass(frozen=True)
class Overwrite:
    """The copies of one noun in one frame, and the reference they take their scores from; rows of one shard."""

    noun: int
    frame: int
    tokens: tuple[int, ...]
    reference: Int64[np.ndarray, " reference"]  # rows, counted from the shard's first
    copies: Int64[np.ndarray, " copies"]


@dataclass(frozen=True)
class GuidancePlan:
    """All a rank needs to guide: what travels to the gang. A few kB once compressed, whatever the model's size."""

    regions: Int8[np.ndarray, "nouns frames H W"]  # of Region
    tokens: tuple[tuple[int, ...], ...]  # per noun, the text tokens whose columns are biased
    config: GuideConfig

    @property
    def rows(self) -> int:
        """Rows of the whole clip, F·H·W."""
        return int(np.prod(self.regions.shape[1:]))

    def bias(
        self,
        delta: float,
        rows: slice,
        text_tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "rows text"]:
        """What is added to the scores q·k/√D of these rows, before the softmax; linear in ``delta``.

        Rows past the clip's end (padding of a sequence shard) get 0.
        """
        regions = self._shard(rows)
        strengths = _strengths(self.config)[regions]
        added = np.isin(regions, (Region.ADD_DISC, Region.ADD_COPY))
        strengths = strengths - self.config.other * (added.any(axis=0) & ~added)
        per_noun = torch.from_numpy(delta * strengths).float().to(device)  # the small form is what is moved
        asked = len(range(*rows.indices(max(self.rows, rows.stop or 0))))
        bias = torch.zeros(asked, text_tokens, device=device)
        for values, tokens in zip(per_noun, self.tokens, strict=True):
            bias[: len(values), list(tokens)] += values[:, None]
        return bias.to(dtype)

    def overwrites(self, rows: slice) -> tuple[Overwrite, ...]:
        """Where scores are replaced, not biased. Every shard gets the same sequence, some with no rows of its own."""
        if self.config.overwrite == "none":
            return ()
        found = []
        shard = range(*rows.indices(self.rows))
        per_frame = self.rows // self.regions.shape[1]
        for noun, frame in np.argwhere((self.regions == Region.ADD_COPY).any(axis=(2, 3))).tolist():
            of_frame = self.regions[noun, frame].ravel()
            reference, copies = (
                np.flatnonzero(of_frame == region) + frame * per_frame - shard.start
                for region in (Region.REFERENCE, Region.ADD_COPY)
            )
            found.append(Overwrite(noun, frame, self.tokens[noun], _within(reference, shard), _within(copies, shard)))
        return tuple(found)

    def _shard(self, rows: slice) -> Int8[np.ndarray, "nouns rows"]:
        if rows.step not in (None, 1):
            raise ValueError(f"rows = {rows}, but a shard is a contiguous run: use a step of 1")
        return self.regions.reshape(len(self.regions), -1)[:, rows]


def plan_guidance(refinement: Refinement, spans: Sequence[TokenSpans], config: GuideConfig) -> GuidancePlan:
    """The plan for a refined layout; ``spans`` are the nouns' text tokens, in the layout's order."""
    tokens = tuple(getattr(span, config.tokens) for span in spans)
    if len(tokens) != len(refinement.regions):
        raise ValueError(f"{len(tokens)} token spans for {len(refinement.regions)} nouns: give one for each")
    return GuidancePlan(regions=refinement.regions, tokens=tokens, config=config)


def reference_sums(
    values: Float[Tensor, "heads rows features"], overwrites: Sequence[Overwrite]
) -> tuple[Float[Tensor, "overwrites heads features"], Float[Tensor, " overwrites"]]:
    """Sum of ``values`` over each reference's rows in this shard, in float32, and how many rows that were.

    Shards all-reduce both and divide: the mean of the whole reference. ``values`` are scores [heads, rows, text], or
    queries [heads, rows, D]: a mean score is the mean query's score, and a query is smaller.
    """
    sums = values.new_zeros(len(overwrites), values.shape[0], values.shape[2], dtype=torch.float32)
    for i, overwrite in enumerate(overwrites):
        sums[i] = values[:, torch.from_numpy(overwrite.reference).to(values.device)].float().sum(dim=1)
    counts = torch.tensor([float(len(overwrite.reference)) for overwrite in overwrites], device=values.device)
    return sums, counts


def overwrite_scores(
    scores: Float[Tensor, "heads rows text"],
    means: Float[Tensor, "overwrites heads text"],
    overwrites: Sequence[Overwrite],
    delta: float,
) -> Float[Tensor, "heads rows text"]:
    """Scores q·k/√D with those of the copies, on the noun's tokens, replaced by their reference's weighted mean.

    The publication weights a mean m by δ as m·δ, which pushes a negative m the wrong way: down while δ > 1 should
    strengthen, up while δ < 1 should weaken. Here a negative m becomes m/δ: a larger δ is always a larger score.
    With δ = 0 guidance is off, and nothing changes.
    """
    if delta == 0.0:
        return scores
    scores = scores.clone()
    for mean, overwrite in zip(means, overwrites, strict=True):
        columns = torch.tensor(overwrite.tokens, device=scores.device)
        rows = torch.from_numpy(overwrite.copies).to(scores.device)
        weighted = mean[:, columns]
        weighted = torch.where(weighted >= 0, weighted * delta, weighted / delta).to(scores.dtype)
        scores[:, rows[:, None], columns] = weighted[:, None]
    return scores


def _strengths(config: GuideConfig) -> Float[np.ndarray, " regions"]:
    """What δ is multiplied by, per region."""
    strengths = np.zeros(len(Region))
    strengths[Region.NONE] = -config.elsewhere
    strengths[Region.KEEP] = strengths[Region.REFERENCE] = config.keep
    strengths[Region.REMOVE] = -config.remove
    strengths[Region.ADD_DISC] = config.add
    strengths[Region.ADD_COPY] = 0.0 if config.overwrite != "none" else config.add  # an overwritten score takes no bias
    return strengths


def _within(rows: Int64[np.ndarray, " n"], shard: range) -> Int64[np.ndarray, " m"]:
    return rows[(rows >= 0) & (rows < len(shard))]
