"""Engines: how one clip's tokens are spread over the ranks of a gang, and the small collectives the method needs.

A rank holds a contiguous run of the clip's tokens (a frame may straddle two ranks) in all layers but self-attention.
"""

import logging
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from numina.errors import ConfigError
from pipelines.base import Grid, VideoModel

ENGINES = ("auto", "single", "diffusers")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many ranks work on one clip, and how many such gangs run beside each other."""

    engine: str = "auto"  # single | diffusers | auto (single for one rank, else diffusers)
    ulysses: int = 1  # ranks per gang: attention heads are spread over them
    gangs: int = 1  # gangs side by side, each on prompts of its own
    batch: int = 1  # clips per forward; pays for small models, a large one fills its GPU with one clip

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"parallel.engine is {self.engine!r}; choose one of {', '.join(ENGINES)}")
        for name in ("ulysses", "gangs", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"parallel.{name} is {getattr(self, name)}; it must be at least 1")
        if self.engine == "single" and self.ulysses > 1:
            raise ConfigError(f"parallel.engine=single is one rank, parallel.ulysses is {self.ulysses}; use diffusers")

    @property
    def resolved_engine(self) -> str:
        return ("single" if self.ulysses == 1 else "diffusers") if self.engine == "auto" else self.engine


def check_divides(ranks: int, *, heads: int, grid: Grid) -> None:
    """Ulysses needs ranks that divide both heads and tokens. Raises ConfigError with the degrees that do."""
    fits = [r for r in range(1, heads + 1) if heads % r == 0 and grid.tokens % r == 0]
    if ranks not in fits:
        raise ConfigError(
            f"parallel.ulysses={ranks} doesn't divide the model's {heads} heads and {grid.tokens} tokens;"
            f" use one of {', '.join(map(str, fits))}"
        )


@dataclass(frozen=True)
class Shard:
    """Where this rank stands in its sequence-parallel group; `group` is None for a single rank."""

    rank: int = 0
    ranks: int = 1
    group: Any = None

    def rows(self, tokens: int) -> slice:
        """The clip's tokens that this rank holds."""
        size = tokens // self.ranks
        return slice(self.rank * size, (self.rank + 1) * size)

    def heads(self, heads: int) -> slice:
        """The heads that this rank holds after `swap_rows_for_heads`."""
        size = heads // self.ranks
        return slice(self.rank * size, (self.rank + 1) * size)

    def swap_rows_for_heads(self, x: Tensor) -> Tensor:
        """All-to-all: own rows of all heads [..., n/R, N, D] → all rows of own heads [..., n, N/R, D]."""
        if self.ranks == 1:
            return x
        sent = torch.stack(x.chunk(self.ranks, dim=-2)).contiguous()  # [R, ..., n/R, N/R, D]
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        return received.movedim(0, -4).flatten(-4, -3)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """All ranks' parts joined along `dim`, in rank order."""
        if self.ranks == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.ranks)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=dim)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.ranks > 1:
            x = x.contiguous().clone()
            dist.all_reduce(x, group=self.group)
        return x


def parallelize(model: VideoModel, config: ParallelConfig) -> Shard:
    """Spreads a loaded model's tokens over the ranks of the initialised default process group."""
    from diffusers import ContextParallelConfig  # seconds to import, and only ranks need it

    if config.ulysses == 1:
        return Shard()
    if dist.get_world_size() != config.ulysses:
        raise ConfigError(f"parallel.ulysses={config.ulysses} in a process group of {dist.get_world_size()} ranks")
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)  # "experimental feature"
    if model.device.type == "cpu":
        _resolve_without_accelerator(model.transformer)
    model.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=config.ulysses))
    return Shard(dist.get_rank(), config.ulysses, dist.group.WORLD)


def _resolve_without_accelerator(transformer: Any) -> None:
    """diffusers 0.42 finds a rank's device as `rank % accelerator count`, which divides by zero on a CPU machine."""

    from diffusers.models._modeling_parallel import ParallelConfig as DiffusersParallelConfig

    def resolve(self: Any, config: Any) -> Any:
        mesh = init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
        resolved = DiffusersParallelConfig(context_parallel_config=config)
        resolved.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)
        self._parallel_config = resolved
        return resolved

    transformer._resolve_parallel_config = MethodType(resolve, transformer)
