"""From a judge's config to the judge. Model libraries are imported where one is loaded."""

from importlib import import_module
from typing import Any

from pipelines.judges.base import Judge, JudgeConfig

JUDGE_CLASSES = {  # module and class, of each kind
    "counter": "pipelines.judges.counter:ExactCounter",
    "grounding-dino": "pipelines.judges.grounding_dino:GroundingDino",
    "owlv2": "pipelines.judges.owlv2:Owlv2",
    "clip": "pipelines.judges.clip:Clip",
}


def load_judge(config: JudgeConfig) -> Judge:
    """Loads a judge for this process's device.

    Raises ConfigError where its device can't be had, ModelError for weights that are missing or cut off.
    """
    module, _, name = JUDGE_CLASSES[config.kind].partition(":")
    judge: Judge = getattr(import_module(module), name)(config)
    return judge


def inspect_judge(config: JudgeConfig) -> dict[str, Any]:
    """What a judge would run with, before anything is started: kind, and of weights their path, digest and bytes.

    A hub's files are downloaded, if need be; no tensor is read. Raises ConfigError for a hub id without a commit,
    ModelError for what is missing, with what to fetch and where to put it.
    """
    if config.kind == "counter":
        return {"kind": config.kind}
    from pipelines.judges.weights import facts_of, judge_folder

    return {"kind": config.kind, **facts_of(judge_folder(config))}
