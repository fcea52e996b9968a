"""Which prompts of a large output a report has pages of; its sums are of all clips."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from cluster.evaluation.clips import Clips
from cluster.evaluation.judged import Judged

SAMPLED = 10_000  # clips that a report shows at most, unless another number is asked for
By = Literal["random", "worst", "newest", "noun"]
_TOLD = {
    "random": "chosen at random",
    "worst": "the prompts with the lowest CountAcc by {judge}",
    "newest": "the prompts that were finished last",
    "noun": "chosen at random, each noun in turn",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The clips that a report shows."""

    places: Int[np.ndarray, " k"]  # among all clips, ascending
    told: str | None  # how they were chosen; None where all are shown


def chosen(clips: Clips, judged: Judged, most: int, by: By) -> Sample:
    """Whole prompts, about `most` clips of them (at least one prompt; 0: all), worst by this judge."""
    if not most or len(clips) <= most:
        return Sample(places=np.arange(len(clips)), told=None)
    sizes = np.bincount(clips.page)
    order = _ORDERS[by](clips, judged)
    fitting = int(np.searchsorted(np.cumsum(sizes[order]), most, side="right"))
    shown = np.zeros(len(sizes), bool)
    shown[order[: max(1, fitting)]] = True
    places = np.flatnonzero(shown[clips.page])
    how = _TOLD[by].format(judge=judged.judge or "no judge")
    return Sample(
        places=places,
        told=f"Sums and plots are of all {len(clips):,} clips. The pages show {len(places):,} clips"
        f" of {int(shown.sum()):,} prompts: {how}.",
    )


def _at_random(clips: Clips, judged: Judged) -> np.ndarray:
    """The same prompts every time."""
    return np.random.default_rng(0).permutation(int(clips.page.max()) + 1)


def _worst(clips: Clips, judged: Judged) -> np.ndarray:
    """By the mean over a prompt's judged clips; prompts without any come last."""
    there = ~np.isnan(judged.accuracy)
    prompts = int(clips.page.max()) + 1
    sums = np.bincount(clips.page[there], weights=judged.accuracy[there], minlength=prompts)
    times = np.bincount(clips.page[there], minlength=prompts)
    return np.argsort(np.where(times > 0, sums / np.maximum(times, 1), np.inf), kind="stable")


def _newest(clips: Clips, judged: Judged) -> np.ndarray:
    last = np.zeros(int(clips.page.max()) + 1, np.int64)
    np.maximum.at(last, clips.page, clips.committed)
    return np.argsort(-last, kind="stable")


def _by_noun(clips: Clips, judged: Judged) -> np.ndarray:
    """The first prompt of every noun, then the second one; among prompts without a noun likewise."""
    shuffled = _at_random(clips, judged)
    place = np.empty(len(shuffled), np.int64)
    place[shuffled] = np.arange(len(shuffled))
    nouns = np.concatenate([clips.noun, np.full(int(clips.plain.sum()), len(clips.nouns))])
    prompts = np.concatenate([np.repeat(clips.page, clips.targets), clips.page[clips.plain]])
    pairs = np.unique(np.stack([nouns, place[prompts]]), axis=1)  # of each noun its prompts, in their order
    starts = np.flatnonzero(np.diff(pairs[0], prepend=-1))
    turn = np.arange(pairs.shape[1]) - np.repeat(starts, np.diff(np.append(starts, pairs.shape[1])))
    first = np.full(len(shuffled), len(shuffled))
    np.minimum.at(first, pairs[1], turn)
    return shuffled[np.argsort(first, kind="stable")]


_ORDERS = {"random": _at_random, "worst": _worst, "newest": _newest, "noun": _by_noun}
