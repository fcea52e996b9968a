"""Judges beside the gangs, as Ray actors: they judge what is committed, and walk a verified sample's attempts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import torch

from cluster.evaluation.verdicts import check_settings, judge_rows
from cluster.job.acceptance import Acceptance, Chain, Ruling
from cluster.workers.member import AloneSpec, Arrival, Member
from cluster.workers.tasks import store_of
from pipelines.checkpoints.hub import is_repository
from pipelines.judges import Judge, JudgeConfig, inspect_judge, load_judge

if TYPE_CHECKING:
    from cluster.workers.tasks import Output


@dataclass(frozen=True, kw_only=True)
class JudgeSpec(AloneSpec):
    """What a judge's process is made of."""

    judge: JudgeConfig
    output: Output
    acceptance: Acceptance

    @property
    def actor(self) -> type[Member]:
        return JudgeActor

    @property
    def fetches(self) -> bool:
        return is_repository(self.judge.path or "")


class JudgeActor(Member):
    """One judge, and a hand on the output."""

    spec: JudgeSpec
    judge: Judge | None = None

    def download(self) -> None:
        inspect_judge(self.spec.judge)

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
        store, attempt = store_of(self.spec.output), chain.attempt
        row = store.row(chain.keys[attempt])
        while row is not None:
            accuracy = self._accuracy(row)
            ruling = Ruling(attempt, self.spec.acceptance.decide(attempt, accuracy), accuracy)
            if ruling.decision.settled:
                return ruling
            attempt += 1
            row = store.row(chain.keys[attempt])
        return ruling

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
