"""What is said where files of the hub can't be had: the repository, why, and what to do."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from numina.errors import ModelError

REFUSED = (401, 403)
ROUTES = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")  # of the environment: what leads to the hub


def hub_error(error: BaseException, repository: str, revision: str | None, cache: Path) -> ModelError:
    """What huggingface_hub's error, or one that it comes from, means for whoever wants the files.

    `cache` is the repository's folder in huggingface_hub's cache, which may not exist.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{repository} at {revision}" if revision else repository
    page = f"https://huggingface.co/{repository}"
    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return ModelError(f"{where} is gated: accept its terms at {page}, and set HF_TOKEN on every node")
        if isinstance(cause, RepositoryNotFoundError):
            return ModelError(
                f"{where} isn't on the hub, or is private; correct the name, or set HF_TOKEN on every node"
            )
        if isinstance(cause, RevisionNotFoundError):
            return ModelError(f"{repository} has no commit {revision}; copy one from {page}/commits")
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return ModelError(
                f"{where} doesn't fit the disk of {constants.HF_HUB_CACHE} ({cause.strerror}); free some space there,"
                " or set HF_HUB_CACHE to a folder on a larger disk: downloaded files are kept"
            )
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT):
            return ModelError(
                f"{where} can't be written to {cause.filename or constants.HF_HUB_CACHE} ({cause.strerror}); set"
                " HF_HOME, or HF_HUB_CACHE, to a folder that can be written"
            )
        if (status := _status(cause)) in REFUSED:
            return ModelError(f"the hub refuses {where} (HTTP {status}); set HF_TOKEN to a valid token on every node")
    snapshot = cache / (f"snapshots/{revision}" if revision else "refs/main")
    command = f"`hf download {repository}{f' --revision {revision}' if revision else ''}`"
    if constants.is_offline_mode():
        return ModelError(
            f"{where} is incomplete in the cache, {snapshot}, and HF_HUB_OFFLINE forbids downloads; run {command}"
            " where there is a network and copy the cache here, or set HF_HUB_CACHE to the folder that has it"
        )
    problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    named = " and ".join(name for name in ROUTES if os.environ.get(name) or os.environ.get(name.lower()))
    check = f"the network and {named}, which {'are' if ' and ' in named else 'is'} set," if named else "the network"
    return ModelError(
        f"{where} can't be downloaded ({problem}), and isn't whole in {snapshot}; check {check} and try again:"
        f" downloaded files are kept. {command} fetches it, too"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
