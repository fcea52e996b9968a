"""What is refused before a job starts: judges, submissions and combinations that can't work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cluster.job.config import JobConfig
from cluster.job.judge import judge_config
from numina.errors import ConfigError
from pipelines.base import ModelFacts
from pipelines.judges import inspect_judge, nouns_check
from pipelines.models.families import FAMILIES
from pipelines.parallel.support import Wish, check_cache, check_support

if TYPE_CHECKING:
    from cluster.prompts.row import PromptRow


def check_judge(job: JobConfig, rows: Iterable[PromptRow], *, weights: bool = True) -> None:
    """Raises an InputError where the judge of verified clips can't know a noun, or lacks its `weights`, if asked."""
    judge = judge_config(job.verify.judge, job.judge)
    if weights:
        inspect_judge(judge)
    if check := nouns_check(judge):
        for row in rows:
            if row.targets:
                check(row.prompt, row.targets)


def check_submitted(job: JobConfig) -> None:
    """Raises ConfigError where a job that `ray job submit` sent would lose its rows, or start a second Ray."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    if "://" not in job.output and not os.path.isabs(job.output):
        raise ConfigError(
            f"output is {job.output!r}, relative to a copy of the working directory that Ray deletes; "
            "give an absolute path that all nodes share, or a URL"
        )
    if job.cluster.address == "local":
        raise ConfigError("cluster.address is 'local', which starts a second Ray in the submitted job; give auto")


def check_combination(job: JobConfig, model: ModelFacts, device: str) -> None:
    """Raises ConfigError where engine, degrees, caches, sharding and sampling can't go together on this model."""
    parallel = job.parallel
    model.flow_shift(job.generation)
    caches: dict[str, set[str]] = {"generation.cache": {job.generation.cache}, "method.identify.cache": set()}
    for method in filter(None, job.methods.values()):
        caches["method.identify.cache"].add(method.identify.cache)
        model.check_stride(method.identify.stride)
        method.scaled_to(model.grid(job.generation).frame_tokens)  # refuses what is out of range on this grid
    for setting, names in caches.items():
        for name in sorted(names):
            check_cache(setting, name, ranks=parallel.sequence_ranks, batch=parallel.batch)
            wish = Wish(
                engine=parallel.engine,
                cfg=parallel.cfg,
                ulysses=parallel.ulysses,
                ring=parallel.ring,
                attention=parallel.attention,
                compile=parallel.compile,
                shard=job.memory.shard,
                cache=name,
                device=device,
                heads=model.heads,
                tokens=model.grid(job.generation).tokens,
                guidance=job.generation.guidance_scale > 1,
                lacks=FAMILIES[model.family].lacks,
                loras=bool(job.model.loras),
                dtype=job.model.dtype,
            )
            check_support(wish)
