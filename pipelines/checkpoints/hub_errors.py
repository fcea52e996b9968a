"""What is said where files of the hub can't be had: the repository, why, and what to do."""

import errno
from collections.abc import Iterator

from numina.errors import ModelError

REFUSED = (401, 403)


def hub_error(error: BaseException, repository: str, revision: str | None) -> ModelError:
    """What huggingface_hub's error, or one that it comes from, means for whoever wants the files."""
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
    if constants.is_offline_mode():
        return ModelError(
            f"{where} is incomplete in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids downloads; run"
            " `numina models check` once without HF_HUB_OFFLINE, or set HF_HUB_CACHE to the folder that has it"
        )
    problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ModelError(
        f"{where} can't be downloaded ({problem}); check the network and try again: downloaded files are kept"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
