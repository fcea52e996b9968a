"""What a job is: its clips, each with a key, and the row that each becomes. Checked before anything starts."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.job import ALGORITHM_VERSION, JobConfig, config_hash
from cluster.judges import judge_config
from cluster.promptrows import ENHANCED, PromptRow, RawRow, row_texts
from cluster.promptset import PromptSet, open_prompts, require_prompts
from cluster.rows import RowKeys, TaskDigests, sample_seed
from cluster.strategy import ENHANCEMENT, Trial, attempt_digest, attempt_seed, stronger
from numina.errors import ConfigError
from pipelines.base import ModelFacts
from pipelines.cache import cache_label, check_cache
from pipelines.clip import Clip
from pipelines.enhance import enhance_prompt
from pipelines.judges import inspect_judge
from pipelines.judges.counter import phrases_of
from pipelines.registry import inspect_model, resolve_device, resolve_dtype
from pipelines.support import Wish, check_support, resolve_engine
from pipelines.testbed import WEIGHTS

if TYPE_CHECKING:
    from numina.config import MethodConfig
    from numina.correct import Correction

FIRST_ROWS = 1000  # of a prompt set, checked before anything else is looked at


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """One video to be made: a prompt, a sample of it, a strategy. Its key says whether it is there already."""

    key: str
    digest: str  # 32 hex digits of what was asked, before targets were read from the prompt
    row: PromptRow  # its prompt is the one that is generated with
    sample: int
    seed: int
    strategy: str  # what generates: `Strategy.base`
    attempt: int = 0
    strength: float = 1.0  # factor on the guidance
    chain: str = ""  # the first attempt's digest, the same for all of a sample
    verified: bool = False  # judged when it is there; the next attempt follows where it isn't accepted
    there: bool = False  # committed already: only to be judged

    @property
    def chain_digest(self) -> str:
        """Where the sample fails for good, this says so: of a verified task the chain's, else its own."""
        return self.chain if self.verified else self.digest


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """A job whose settings and first rows were checked; `worklist.open_worklist` checks the others."""

    job: JobConfig
    model: ModelFacts
    device: str
    dtype: str
    prompts: PromptSet

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
    def asked(self) -> int:
        """Videos of the whole prompt set, all shards; a few less where samples of several rows share a seed."""
        return self.prompts.rows * self.job.samples * len(self.trials)

    @cached_property
    def trials(self) -> list[Trial]:
        """What is asked for of every sample from the start. A verified one counts once, whatever its attempts are."""
        return self.job.trials(self.dtype)

    @property
    def rules(self) -> str:
        """Of `pipelines.enhance`, for prompts whose set has no `enhanced_prompt`."""
        return "testbed" if self.model.name == "testbed" else "general"

    def method_of(self, task: ClipTask) -> MethodConfig | None:
        """What a task's clip is guided by; None generates without NUMINA."""
        method = self.job.methods[task.strategy]
        return method and stronger(method, task.strength)

    def tasks(self) -> Iterator[ClipTask]:
        """All videos of the job, in the order of the prompt set; what would be the same video is asked for once.

        Holds all their keys: see `worklist` for what is left of a large job.
        """
        names, known = TaskNames(self), set[str]()
        for block, batch in self.prompts.read():
            for offset, text in enumerate(row_texts(batch)):
                row = self.prompts.row(RawRow(block, batch, offset), self.job.max_count)
                for task in names.tasks(row, text):
                    if task.key not in known:
                        known.add(task.key)
                        yield task

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
            "original_prompt": task.row.original_prompt,
            "negative_prompt": task.row.negative_prompt,
            "targets": task.row.targets,
            "strategy": task.strategy,
            "sample": task.sample,
            "attempt": task.attempt,
            "strength": task.strength,
            "chain": task.chain,
            "seed": task.seed,
            "model": self.model.name,
            "model_revision": self.model.revision,
            "code_version": code_version(),
            "config_hash": config_hash(job.row_config(task.strategy, self.dtype, task.strength)),
            "task_digest": task.digest,
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


class TaskNames:
    """Digests and keys of a job's videos. `slots` are what each row is asked for: trials of each of its samples."""

    def __init__(self, plan: JobPlan) -> None:
        self._job, self._rules = plan.job, plan.rules
        self.slots = list(product(range(plan.job.samples), plan.trials))
        self._settings: dict[tuple[str, float], dict[str, Any]] = {
            (base, strength): {
                "config": plan.job.row_config(base, plan.dtype, strength),
                "model_revision": plan.model.revision,
                "algorithm_version": ALGORITHM_VERSION,
            }
            for strategy in plan.job.all_strategies
            for base, strength in product([strategy.base], strategy.strengths)
        }
        self._keys = {name: RowKeys(**settings) for name, settings in self._settings.items()}
        self._digests = {
            (sample, base): self._chains(sample, base)
            for sample, base in product(range(plan.job.samples), {trial.base for trial in plan.trials})
        }

    def _chains(self, sample: int, base: str) -> TaskDigests:
        more: dict[str, Any] = {"enhanced": self._rules} if ENHANCEMENT in base else {}
        return TaskDigests(**self._settings[base, 1.0], job_seed=self._job.seed, sample=sample, **more)

    def slots_of(self, sample: int) -> list[int]:
        """Where a sample's tasks are, by all strategies."""
        return [slot for slot, (own, _) in enumerate(self.slots) if own == sample]

    def digests(self, slot: int, texts: Sequence[bytes]) -> list[bytes]:
        """Of rows' tasks in one slot, from their `promptrows.row_texts`."""
        sample, trial = self.slots[slot]
        chains = self._digests[sample, trial.base].of(texts)
        return [attempt_digest(chain, trial.attempt, trial.strength) for chain in chains]

    def tasks(self, row: PromptRow, text: bytes, slots: Sequence[int] | None = None) -> Iterator[ClipTask]:
        """A row's tasks, all or those in some slots."""
        for slot in range(len(self.slots)) if slots is None else slots:
            sample, trial = self.slots[slot]
            asked = self._enhanced(row) if ENHANCEMENT in trial.base else row
            [chain] = self._digests[sample, trial.base].of([text])
            yield self._task(asked, sample, trial, chain)

    def attempts(self, task: ClipTask) -> list[ClipTask]:
        """All attempts of a verified task's chain, the first one first."""
        return [
            self._task(task.row, task.sample, Trial(task.strategy, attempt, strength, verified=True), chain)
            for chain in [bytes.fromhex(task.chain)]
            for attempt, strength in enumerate(self._job.verify.strengths)
        ]

    def _task(self, row: PromptRow, sample: int, trial: Trial, chain: bytes) -> ClipTask:
        original = row.original_prompt or row.prompt
        first = sample_seed(row.seed, row.id, original, sample, self._job.seed)
        seed = attempt_seed(first, trial.attempt, trial.strength)
        key = self._keys[trial.base, trial.strength].key(
            prompt=row.prompt, negative_prompt=row.negative_prompt, targets=row.targets, seed=seed
        )
        return ClipTask(
            key=key,
            digest=attempt_digest(chain, trial.attempt, trial.strength).hex(),
            row=row,
            sample=sample,
            seed=seed,
            strategy=trial.base,
            attempt=trial.attempt,
            strength=trial.strength,
            chain=chain.hex(),
            verified=trial.verified,
        )

    def _enhanced(self, row: PromptRow) -> PromptRow:
        """The row with its prompt rewritten: as its set says or, where it doesn't, by rule."""
        prompt = row.extra.get(ENHANCED) or enhance_prompt(row.prompt, row.targets, self._rules)
        return replace(row, prompt=prompt, original_prompt=row.prompt)


def prepare(job: JobConfig) -> JobPlan:
    """Checks model, shapes, degrees, the prompt set's files and columns, and its first rows whole.

    Raises an InputError before any GPU is taken.
    """
    check_submitted(job)
    model = inspect_model(job.model.path, job.model.revision, job.model.loras)
    device = job.model.device
    if device == "auto" and job.cluster.address != "local":
        device = "cuda"  # the driver may stand on a head node without a GPU
    elif job.cluster.address == "local":
        device = resolve_device(device)
    check_combination(job, model, device)
    path = prompt_path(job.prompts)
    require_prompts(path, job.max_count, limit=min(FIRST_ROWS, job.limit or FIRST_ROWS))
    prompts = open_prompts(path, limit=job.limit)
    if job.verifies:
        check_judge(job, islice(prompts.parse(job.max_count), FIRST_ROWS))
    return JobPlan(job=job, model=model, device=device, dtype=resolve_dtype(job.model.dtype, device), prompts=prompts)


def check_judge(job: JobConfig, rows: Iterable[PromptRow]) -> None:
    """Raises an InputError where the judge of verified clips isn't there, or is the counter and can't know a noun."""
    judge = judge_config(job.verify.judge, job.judge)
    inspect_judge(judge)
    if judge.kind == "counter":
        for row in rows:
            phrases_of(row.prompt, row.targets)


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
        raise ConfigError("cluster.address is 'local', a second Ray inside the submitted job; give auto")


def check_combination(job: JobConfig, model: ModelFacts, device: str) -> None:
    """Raises ConfigError where engine, degrees, caches, sharding and sampling can't go together on this model."""
    parallel = job.parallel
    model.flow_shift(job.generation)
    caches: dict[str, set[str]] = {"generation.cache": {job.generation.cache}, "method.identify.cache": set()}
    for method in filter(None, job.methods.values()):
        caches["method.identify.cache"].add(method.identify.cache)
        model.check_stride(method.identify.stride)
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
                joint=model.joint,
                loras=bool(job.model.loras),
                dtype=job.model.dtype,
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
