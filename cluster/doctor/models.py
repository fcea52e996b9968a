"""Checkpoints: a folder that is whole, or a hub that lets this machine in."""

from collections.abc import Callable
from email.message import Message
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cluster.doctor.check import Finding, ok, warning
from cluster.doctor.needs import Needs
from numina.errors import ModelError

HUB_SECONDS = 5.0


def model(needs: Needs) -> Finding:
    """The job's model."""
    from pipelines.checkpoints.hub import is_repository
    from pipelines.models.registry import inspect_model

    assert needs.model is not None
    if not is_repository(needs.model):
        facts = inspect_model(needs.model, needs.revision)
        return ok(f"{facts.name}: {facts.depth} blocks, all files are there")
    return _from_hub(needs.model, needs.revision, lambda: inspect_model(str(needs.model), needs.revision))


def judge(needs: Needs) -> Finding:
    """The one that verifies clips."""
    from cluster.job.judge import judge_config
    from pipelines.checkpoints.hub import is_repository
    from pipelines.judges import inspect_judge

    config = judge_config(str(needs.judge), needs.judge_settings)
    if config.path is None or not is_repository(config.path):
        inspect_judge(config)
        return ok(f"{config.name}: all files are there")
    return _from_hub(config.path, config.revision, lambda: inspect_judge(config))


def hub(needs: Needs) -> Finding:
    """Whether models can be downloaded."""
    from huggingface_hub import constants

    try:
        hub_headers()
    except OSError as error:
        return warning(
            f"{constants.ENDPOINT} can't be reached ({error})",
            "set HTTPS_PROXY or HF_ENDPOINT, or give model.path a folder",
        )
    return ok(f"{constants.ENDPOINT} answers")


def hub_headers() -> Message:
    """What the hub answers with, whatever it answers. Raises OSError where it doesn't."""
    from huggingface_hub import constants

    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS) as answer:
            headers: Message = answer.headers
            return headers
    except HTTPError as error:
        return error.headers


def _from_hub(repository: str, revision: str | None, inspect: Callable[[], object]) -> Finding:
    """Reachable and readable for this user; else all of it in the cache."""
    from huggingface_hub import HfApi, constants

    from pipelines.checkpoints.hub import cache_folder
    from pipelines.checkpoints.hub_errors import hub_error

    try:
        HfApi().auth_check(repository)
        found = HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS)
        return ok(f"{repository} at {found.sha}: the hub lets this machine read it")
    except Exception as error:
        trouble = hub_error(error, repository, revision, cache_folder(repository))
    constants.HF_HUB_OFFLINE = True  # this process ends with the check
    try:
        inspect()
    except ModelError:
        raise trouble from None
    return ok(f"{repository} is complete in {constants.HF_HUB_CACHE}; the hub isn't needed")
