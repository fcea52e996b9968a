"""A job whose settings were checked against its model; its prompts are looked at elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cluster.job.checks import check_combination
from cluster.job.config import JobConfig
from cluster.job.strategy import Trial
from pipelines.base import ModelFacts
from pipelines.models.families import FAMILIES
from pipelines.models.registry import FLOAT8, resolve_device, resolve_dtype
from pipelines.parallel.support import resolve_engine


@dataclass(frozen=True, kw_only=True)
class CheckedJob:
    """A job, what its model is, and where and in which numbers it runs."""

    job: JobConfig
    model: ModelFacts
    device: str
    dtype: str

    @property
    def engine(self) -> str:
        """The engine that `parallel.engine` stands for on the job's device."""
        parallel = self.job.parallel
        return resolve_engine(parallel.engine, self.device, parallel.sequence_ranks)

    @property
    def encodes_apart(self) -> bool:
        """Whether prompts are encoded by processes of their own."""
        return self.job.memory.text_encoder == "apart"

    @property
    def vae_dtype(self) -> str:
        """What clips are decoded in; beside a float8 transformer as beside a bfloat16 one."""
        family, dtype = FAMILIES[self.model.family], "bfloat16" if self.dtype == FLOAT8 else self.dtype
        return family.decodes_in(dtype, self.job.generation.vae_dtype)

    @cached_property
    def trials(self) -> list[Trial]:
        """What is asked for of every sample from the start. A verified one counts once, whatever its attempts are."""
        return self.job.trials(self.dtype)


def check_job(job: JobConfig, model: ModelFacts) -> CheckedJob:
    """Raises ConfigError where engine, degrees, caches, sharding and sampling can't go together on the model."""
    device: str = job.model.device
    if device == "auto" and job.cluster.address != "local":
        device = "cuda"  # the driver may stand on a head node without a GPU
    elif job.cluster.address == "local":
        device = resolve_device(device)
    check_combination(job, model, device)
    return CheckedJob(job=job, model=model, device=device, dtype=resolve_dtype(job.model.dtype, device))
