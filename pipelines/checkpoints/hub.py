"""Files of the Hugging Face hub: those of one commit, as a folder of huggingface_hub's cache.

Its environment variables mean here what they mean there, HF_HUB_OFFLINE, HF_HUB_CACHE and HF_TOKEN among them. A commit
that is in the cache is taken from it, and the hub isn't asked. Every node has a cache of its own, or a shared one: its
first process downloads, the others wait for it.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numina.errors import ConfigError, ModelError, NuminaError
from pipelines.checkpoints.hub_errors import hub_error

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
GB = 1e9  # bytes, as disks and networks count them
LINE_SECONDS = 10.0  # between two lines about a download
SPARE = 1 << 30  # bytes of a disk that a download must leave

log = logging.getLogger(__name__)
_under_way: dict[str, Download] = {}  # by hub id, in this process


def is_repository(path: str) -> bool:
    """Whether a path is a hub id, OWNER/NAME: one slash, and nothing of that name here."""
    return bool(REPOSITORY.fullmatch(path)) and not Path(path).exists()


def commit_of(path: str, revision: str | None, key: str) -> str | None:
    """The commit to fetch, where a path is a hub id; None where it is local. `key` is the setting they are of.

    Without a revision it is the hub's newest, or where the hub can't be asked that of the cache. Raises ConfigError for
    a branch or a tag: it would give other nodes and later runs other files. And for a local path with a revision: its
    files are taken as they are, so a commit named beside it would be a claim that nobody checks.
    """
    if not is_repository(path):
        if revision is not None:
            raise ConfigError(
                f"{key}.revision is {revision!r}, but {key}.path {path!r} is a local path, which has no revisions;"
                " leave the revision out"
            )
        return None
    if revision is None:
        return newest_commit(path)
    if not COMMIT.fullmatch(revision):
        raise ConfigError(
            f"{key}.revision is {revision!r}; {path!r} is no local path, and a hub id's revision is a commit, 40 hex"
            " digits, so that every node and every run has the same files: copy one from"
            f" https://huggingface.co/{path}/commits, leave it out for the newest, or give a local path"
        )
    return revision


def newest_commit(repository: str) -> str:
    """The commit of a repository's default branch; where the hub can't be asked, the cache's. Raises ModelError."""
    from huggingface_hub import HfApi

    with _told(repository, None):
        return HfApi().resolve_revision(repository).resolved


def fetch(repository: str, commit: str, files: Sequence[str], but: str | None = None) -> Path:
    """The folder of a commit with its files that match the patterns, `but` those that match another; what isn't in the
    cache is downloaded, by one process of this node.

    Raises ModelError where they can't be had. Whole files are kept, and the next try fetches the others.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError
    from huggingface_hub.utils import WeakFileLock

    wanted: dict[str, Any] = {"revision": commit, "allow_patterns": [*files], "ignore_patterns": but}
    with _told(repository, commit):
        try:
            if not _missing(repository, wanted):
                return Path(snapshot_download(repository, **wanted))
        except DryRunError:  # nothing can be asked, and the cache has no listing: what is there is taken
            return Path(snapshot_download(repository, **wanted))
        locks = cache_folder(repository).parent / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"numina-{cache_folder(repository).name}.lock"):
            missing = _missing(repository, wanted)  # by now another process may have them
            if not missing:
                return Path(snapshot_download(repository, **wanted))
            _check_disk(repository, missing)
            with Download(repository, sum(file.file_size or 0 for file in missing)).shown() as bar:
                return Path(snapshot_download(repository, tqdm_class=bar, **wanted))


def cached(repository: str, commit: str | None, files: Sequence[str], but: str | None = None) -> Path | None:
    """The same folder where the cache has all of it, of any commit if none is given; nothing is asked of the hub."""
    if not cache_folder(repository).is_dir():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, revision=commit, allow_patterns=[*files], ignore_patterns=but, local_files_only=True
        )
    except (OSError, LocalEntryNotFoundError):
        return None
    return Path(folder)


def cache_folder(repository: str) -> Path:
    """Where huggingface_hub keeps a repository's files on this machine."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repository.replace('/', '--')}"


def downloading() -> str:
    """What this process downloads at the moment, in words; empty if nothing."""
    return "; ".join(str(download) for download in list(_under_way.values()))


class Download:
    """How far a download is: a line of the log now and then, and `downloading()` for who asks."""

    def __init__(self, repository: str, size: int):
        self.repository, self.size = repository, size
        self.done = 0  # bytes
        self._began = self._said = time.monotonic()

    @property
    def rate(self) -> float:
        """Bytes a second, since it began."""
        return self.done / max(time.monotonic() - self._began, 1e-3)

    def __str__(self) -> str:
        left = (self.size - self.done) / self.rate if self.done else 0.0
        to_go = f", {left / 60:.0f} min to go" if left >= 60 else f", {left:.0f} s to go" if left >= 1 else ""
        return (
            f"{self.done / GB:.2f} of {self.size / GB:.2f} GB of {self.repository}, {self.rate / 1e6:.0f} MB/s{to_go}"
        )

    def reached(self, done: int) -> None:
        """So many bytes are here."""
        self.done = done
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            log.info("downloading %s", self)

    @contextmanager
    def shown(self) -> Iterator[type]:
        """A bar for huggingface_hub that draws nothing and reports here; lines at the begin and the end."""
        from tqdm import tqdm

        download = self

        class Bar(tqdm):
            """Of several that huggingface_hub makes; the one in bytes that counts what is written is followed."""

            def __init__(self, *arguments: Any, **options: Any):
                self._bytes = options.get("unit") == "B" and not str(options.get("desc")).startswith("Downloading")
                super().__init__(*arguments, **{**options, "disable": False, "mininterval": 0.5})

            def display(self, *arguments: Any, **options: Any) -> None:
                if self._bytes:
                    download.reached(int(self.n))

            def close(self) -> None:
                self.leave = False
                self.disable = True

        log.info("downloading %.2f GB of %s to %s", self.size / GB, self.repository, cache_folder(self.repository))
        _under_way[self.repository] = self
        try:
            yield Bar
        finally:
            del _under_way[self.repository]
        self.done = self.size
        seconds = time.monotonic() - self._began
        log.info("downloaded %s in %.0f s, %.0f MB/s", self.repository, seconds, self.rate / 1e6)


def _missing(repository: str, wanted: Mapping[str, Any]) -> list[DryRunFileInfo]:
    """The files that would be downloaded; where all are cached, the hub isn't asked."""
    from huggingface_hub import snapshot_download
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **{**options, "disable": True})

    found: list[DryRunFileInfo] = snapshot_download(repository, dry_run=True, tqdm_class=Silent, **wanted)
    return [file for file in found if file.will_download]


def _check_disk(repository: str, missing: Sequence[DryRunFileInfo]) -> None:
    """Raises ModelError where the cache's disk hasn't room for a download."""
    folder = cache_folder(repository)
    needed = sum(file.file_size or 0 for file in missing)
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    if needed + SPARE > free:
        raise ModelError(
            f"{repository} needs {needed / GB:.1f} GB more in {folder.parent}, and a GB to spare, but its disk has"
            f" {free / GB:.1f} GB free; free some, or set HF_HUB_CACHE to a folder on a larger disk"
        )


@contextmanager
def _told(repository: str, commit: str | None) -> Iterator[None]:
    """Raises what huggingface_hub raises as ModelError, with what to do about it."""
    try:
        yield
    except NuminaError:
        raise
    except Exception as error:  # also Xet's RuntimeErrors, and of proxies and endpoints that can't be one, all kinds
        raise hub_error(error, repository, commit, cache_folder(repository)) from error
