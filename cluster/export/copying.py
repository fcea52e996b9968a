"""Videos from an output to where an export goes: whole or not at all, each copied once, what can't be had is named."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from cluster.dataset.store import Store
from cluster.storage.protocol import Files

Report = Callable[[int, int], None]

_AHEAD = 64  # videos under way, at most


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video to copy."""

    source: str  # name in the output
    name: str  # in the export
    sha256: str  # hex


class LostVideoError(Exception):
    """A video that isn't there, or isn't what its row says."""


def read_video(store: Store, source: str, sha256: str) -> bytes:
    """A video's bytes, as they were committed. Raises LostVideoError."""
    try:
        data = store.read(source)
    except FileNotFoundError:
        raise LostVideoError("missing") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LostVideoError("damaged: it differs from what was committed")
    return data


def copy_videos(store: Store, files: Files, videos: Sequence[Video], report: Report) -> dict[str, str]:
    """Copy all that isn't there yet with the same content; by source what is wrong with those that can't be had."""
    lost: dict[str, str] = {}
    with ThreadPoolExecutor(max(2, store.files.readers)) as pool:
        for done, (video, problem) in enumerate(_in_turn(pool, lambda video: _copy(store, files, video), videos), 1):
            if problem is not None:
                lost[video.source] = problem
            report(done, len(videos))
    return lost


def _in_turn(
    pool: ThreadPoolExecutor, act: Callable[[Video], str | None], videos: Iterable[Video]
) -> Iterator[tuple[Video, str | None]]:
    """Never far ahead, so that a hundred thousand waiting calls take no memory."""
    left = iter(videos)
    while some := list(islice(left, _AHEAD)):
        yield from zip(some, pool.map(act, some), strict=True)


def _copy(store: Store, files: Files, video: Video) -> str | None:
    if _is_there(files, video):
        return None
    try:
        data = read_video(store, video.source, video.sha256)
    except LostVideoError as problem:
        return str(problem)
    files.replace(video.name, data, durable=False)
    return None


def _is_there(files: Files, video: Video) -> bool:
    try:
        return hashlib.sha256(files.read(video.name)).hexdigest() == video.sha256
    except FileNotFoundError:
        return False
