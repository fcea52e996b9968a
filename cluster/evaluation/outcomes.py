"""Outcomes: which clips a strategy made of each prompt, which one it keeps, whether that is accepted, and the cost.

rows + verdicts ─► attempts of each sample ─► Outcome per strategy and sample
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.job.acceptance import Acceptance
from cluster.job.strategy import ACCEPTED, BEST, Strategy, strategy_of
from numina.stage import BESIDE_GANGS

if TYPE_CHECKING:
    from cluster.dataset.store import Store

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a strategy made of one sample of a prompt."""

    strategy: str
    rows: tuple[Row, ...]  # its attempts that count, in their order
    kept: Row  # the one that the strategy puts into a dataset
    accuracy: float | None  # CountAcc of the kept one; None where it isn't judged, or no count is asked for
    accepted: bool | None  # whether that is enough; None where it isn't judged; a plain one is, where it can be read
    cost: float  # rank-seconds of all its attempts: GPU-seconds on GPUs

    @property
    def plain(self) -> bool:
        """Whether the prompt asks for no count: the clip is in no figure about counts."""
        return not self.kept["targets"]

    @property
    def sample(self) -> tuple[Any, ...]:
        """What the same sample of the same prompt has in common under all strategies, and in other datasets."""
        return sample_of(self.kept)


def strategies_of(store: Store, rows: Sequence[Row] | None = None) -> list[Strategy]:
    """The strategies that an output's runs asked for, the first run's first; else what its rows say of themselves."""
    asked = {
        record["name"]: strategy_of(record) for run in store.runs() for record in run["info"].get("strategies", [])
    }
    if rows is not None:
        named = {strategy.base for strategy in asked.values()}
        for base in sorted({row["strategy"] for row in rows} - named, key=lambda base: (base != "baseline", base)):
            asked[base] = Strategy(name=base, base=base)
    return list(asked.values())


def outcomes(
    strategy: Strategy,
    rows: Iterable[Row],
    verdicts: Mapping[str, Row],
    acceptance: Acceptance = Acceptance(),  # noqa: B008 - frozen
) -> list[Outcome]:
    """What a strategy made of every sample, of an output's rows (any strategies') and a judge's verdicts by key.

    Samples of which it has no clip yet aren't there.
    """
    places = {(attempt, strength): attempt for attempt, strength in enumerate(strategy.strengths)}
    chains: dict[str, dict[int, Row]] = {}
    for row in rows:
        place = places.get((row["attempt"] or 0, 1.0 if row["strength"] is None else row["strength"]))
        if row["strategy"] == strategy.base and place is not None:
            chains.setdefault(row["chain"] or row["key"], {})[place] = row
    found = [_outcome(strategy, [tries[n] for n in sorted(tries)], verdicts, acceptance) for tries in chains.values()]
    return sorted(found, key=lambda outcome: tuple(map(str, outcome.sample)))


def sample_of(row: Row) -> tuple[Any, ...]:
    """Id, prompt as it was asked, targets and number of the sample that a row is a clip of."""
    targets = tuple((target["noun"], target["count"]) for target in row["targets"])
    return row["id"], row["original_prompt"] or row["prompt"], targets, row["sample"] or 0


def rank_seconds(row: Row) -> float:
    """What a clip cost: the seconds that its ranks were busy, GPU-seconds on GPUs; of a row that doesn't say so (it is
    older), what its timings come to, the text encoder's included."""
    for kept in (row.get("rank_seconds"), row["gpu_seconds"]):
        if kept is not None:
            return float(kept)
    busy = sum(seconds for stage, seconds in (row["timings"] or {}).items() if seconds and stage not in BESIDE_GANGS)
    return float(busy * (row["ulysses"] or 1) * (row["ring"] or 1) * (row["cfg"] or 1))


def _outcome(strategy: Strategy, tries: Sequence[Row], verdicts: Mapping[str, Row], acceptance: Acceptance) -> Outcome:
    scores = [verdicts[row["key"]]["count_accuracy"] if row["key"] in verdicts else None for row in tries]
    counted = len(tries)
    if strategy.select == ACCEPTED:  # others may have been made by a seed search
        good = acceptance.first_accepted(scores)
        counted = counted if good is None else good + 1
    judged = [place for place in range(counted) if scores[place] is not None]
    best = max(judged, key=lambda place: (scores[place], -place), default=0)
    kept = best if strategy.select in (BEST, ACCEPTED) else 0
    accuracy = scores[kept]
    accepted = None if accuracy is None else acceptance.accepts(accuracy)
    if not tries[kept]["targets"]:
        accepted = not verdicts.get(tries[kept]["key"], {}).get("problem")
    return Outcome(
        strategy=strategy.name,
        rows=tuple(tries[:counted]),
        kept=tries[kept],
        accuracy=accuracy,
        accepted=accepted,
        cost=sum(map(rank_seconds, tries[:counted])),
    )
