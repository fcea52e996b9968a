"""Judges beside the gangs, as Ray actors: they judge what is committed, and walk a verified sample's attempts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import torch

from cluster.evaluation.verdicts import check_settings, judge_rows
from cluster.workers.member import AloneSpec, Arrival, Member
from cluster.workers.tasks import store_of
from pipelines.judges import Judge, JudgeConfig, load_judge

if TYPE_CHECKING:
    from cluster.workers.tasks import Output


@dataclass(frozen=True)
class Chain:
    """A verified sample: the keys of all attempts that it may have, and the one that was made last."""

    keys: tuple[str, ...]
    attempt: int


@dataclass(frozen=True)
class Ruling:
    """What becomes of a chain: `attempt` was accepted, or is the last one that was looked at."""

    attempt: int
    accepted: bool
    accuracy: float  # of that attempt, CountAcc


@dataclass(frozen=True, kw_only=True)
class JudgeSpec(AloneSpec):
    """What a judge's process is made of."""

    judge: JudgeConfig
    output: Output
    accept: float  # CountAcc from which a clip is accepted

    @property
    def actor(self) -> type[Member]:
        return JudgeActor


class JudgeActor(Member):
    """One judge, and a hand on the output."""

    spec: JudgeSpec
    judge: Judge | None = None

    def load(self, first: Arrival) -> dict[str, float]:
        began = time.perf_counter()
        if not self.spec.gpus:
            torch.set_num_threads(self.spec.cpus)
        self.judge = load_judge(self.spec.judge)
        return {"load": time.perf_counter() - began}

    @ray.method(num_returns=2)
    def rule(self, chains: Sequence[Chain]) -> tuple[None, list[Ruling]]:
        """Judges the chains' attempts that are there, from the given one on, until one is accepted."""
        return None, [self._ruling(chain) for chain in chains]

    def _ruling(self, chain: Chain) -> Ruling:
        store, attempt, accuracy = store_of(self.spec.output), chain.attempt, 0.0
        while attempt < len(chain.keys) and (row := store.row(chain.keys[attempt])) is not None:
            accuracy = self._accuracy(row)
            if accuracy >= self.spec.accept:
                return Ruling(attempt, True, accuracy)
            attempt += 1
        return Ruling(attempt - 1, False, accuracy)

    def _accuracy(self, row: dict[str, Any]) -> float:
        """By the verdict that is there, or by a new one."""
        assert self.judge is not None, "load() comes first"
        store, name = store_of(self.spec.output), self.spec.judge.name
        verdict = store.evaluation(name, row["key"])
        if verdict is None:
            [verdict] = judge_rows(store, self.judge, [row])
        else:
            check_settings(store, self.judge, [verdict])
        return float(verdict["count_accuracy"] or 0.0)
