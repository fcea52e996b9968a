"""What is exported and how, and what comes of it."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from cluster.export.formats import FORMATS, GROWING
from numina.errors import InputError

Only = Literal["all", "judged", "accepted"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """An export's settings. Raises InputError for a value out of range."""

    to: str  # one of FORMATS
    strategy: str | None = None  # None: all of them, where the form takes several
    judge: str | None = None  # whose verdicts go along; None: the only one's
    only: Only = "all"  # clips that were judged, or accepted
    shard_clips: int = 1000  # of forms that grow: clips in one shard
    follow: bool = False  # go on while the job runs
    distinct: float | None = None  # cosine from which of two clips with the same targets the first alone is exported
    license: str = "other"  # of the dataset card

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise InputError(f"--to {self.to!r} isn't known; choose from {', '.join(FORMATS)}")
        if self.only not in get_args(Only):
            raise InputError(f"--only {self.only!r} isn't known; choose from {', '.join(get_args(Only))}")
        if self.follow and self.to not in GROWING:
            raise InputError(f"--follow adds shards, and --to {self.to} has none; choose from {', '.join(GROWING)}")
        if self.distinct is not None and not 0 < self.distinct <= 1:
            raise InputError(f"--distinct is {self.distinct}; give a cosine above 0, at most 1, such as 0.95")
        if self.distinct is not None and self.to in GROWING:
            others = ", ".join(name for name in FORMATS if name not in GROWING)
            raise InputError(
                f"--distinct compares all clips with one another, but shards of --to {self.to} are closed before all "
                f"are there; choose from {others}"
            )
        if self.shard_clips < 1:
            raise InputError(f"--shard-clips is {self.shard_clips}; a shard takes at least 1")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export holds."""

    clips: int
    lost: dict[str, str] = field(default_factory=dict)  # videos left out, by their names in the output, and why
    notes: tuple[str, ...] = ()  # worth knowing
