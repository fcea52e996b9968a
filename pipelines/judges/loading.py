"""From a judge's config to the judge. Model libraries are imported where one is loaded."""

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any

from numina.prompts.targets import Target
from pipelines.judges.base import Judge, JudgeConfig
from pipelines.judges.registry import JUDGES


def load_judge(config: JudgeConfig) -> Judge:
    """Loads a judge for this process's device.

    Raises ConfigError where its device can't be had, ModelError for weights that are missing or cut off.
    """
    judge: Judge = resolve_name(JUDGES[config.kind].judge)(config)
    return judge


def inspect_judge(config: JudgeConfig) -> dict[str, Any]:
    """What a judge would run with, before anything is started: kind, and of weights their path, digest and bytes.

    A hub's files are downloaded, if need be; no tensor is read. Raises ConfigError for a hub id without a commit,
    ModelError for what is missing, with what to fetch and where to put it.
    """
    if JUDGES[config.kind].weights is None:
        return {"kind": config.kind}
    from pipelines.judges.weights import facts_of, judge_folder

    return {"kind": config.kind, **facts_of(judge_folder(config))}


def nouns_check(config: JudgeConfig) -> Callable[[str, Sequence[Target]], object] | None:
    """What raises InputError for a prompt's targets that the judge can't know, without loading it; None: it may any."""
    check = JUDGES[config.kind].check_nouns
    return resolve_name(check) if check else None
