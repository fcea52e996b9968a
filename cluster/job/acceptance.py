"""What a judge's verdict means for a verified sample: it is accepted, its next attempt is due, or it is rejected.

    attempt 0 ─► judged ─► accepted                          settled
                      └─► next attempt ─► … ─► rejected      settled: no attempt is left

Driver, judges, resume, status and summaries all decide here (method.md §6, `verified`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Self

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.segments import packed, split
from cluster.job.strategy import ACCEPT

if TYPE_CHECKING:
    from cluster.dataset.store import Store
    from cluster.job.strategy import VerifyConfig


class Decision(Enum):
    """What becomes of a verified sample."""

    ACCEPTED = "accepted"
    NEXT_ATTEMPT = "next attempt"
    REJECTED = "rejected"

    @property
    def accepted(self) -> bool:
        return self is Decision.ACCEPTED

    @property
    def settled(self) -> bool:
        """Whether nothing more is made of the sample."""
        return self is not Decision.NEXT_ATTEMPT


@dataclass(frozen=True)
class Chain:
    """A verified sample: the keys of all attempts that it may have, and the one that was made last."""

    keys: tuple[str, ...]
    attempt: int


@dataclass(frozen=True)
class Ruling:
    """What becomes of a chain, by the last of its attempts that was judged."""

    attempt: int
    decision: Decision
    accuracy: float  # of that attempt, CountAcc


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """The rule of one job or output: the CountAcc that is enough, and the attempts that a sample has."""

    accept: float = ACCEPT  # CountAcc from which a clip is accepted, in (0, 1]
    strengths: tuple[float, ...] = (1.0,)  # factor on the guidance, of every attempt

    @classmethod
    def of(cls, verify: VerifyConfig) -> Self:
        """The rule of a job's settings."""
        return cls(accept=verify.accept, strengths=verify.strengths)

    @classmethod
    def recorded(cls, store: Store) -> Self:
        """The rule of an output: its latest verified run's CountAcc, else ACCEPT."""
        asked = [run["info"]["verify"]["accept"] for run in store.runs() if "verify" in run["info"]]
        return cls(accept=float(asked[-1])) if asked else cls()

    def accepts(self, accuracy: float | None) -> bool:
        """Whether a clip of this CountAcc is good enough; without one it isn't."""
        return accuracy is not None and accuracy >= self.accept

    def decide(self, attempt: int, accuracy: float | None) -> Decision:
        """What an attempt's CountAcc means for its sample."""
        if self.accepts(accuracy):
            return Decision.ACCEPTED
        return Decision.REJECTED if attempt + 1 >= len(self.strengths) else Decision.NEXT_ATTEMPT

    def first_accepted(self, accuracies: Sequence[float | None]) -> int | None:
        """The first of a sample's attempts that is accepted; None where none is."""
        return next((attempt for attempt, accuracy in enumerate(accuracies) if self.accepts(accuracy)), None)

    def settled(self, verdicts: Iterable[pa.Table], committed: Collection[bytes]) -> frozenset[bytes]:
        """Chains that need nothing more, by verdicts (key, chain, attempt, strength, count_accuracy) on committed rows.

        Verdicts on rows that aren't there, or on attempts of another rule, settle nothing.
        """
        settled = set[bytes]()
        for table in verdicts:
            attempts = pc.fill_null(table["attempt"], 0)
            last = len(self.strengths) - 1
            asked = pc.and_(pc.not_equal(pc.fill_null(table["chain"], ""), ""), pc.less_equal(attempts, last))
            strengths = pc.take(pa.array(self.strengths, pa.float64()), pc.min_element_wise(attempts, last))
            asked = pc.and_(asked, pc.equal(table["strength"], strengths))
            over = pc.or_kleene(pc.greater_equal(table["count_accuracy"], self.accept), pc.equal(attempts, last))
            found = table.filter(pc.and_kleene(asked, over))  # null is no
            keys, chains = (split(packed([found], name)) for name in ("key", "chain"))
            settled.update(chain for key, chain in zip(keys, chains, strict=True) if key in committed)
        return frozenset(settled)
