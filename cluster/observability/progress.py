"""How far a running job is: what the driver tells, and a terminal or a log shows."""

import time
from dataclasses import dataclass, field


@dataclass
class JobProgress:
    """Counts of one run; the driver changes them in place."""

    total: int = 0  # videos that this job, or its shard, asks for
    done: int = 0  # committed, before or by this run or by another driver
    generated: int = 0  # clips that this run committed, attempts among them that weren't accepted
    completed: int = 0  # videos asked for that this run made or, where they are verified, settled
    accepted: int = 0  # of those settled by this run
    rejected: int = 0  # of those settled by this run: no attempt was accepted
    failed: int = 0  # given up
    guided: int = 0  # of those generated
    retries: int = 0  # tries of this run that failed and were repeated
    checked: int = 0  # rows of the prompt set that were looked at, before the gangs start
    skipped: int = 0  # rows of the prompt set that can't be used and are left out
    draining: bool = False  # asked to stop: what is under way is finished, nothing new is begun
    gangs: dict[str, str] = field(default_factory=dict)  # gang or encoder → what it does
    began: float = field(default_factory=time.monotonic)  # when the first gang stood, once one does

    @property
    def left(self) -> int:
        """Videos neither made nor given up."""
        return max(0, self.total - self.done - self.failed)

    @property
    def stopped(self) -> bool:
        """Whether the job was stopped before it was done."""
        return self.draining and self.left > 0

    @property
    def rate_per_hour(self) -> float | None:
        """Videos an hour, of this run; None before the first."""
        elapsed = time.monotonic() - self.began
        return self.generated / elapsed * 3600 if self.generated and elapsed > 0 else None

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until all is done at this run's rate; None before the first video."""
        rate = self.rate_per_hour
        share = self.completed / self.generated if self.generated else 1.0  # of the clips, those that complete a video
        return self.left / (rate * share) * 3600 if rate and share else None


def main_state(state: str) -> str:
    """What a gang mainly does, of a state such as `layout + denoise`, for layouts are computed elsewhere meanwhile; or
    `downloading 1.2 of 9.5 GB …`."""
    parts = state.split(" + ")
    return next((part for part in parts if part != "layout"), parts[0]).partition(" ")[0]
