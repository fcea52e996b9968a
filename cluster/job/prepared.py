"""What a job is: its clips, each with a key, and the row that each becomes. Checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.job.checked import CheckedJob, check_job
from cluster.job.checks import check_judge, check_submitted
from cluster.job.config import ALGORITHM_VERSION, JobConfig
from cluster.job.long_prompts import LongPrompts
from cluster.job.pinning import pinned
from cluster.job.strategy import stronger
from cluster.job.tasks import ClipTask
from cluster.prompts.check import require_prompts
from cluster.prompts.problems import describe_problems
from cluster.prompts.promptset import PromptSet, open_prompts
from cluster.prompts.row import PromptRow, TargetReading
from numina.errors import PromptSetError
from pipelines.models.published import UNREAD
from pipelines.models.registry import inspect_model
from pipelines.testbed import DEMO_PROMPTS

if TYPE_CHECKING:
    from numina.config import MethodConfig

FIRST_ROWS = 1000  # of a prompt set, checked before anything else is looked at


@dataclass(frozen=True, kw_only=True)
class PreparedJob(CheckedJob):
    """A job whose settings and first rows were checked; `worklist.open_worklist` checks the others."""

    prompts: PromptSet

    @property
    def asked(self) -> int:
        """Videos of the whole prompt set, all shards; a few less where samples of several rows share a seed."""
        return self.prompts.rows * self.job.samples * len(self.trials)

    @property
    def reading(self) -> TargetReading:
        """How targets are taken from prompts."""
        articles = self.job.targets_from == "numerals+articles"
        return TargetReading(articles=articles, doubtful=self.job.targets_doubtful)

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

    A hub's checkpoint is downloaded, if need be, and its commit is settled.

    Raises an InputError before any GPU is taken.
    """
    check_submitted(job)
    job = pinned(job)
    return with_prompts(check_job(job, inspect_model(job.model.path, job.model.revision, job.model.loras)))


def with_prompts(checked: CheckedJob, *, judge: bool = True) -> PreparedJob:
    """A checked job with its prompt set: files, columns and first rows are checked, and the judge of verified clips, if
    its weights are to be there. What takes the tokenizer of a model that isn't here isn't."""
    job = checked.job
    path = prompt_path(job.prompts)
    prompts = open_prompts(path, limit=job.limit)
    prepared = PreparedJob(job=job, model=checked.model, device=checked.device, dtype=checked.dtype, prompts=prompts)
    first = min(FIRST_ROWS, job.limit or FIRST_ROWS)
    if job.prompts_bad == "refuse":
        require_prompts(path, job.max_count, limit=first, reading=prepared.reading)
    rows = list(open_prompts(path, limit=first).parse(job.max_count, prepared.reading, bad=job.prompts_bad))
    if job.verifies:
        check_judge(job, rows, weights=judge)
    if job.prompts_bad == "refuse" and checked.model.revision != UNREAD:
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
