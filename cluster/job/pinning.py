"""Commits for hub ids without a revision: settled once when a job starts, and kept by its output for later starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.dataset.store import Store
from cluster.job.judge import judge_config
from pipelines.checkpoints.hub import is_repository, newest_commit

if TYPE_CHECKING:
    from cluster.job.config import JobConfig
    from pipelines.judges.base import JudgeConfig

log = logging.getLogger(__name__)


def pinned(job: JobConfig) -> JobConfig:
    """The job with a commit for every hub id: a given one, that with which its output was begun, or the hub's newest.

    Raises ModelError where a commit can't be had.
    """
    if not any(revision is None for revision in hub_commits(job).values()):
        return job
    known = Store(job.output, single_writer=True).hub_commits()
    model = replace(
        job.model,
        revision=_commit(job.model.path, job.model.revision, known),
        loras=[replace(lora, revision=_commit(lora.path, lora.revision, known)) for lora in job.model.loras],
    )
    judge = dict(job.judge)
    if job.verifies and (revision := pinned_judge(judge_config(job.verify.judge, judge), known).revision):
        judge["revision"] = revision
    return replace(job, model=model, judge=judge)


def pinned_judge(judge: JudgeConfig, known: Mapping[str, str]) -> JudgeConfig:
    """The same for a judge, with the commits that its output knows."""
    return replace(judge, revision=_commit(judge.path, judge.revision, known))


def hub_commits(job: JobConfig) -> dict[str, str | None]:
    """The hub ids of a job, each with its commit; None where it has none yet."""
    asked = [(job.model.path, job.model.revision), *((lora.path, lora.revision) for lora in job.model.loras)]
    if job.verifies:
        judge = judge_config(job.verify.judge, job.judge)
        asked.append((judge.path or "", judge.revision))
    return {path: revision for path, revision in asked if is_repository(path)}


def _commit(path: str | None, revision: str | None, known: Mapping[str, str]) -> str | None:
    if revision is not None or path is None or not is_repository(path):
        return revision
    commit = known.get(path) or newest_commit(path)
    log.info("%s: commit %s%s", path, commit, ", as the output was begun with" if path in known else "")
    return commit
