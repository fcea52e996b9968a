"""What a job is: its clips, each with a key, and the row that each becomes. Checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster.job.checks import check_combination, check_judge, check_submitted
from cluster.job.config import ALGORITHM_VERSION, JobConfig
from cluster.job.long_prompts import LongPrompts
from cluster.job.strategy import Trial, stronger
from cluster.job.tasks import ClipTask
from cluster.prompts.check import require_prompts
from cluster.prompts.problems import describe_problems
from cluster.prompts.promptset import PromptSet, open_prompts
from cluster.prompts.row import PromptRow, TargetReading
from numina.errors import PromptSetError
from pipelines.base import ModelFacts
from pipelines.models.registry import inspect_model, resolve_device, resolve_dtype
from pipelines.parallel.support import resolve_engine
from pipelines.testbed import DEMO_PROMPTS

if TYPE_CHECKING:
    from numina.config import MethodConfig

FIRST_ROWS = 1000  # of a prompt set, checked before anything else is looked at


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
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

    @property
    def reading(self) -> TargetReading:
        """How targets are taken from prompts."""
        articles = self.job.targets_from == "numerals+articles"
        return TargetReading(articles=articles, doubtful=self.job.targets_doubtful)

    @cached_property
    def trials(self) -> list[Trial]:
        """What is asked for of every sample from the start. A verified one counts once, whatever its attempts are."""
        return self.job.trials(self.dtype)

    @property
    def rules(self) -> str:
        """Of `pipelines.rewriting.rules`, for prompts whose set has no `enhanced_prompt`."""
        return "testbed" if self.model.name == "testbed" else "general"

    def method_of(self, task: ClipTask) -> MethodConfig | None:
        """What a task's clip is guided by; None generates without NUMINA: nothing else is done where no count is
        asked for."""
        method = self.job.methods[task.strategy] if task.row.targets else None
        return method and stronger(method, task.strength)

    def identity(self) -> dict[str, Any]:
        """What run.json holds: all that must be the same for a later run into the same output."""
        return {
            "model": {"name": self.model.name, "revision": self.model.revision},
            "algorithm_version": ALGORITHM_VERSION,
            "seed": self.job.seed,
            **self.job.identity(self.dtype),
        }


def prepare(job: JobConfig) -> PreparedJob:
    """Checks model, shapes, degrees, the prompt set's files and columns, and its first rows whole.

    Raises an InputError before any GPU is taken.
    """
    check_submitted(job)
    model = inspect_model(job.model.path, job.model.revision, job.model.loras)
    device: str = job.model.device
    if device == "auto" and job.cluster.address != "local":
        device = "cuda"  # the driver may stand on a head node without a GPU
    elif job.cluster.address == "local":
        device = resolve_device(device)
    check_combination(job, model, device)
    path, dtype = prompt_path(job.prompts), resolve_dtype(job.model.dtype, device)
    prompts = open_prompts(path, limit=job.limit)
    prepared = PreparedJob(job=job, model=model, device=device, dtype=dtype, prompts=prompts)
    first = min(FIRST_ROWS, job.limit or FIRST_ROWS)
    if job.prompts_bad == "refuse":
        require_prompts(path, job.max_count, limit=first, reading=prepared.reading)
    rows = list(open_prompts(path, limit=first).parse(job.max_count, prepared.reading, bad=job.prompts_bad))
    if job.verifies:
        check_judge(job, rows)
    if job.prompts_bad == "refuse":
        _check_lengths(prepared, rows)
    return prepared


def _check_lengths(prepared: PreparedJob, rows: Iterable[PromptRow]) -> None:
    """Raises PromptSetError where a noun of the first rows is cut off; the worklist looks at the others, and warns."""
    long = LongPrompts(prepared.job, prepared.model, prepared.rules, warn=False)
    problems = [f"row {row.index}: {trouble}" for row in rows if (trouble := long.problem(row))]
    if problems:
        raise PromptSetError(describe_problems(prepared.prompts.path, problems))


def prompt_path(prompts: str) -> str:
    """Where a prompt set lies; `testbed:demo` and `scenes:demo` are shipped with the embedded models."""
    return str(DEMO_PROMPTS.get(prompts, prompts))
