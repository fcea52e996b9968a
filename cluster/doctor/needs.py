"""What a job needs of the machines it runs on, as plain values that another node can be sent."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.job.config import JobConfig


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Of a job, or of none (`job` is False): then what is missing fails nothing that anybody has asked for."""

    job: bool = False
    device: str = "auto"  # cuda | cpu | auto: either
    engine: str = "auto"  # of self-attention, for a gang whose ranks share a clip's tokens
    attention: str = "auto"
    ranks: int = 1  # of a gang
    sequence_ranks: int = 1
    gangs: int = 1
    shard: str = "none"
    dtype: str = "auto"
    address: str = "local"  # of Ray
    metrics_port: int = 0
    prompts: str | None = None
    limit: int | None = None
    output: str | None = None
    single_writer: bool = False
    model: str | None = None  # a folder, a hub id or testbed
    revision: str | None = None
    judge: str | None = None  # that verifies clips: a shipped one's name, or a YAML file
    judge_settings: dict[str, Any] = field(default_factory=dict)
    node_gpus: float | None = None  # that Ray counts on this node, where it was asked
    output_mark: str | None = None  # a file that a node sees if it has the driver's output
    code: str | None = None  # `code_digest` of the driver's

    @property
    def needs_gpu(self) -> bool:
        """Whether the job can't run without one: here, or anywhere where no node was asked."""
        return (self.device == "cuda" and self.node_gpus != 0) or bool(self.node_gpus)

    @property
    def may_use_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def shares_clips(self) -> bool:
        """Whether several ranks share a clip's tokens, so that attention needs an engine."""
        return self.sequence_ranks > 1

    @property
    def is_local(self) -> bool:
        """Whether the job starts a Ray of its own, on this machine alone."""
        return self.address == "local"


def needs_of(job: JobConfig) -> Needs:
    """What a job needs. Its `auto` device is a GPU on a cluster, as `prepare` has it."""
    from cluster.job.prepared import prompt_path
    from pipelines.models.registry import place_free

    device = job.model.device
    if device == "auto" and job.cluster.address != "local":
        device = "cuda"
    return Needs(
        job=True,
        device=device,
        engine=job.parallel.engine,
        attention=job.parallel.attention,
        ranks=job.parallel.ranks,
        sequence_ranks=job.parallel.sequence_ranks,
        gangs=job.parallel.gangs_at_least,
        shard=job.memory.shard,
        dtype=job.model.dtype,
        address=job.cluster.address,
        metrics_port=job.cluster.metrics_port,
        prompts=prompt_path(job.prompts),
        limit=job.limit,
        output=job.output if "://" in job.output else os.path.abspath(job.output),
        single_writer=job.single_writer,
        model=place_free(job.model.path),
        revision=job.model.revision,
        judge=job.verify.judge if job.verifies else None,
        judge_settings=dict(job.judge),
    )
