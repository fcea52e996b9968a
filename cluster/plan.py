"""What a job is: its clips, each with a key, and the row that each becomes. Checked before anything starts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.job import ALGORITHM_VERSION, JobConfig, config_hash
from cluster.promptset import PromptRow, read_prompts
from cluster.rows import row_key, sample_seed
from pipelines.base import ModelFacts
from pipelines.cache import cache_label, check_cache
from pipelines.clip import Clip
from pipelines.registry import inspect_model, resolve_device, resolve_dtype
from pipelines.support import Wish, check_support, resolve_engine
from pipelines.testbed import WEIGHTS

if TYPE_CHECKING:
    from numina.correct import Correction


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """One video to be made: a prompt, a sample of it, a strategy. Its key says whether it is there already."""

    key: str
    row: PromptRow
    sample: int
    seed: int
    strategy: str


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """A job whose input was checked: nothing of it can fail for a reason that could have been known before."""

    job: JobConfig
    model: ModelFacts
    device: str
    dtype: str
    rows: Sequence[PromptRow]

    @property
    def engine(self) -> str:
        """The engine that `parallel.engine` stands for on the job's device."""
        parallel = self.job.parallel
        return resolve_engine(parallel.engine, self.device, parallel.sequence_ranks)

    @property
    def encodes_apart(self) -> bool:
        """Whether prompts are encoded by processes of their own."""
        return self.job.memory.text_encoder == "apart"

    def tasks(self) -> Iterator[ClipTask]:
        """All videos of the job, in the order of the prompt set; what would be the same video is asked for once."""
        known: set[str] = set()
        configs = {strategy: self.job.row_config(strategy, self.dtype) for strategy in self.job.all_strategies}
        for row in self.rows:
            for sample in range(self.job.samples):
                seed = sample_seed(row.seed, row.id, row.prompt, sample, self.job.seed)
                for strategy, config in configs.items():
                    key = row_key(
                        prompt=row.prompt,
                        negative_prompt=row.negative_prompt,
                        targets=row.targets,
                        seed=seed,
                        config=config,
                        model_revision=self.model.revision,
                        algorithm_version=ALGORITHM_VERSION,
                    )
                    if key not in known:
                        known.add(key)
                        yield ClipTask(key=key, row=row, sample=sample, seed=seed, strategy=strategy)

    def identity(self) -> dict[str, Any]:
        """What run.json holds: all that must be the same for a later run into the same output."""
        return {
            "model": {"name": self.model.name, "revision": self.model.revision},
            "algorithm_version": ALGORITHM_VERSION,
            "seed": self.job.seed,
            **self.job.identity(self.dtype),
        }

    def row(self, task: ClipTask, clip: Clip, correction: Correction | None, retries: int) -> dict[str, Any]:
        """A finished clip's columns, without the names of its files. `correction` is None for a plain clip."""
        job, generation, parallel = self.job, self.job.generation, self.job.parallel
        method = job.methods[task.strategy]
        elsewhere = {"layout", "write"} | ({"encode"} if self.encodes_apart else set())
        busy = sum(seconds for stage, seconds in clip.timings.items() if stage not in elsewhere)
        refinement = correction.refinement if correction else None
        return {
            "key": task.key,
            "id": task.row.id,
            "prompt": task.row.prompt,
            "negative_prompt": task.row.negative_prompt,
            "targets": task.row.targets,
            "strategy": task.strategy,
            "sample": task.sample,
            "seed": task.seed,
            "model": self.model.name,
            "model_revision": self.model.revision,
            "code_version": code_version(),
            "config_hash": config_hash(job.row_config(task.strategy, self.dtype)),
            "width": generation.width,
            "height": generation.height,
            "num_frames": generation.num_frames,
            "fps": generation.fps,
            "steps": generation.steps,
            "guidance_scale": generation.guidance_scale,
            "engine": self.engine,
            "ulysses": parallel.ulysses,
            "ring": parallel.ring,
            "cfg": parallel.cfg,
            "cache": cache_label(method.identify.cache if method else None, generation.cache),
            "identified": identified_counts(task, correction) if correction else None,
            "guided": refinement is not None,
            "shortfall": list(refinement.shortfall) if refinement else None,
            "timings": clip.timings,
            "gpu_seconds": busy * parallel.ranks if self.device == "cuda" else None,
            "retries": retries,
            "peak_memory_bytes": clip.peak_memory_bytes,
            "extra": task.row.extra,
        }


def prepare(job: JobConfig) -> JobPlan:
    """Checks model, shapes, degrees and every prompt. Raises an InputError before any GPU is taken."""
    model = inspect_model(job.model.path)
    device = job.model.device
    if device == "auto" and job.cluster.address != "local":
        device = "cuda"  # the driver may stand on a head node without a GPU
    elif job.cluster.address == "local":
        device = resolve_device(device)
    check_combination(job, model, device)
    rows = list(read_prompts(prompt_path(job.prompts), max_count=job.max_count, limit=job.limit))
    return JobPlan(job=job, model=model, device=device, dtype=resolve_dtype(job.model.dtype, device), rows=rows)


def check_combination(job: JobConfig, model: ModelFacts, device: str) -> None:
    """Raises ConfigError where engine, degrees, caches, compiler and sharding can't go together on this model."""
    parallel = job.parallel
    caches = {"generation.cache": {job.generation.cache}, "method.identify.cache": set()}
    for method in filter(None, job.methods.values()):
        caches["method.identify.cache"].add(method.identify.cache)
    for setting, names in caches.items():
        for name in sorted(names):
            check_cache(setting, name, ranks=parallel.sequence_ranks, batch=parallel.batch)
            wish = Wish(
                engine=parallel.engine,
                cfg=parallel.cfg,
                ulysses=parallel.ulysses,
                ring=parallel.ring,
                compile=parallel.compile,
                shard=job.memory.shard,
                cache=name,
                device=device,
                heads=model.heads,
                tokens=model.grid(job.generation).tokens,
                guidance=job.generation.guidance_scale > 1,
            )
            check_support(wish)


def prompt_path(prompts: str) -> str:
    """Where a prompt set lies; `testbed:demo` is the one shipped with the embedded model."""
    return str(WEIGHTS.parent / "demo.parquet") if prompts == "testbed:demo" else prompts


def layout_arrays(task: ClipTask, correction: Correction) -> dict[str, np.ndarray]:
    """What a layout file holds: `labels` and, where corrected, `refined` int16 and `regions` int8 [nouns, F, H, W]."""
    arrays: dict[str, np.ndarray] = {
        "nouns": np.array([target.noun for target in task.row.targets]),
        "labels": correction.identified.labels,
    }
    if correction.refinement is not None:
        arrays["refined"] = correction.refinement.layout.labels
        arrays["regions"] = correction.refinement.regions
    return arrays


def identified_counts(task: ClipTask, correction: Correction) -> list[dict[str, Any]]:
    """The row column `identified`: per noun its count in every latent frame and in the clip."""
    per_frame, per_clip = correction.identified.counts(), correction.identified.clip_counts()
    return [
        {"noun": target.noun, "frames": frames.tolist(), "count": int(count)}
        for target, frames, count in zip(task.row.targets, per_frame, per_clip, strict=True)
    ]


def code_version() -> str:
    """The installed version of numina; from a checkout that isn't installed, the one it would install as."""
    try:
        return version("numina-video")
    except PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
        return str(project["project"]["version"])
