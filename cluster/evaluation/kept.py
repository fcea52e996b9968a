"""Which clip of every sample a strategy keeps, as arrays: `cluster.evaluation.outcomes` for outputs of any size.

A test holds both to the same clips, verdicts and costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from cluster.evaluation.clips import Clips
from cluster.evaluation.outcomes import strategies_of
from cluster.job.acceptance import Acceptance
from cluster.job.strategy import ACCEPTED, BEST, Strategy

if TYPE_CHECKING:
    from cluster.dataset.store import Store


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a strategy made of k samples, in the order of `Outcome.sample`."""

    strategy: str
    clip: Int[np.ndarray, " k"]  # the one that the strategy puts into a dataset, a place among the clips
    accuracy: Float[np.ndarray, " k"]  # CountAcc of it; NaN where it isn't judged, or no count is asked for
    accepted: Bool[np.ndarray, " k"]
    rejected: Bool[np.ndarray, " k"]  # judged, and neither it nor an earlier attempt was accepted
    cost: Float[np.ndarray, " k"]  # rank-seconds of all attempts that count
    attempts: Int[np.ndarray, " k"]  # that count
    plain: Bool[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def decided(self) -> Bool[np.ndarray, " k"]:
        """Whether it is known that the clip is good enough or not."""
        return self.accepted | self.rejected


def strategies_made(store: Store, clips: Clips) -> list[Strategy]:
    """The strategies that an output's runs asked for, and those that its clips say of themselves."""
    return strategies_of(store, [{"strategy": base} for base in clips.strategies])


def kept_by(
    strategy: Strategy,
    clips: Clips,
    accuracy: Float[np.ndarray, " n"],
    failed: Bool[np.ndarray, " n"],
    acceptance: Acceptance,
) -> Kept:
    """What a strategy made of every sample, by the CountAcc of all clips (NaN: not judged) and those that a judge
    could not see."""
    tries, group, place, firsts = _tries(strategy, clips)
    starts = np.flatnonzero(place == 0)
    scores = accuracy[tries]
    attempts = np.diff(np.append(starts, len(tries)))
    if strategy.select == ACCEPTED and len(starts):  # others may have been made by a seed search
        good = np.where(scores >= acceptance.accept, place, len(tries))
        attempts = np.minimum(attempts, np.minimum.reduceat(good, starts) + 1)
    inside = place < attempts[group]
    best = np.zeros(len(starts), np.int64)
    if strategy.select in (BEST, ACCEPTED) and len(starts):
        valid = inside & ~np.isnan(scores)
        most = np.maximum.reduceat(np.where(valid, scores, -np.inf), starts)
        found = np.minimum.reduceat(np.where(valid & (scores == most[group]), place, len(tries)), starts)
        best = np.where(found < len(tries), found, 0)
    clip = tries[starts + best]
    cost = np.bincount(group[inside], weights=clips.cost[tries[inside]], minlength=len(starts))
    order = np.lexsort((firsts, clips.order[clip]))
    clip, plain = clip[order], clips.plain[clip[order]]
    own = accuracy[clip]
    good = own >= acceptance.accept  # not of NaN
    return Kept(
        strategy=strategy.name,
        clip=clip,
        accuracy=own,
        accepted=np.where(plain, ~failed[clip], good),
        rejected=np.where(plain, failed[clip], ~good & ~np.isnan(own)),
        cost=cost[order],
        attempts=attempts[order],
        plain=plain,
    )


def _tries(strategy: Strategy, clips: Clips) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A strategy's clips, sample by sample and attempt by attempt; of each its sample's number and its place among
    that one's; of each sample the first of its clips, by key."""
    strengths = np.array(strategy.strengths)
    base = clips.strategies.index(strategy.base) if strategy.base in clips.strategies else -1
    own = np.flatnonzero(clips.strategy == base)
    attempt = clips.attempt[own]
    asked = (attempt >= 0) & (attempt < len(strengths))
    asked[asked] = clips.strength[own[asked]] == strengths[attempt[asked]]
    own = own[asked]
    chain, attempt = clips.chain[own], clips.attempt[own]
    order = np.lexsort((own, attempt, chain))
    own, chain, attempt = own[order], chain[order], attempt[order]
    begins = np.flatnonzero(np.diff(chain, prepend=-1))
    firsts = np.minimum.reduceat(own, begins) if len(own) else own
    last = np.append((np.diff(chain) != 0) | (np.diff(attempt) != 0), True)[: len(own)]  # of one attempt's clips
    own, chain = own[last], chain[last]
    group = np.cumsum(np.diff(chain, prepend=-1) != 0) - 1
    begins = np.flatnonzero(np.diff(chain, prepend=-1))
    return own, group, np.arange(len(own)) - np.repeat(begins, np.diff(np.append(begins, len(own)))), firsts
