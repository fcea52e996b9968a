"""A gang: the ranks that work on one clip together, Ray actors in one placement group with their own process group.

All ranks get the same calls in the same order; rank 0 answers. A gang that lost a rank is ended whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
import torch
import torch.distributed as dist
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from numina.config import MethodConfig
from numina.errors import GangError, InputError
from pipelines.base import GenerationConfig
from pipelines.clip import Clip, Identified, Request
from pipelines.parallel import ParallelConfig, parallelize
from pipelines.registry import load_model

if TYPE_CHECKING:
    from numina.guidance import GuidancePlan
    from pipelines.generate import ClipGenerator

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # a rank that is silent for longer than any step is lost


@dataclass(frozen=True, kw_only=True)
class GangSpec:
    """What every rank of every gang of a job is made of."""

    model_path: str
    dtype: str
    device: str  # cuda | cpu
    generation: GenerationConfig
    parallel: ParallelConfig
    cpus_per_rank: int


class Rank:
    """One process of a gang: its share of the model and of every clip."""

    def __init__(self, spec: GangSpec, rank: int):
        self.spec = spec
        self.rank = rank
        self.generator: ClipGenerator | None = None
        self.meeting: dist.TCPStore | None = None

    def rendezvous(self) -> tuple[str, int]:
        """Host and port where the gang's ranks can meet; on rank 0, which holds the port from here on."""
        host = ray.util.get_node_ip_address()
        self.meeting = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self.meeting.port

    def start(self, host: str, port: int) -> None:
        """Joins the process group and loads the model."""
        from pipelines.generate import ClipGenerator  # seconds to import, in ranks only

        if self.spec.device == "cpu":
            torch.set_num_threads(self.spec.cpus_per_rank)
        ranks = self.spec.parallel.ulysses
        if ranks > 1:
            meeting = self.meeting or dist.TCPStore(host, port, is_master=False)
            backend = "nccl" if self.spec.device == "cuda" else "gloo"
            dist.init_process_group(
                backend, store=meeting, rank=self.rank, world_size=ranks, timeout=COLLECTIVE_TIMEOUT
            )
        model = load_model(self.spec.model_path, dtype=self.spec.dtype, device=self.spec.device)
        shard = parallelize(model, self.spec.parallel)
        self.generator = ClipGenerator(model, self.spec.generation, shard)

    def identify(self, requests: Sequence[Request], method: MethodConfig) -> list[Identified | InputError] | None:
        identified = self._ready.identify(requests, method)
        return identified if self.rank == 0 else None

    def plain(self, requests: Sequence[Request]) -> list[Clip] | None:
        return _without_frames(self._ready.plain(requests))

    def finish(self, keys: Sequence[str]) -> list[Clip] | None:
        return _without_frames(self._ready.finish(keys))

    def guide(self, keys: Sequence[str], plans: Sequence[GuidancePlan]) -> list[Clip] | None:
        return _without_frames(self._ready.guide(keys, plans))

    def drop(self, keys: Sequence[str]) -> None:
        self._ready.drop(keys)

    @property
    def _ready(self) -> ClipGenerator:
        assert self.generator is not None, "start() comes first"
        return self.generator


def _without_frames(clips: list[Clip] | None) -> list[Clip] | None:
    """What travels to the driver, which stores the mp4 alone: the frames of a 480p clip would be 97 MB."""
    return clips and [replace(clip, video=clip.video[:0]) for clip in clips]


class Gang:
    """The driver's handle on one gang."""

    def __init__(self, name: str, spec: GangSpec):
        self.name = name
        self.spec = spec
        ranks = spec.parallel.ulysses
        bundle: dict[str, float] = {"CPU": spec.cpus_per_rank}
        if spec.device == "cuda":
            bundle["GPU"] = 1
        self._place: PlacementGroup = placement_group([bundle] * ranks, strategy="PACK")
        remote_rank = ray.remote(Rank)
        self.ranks: list[ActorHandle] = [
            remote_rank.options(
                num_cpus=spec.cpus_per_rank,
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._place, placement_group_bundle_index=rank),
            ).remote(spec, rank)
            for rank in range(ranks)
        ]

    def start(self, timeout: float) -> list[ObjectRef]:
        """Waits for the gang's place, then starts all ranks; the references are done when the models are loaded.

        Raises GangError when the cluster has no room for the gang.
        """
        if not self._place.wait(timeout):
            need = f"{len(self.ranks)} × {self._place.bundle_specs[0]}"
            self.end()
            raise GangError(
                f"{self.name} found no place within {timeout:.0f} s: it needs {need}, the cluster has free"
                f" {ray.available_resources()}; use fewer ranks (parallel.ulysses) or gangs (parallel.gangs)"
            )
        host, port = ray.get(self.ranks[0].rendezvous.remote())
        return [rank.start.remote(host, port) for rank in self.ranks]

    def call(self, method: str, *arguments: Any) -> list[ObjectRef]:
        """The same call on every rank; the first reference is rank 0's, the one with the answer."""
        return [getattr(rank, method).remote(*arguments) for rank in self.ranks]

    def end(self) -> None:
        """Ends all ranks, whatever they do, and frees their place."""
        for rank in self.ranks:
            ray.kill(rank)
        remove_placement_group(self._place)
