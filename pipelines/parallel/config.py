"""How a job's ranks are used: the settings `parallel` and `memory`. Plain types: planning imports no torch."""

from dataclasses import dataclass
from typing import Literal

from numina.choices import check_choices
from numina.errors import ConfigError
from pipelines.parallel.support import Engine, Sharding

Place = Literal["gang", "apart"]  # of the text encoder

MOST = 10_000  # ranks, gangs, clips: more is a slip of the hand
_UNSET = {"gangs": ("auto",), "gangs_max": (None,)}  # values that are no number


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many ranks work on one clip (a gang), and how many gangs run side by side."""

    # what computes attention: single, diffusers, xfuser, or auto (single for one sequence rank; else xfuser on GPUs,
    # diffusers on CPUs)
    engine: Engine = "auto"
    cfg: int = 1  # [ranks] for the two branches of classifier-free guidance: 1, or 2 to run them on different ranks
    ulysses: int = 1  # [ranks] that share a sequence by its attention heads; must divide the number of heads
    ring: int = 1  # [ranks] that share a sequence by passing keys and values on; for slow links between nodes
    # [gangs] that run side by side, each on its own prompts; auto: as many as the cluster has GPUs for, more when nodes
    # join and fewer when they leave (on CPUs, one per node)
    gangs: int | Literal["auto"] = "auto"
    # [gangs] that gangs=auto has at most; up to it, Ray's autoscaler is asked for nodes. null: no limit, and the
    # autoscaler is asked for one gang
    gangs_max: int | None = None
    batch: int = 1  # [clips] per forward pass; pays for small models or clips, a large clip fills its GPU alone
    # attention kernel by the engine's own name (xfuser: cudnn, flash_3, …; others: native, flash_3, flash_3_fp8, …), or
    # auto
    attention: str = "auto"
    # compile the repeated blocks with torch.compile: faster steps after about a minute of warm-up
    compile: bool = False

    def __post_init__(self) -> None:
        check_choices("parallel", self)
        numbers = {name: getattr(self, name) for name in ("cfg", "ulysses", "ring", "gangs", "gangs_max", "batch")}
        for name, number in numbers.items():
            if number in _UNSET.get(name, ()):
                continue
            if not isinstance(number, int) or not 1 <= number <= MOST:
                raise ConfigError(f"parallel.{name} is {number}; it must be at least 1, and {MOST:,} at most")
        if self.gangs_max is not None and self.gangs != "auto":
            raise ConfigError(
                f"parallel.gangs_max is {self.gangs_max}, but parallel.gangs is {self.gangs}; a limit is for"
                " parallel.gangs=auto: leave one of the two out"
            )

    @property
    def ranks(self) -> int:
        """Ranks of a gang."""
        return self.cfg * self.sequence_ranks

    @property
    def sequence_ranks(self) -> int:
        """Ranks that share one branch's tokens."""
        return self.ulysses * self.ring

    @property
    def gangs_at_least(self) -> int:
        """Gangs that a job can't do without: as many as were asked for, or one."""
        return 1 if self.gangs == "auto" else self.gangs


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Which weights each rank keeps in its memory."""

    # weights: none (whole on every rank), zero3 (spread over the gang's ranks) or zero3_offload (and kept in host
    # memory)
    shard: Sharding = "none"
    # gang (on the gang's ranks) or apart (in its own processes, so that the gang's GPUs don't hold its weights; 11 GB
    # for UMT5-XXL)
    text_encoder: Place = "gang"

    def __post_init__(self) -> None:
        check_choices("memory", self)
