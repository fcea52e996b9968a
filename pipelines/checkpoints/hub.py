"""Files of the Hugging Face hub: those of one commit, as a folder of huggingface_hub's cache.

Its environment variables mean here what they mean there, HF_HUB_OFFLINE, HF_HUB_CACHE and HF_TOKEN among them. A commit
that is in the cache is taken from it, and the hub isn't asked. Every node has a cache of its own, or a shared one; a
gang has cluster.start_timeout to fill it, and `numina models check` fills it before that clock runs.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from numina.errors import ConfigError
from pipelines.checkpoints.hub_errors import hub_error

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_repository(path: str) -> bool:
    """Whether a path is a hub id, OWNER/NAME: one slash, and nothing of that name here."""
    return bool(REPOSITORY.fullmatch(path)) and not Path(path).exists()


def commit_of(path: str, revision: str | None, key: str) -> str | None:
    """The commit to fetch, where a path is a hub id; None where it is local. `key` is the setting they are of.

    Raises ConfigError for a hub id that isn't pinned: a branch would give other nodes and later runs other files. And
    for a local path with a revision: its files are taken as they are, so a commit named beside it would be a claim that
    nobody checks.
    """
    if not is_repository(path):
        if revision is not None:
            raise ConfigError(
                f"{key}.revision is {revision!r}, but {key}.path {path!r} is a local path, which has no revisions;"
                " leave the revision out"
            )
        return None
    if not COMMIT.fullmatch(revision or ""):
        raise ConfigError(
            f"{key}.revision is {revision!r}; {path!r} is no local path, and a hub id needs a commit, 40 hex digits,"
            " so that every node and every run has the same files: copy one from"
            f" https://huggingface.co/{path}/commits, or give a local path"
        )
    return revision


def fetch(repository: str, commit: str, files: Sequence[str], but: str | None = None) -> Path:
    """The folder of a commit with its files that match the patterns, `but` those that match another; what isn't in the
    cache is downloaded.

    Raises ModelError where they can't be had. What was downloaded until then is kept, and the next try goes on from it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(repository, revision=commit, allow_patterns=[*files], ignore_patterns=but))
    except (OSError, HTTPError, RuntimeError) as error:  # the last is what its Xet transfer raises
        raise hub_error(error, repository, commit) from error
