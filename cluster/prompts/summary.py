"""How many rows of a prompt set ask for counts, and how sure that is."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.prompts.row import PromptRow
from numina.prompts.reading import Doubt


@dataclass(kw_only=True)
class SetSummary:
    """Rows by what their targets are: each is in one of `sure`, `doubtful`, `plain` and `bad`."""

    sure: int = 0  # with counts, given or read without a doubt
    doubtful: int = 0  # with doubts about what was read, whether counts came out or not
    plain: int = 0  # without counts
    bad: int = 0
    repeats: int = 0  # rows without an id that repeat an earlier one, and have one now
    doubts: Counter[Doubt] = field(default_factory=Counter)  # rows by reason

    @property
    def rows(self) -> int:
        """All of them."""
        return self.sure + self.doubtful + self.plain + self.bad

    def add(self, rows: Iterable[PromptRow | None]) -> None:
        """Takes rows in; None is a bad one."""
        for row in rows:
            if row is None:
                self.bad += 1
            elif row.doubts:
                self.doubtful += 1
                self.doubts.update({own.doubt for own in row.doubts})
            elif row.targets:
                self.sure += 1
            else:
                self.plain += 1

    def remove(self, row: PromptRow) -> None:
        """Takes a row that turned out to be bad later."""
        self.bad += 1
        if row.doubts:
            self.doubtful -= 1
            self.doubts.subtract({own.doubt for own in row.doubts})
        elif row.targets:
            self.sure -= 1
        else:
            self.plain -= 1

    def lines(self) -> list[str]:
        """It in words, a line for each kind that there is."""
        reasons = ", ".join(f"{number:,} × {doubt.told}" for doubt, number in self.doubts.most_common() if number)
        numbers = [
            (self.sure, "with counts", ""),
            (self.doubtful, "doubtful", f": {reasons}"),
            (self.plain, "without counts: plain videos", ""),
            (self.bad, "bad", ""),
        ]
        width = max(len(f"{number:,}") for number, _, _ in numbers)
        told = [f"  {number:>{width},} {name}{more}" for number, name, more in numbers if number]
        if self.repeats:
            told.append(f"  {self.repeats:,} rows without an id repeat an earlier row; each is a video of its own")
        return told
