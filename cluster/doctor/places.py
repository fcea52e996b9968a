"""Where a run writes: shared memory, temporary files, caches, the output."""

import os
import tempfile
import time
import uuid
from pathlib import Path
from shutil import disk_usage

from cluster.doctor.check import Finding, fails, ok, trouble, warning
from cluster.doctor.needs import Needs
from cluster.storage.destination import check_output, nearest
from cluster.storage.protocol import TEMPORARY
from numina.errors import MachineError
from pipelines.parallel.group import SHARED, shared_memory_trouble, small_shared_memory

PROBE_BYTES = 16 * 2**20  # written to measure a rate
FRAMES = 2**30  # bytes of /dev/shm that Ray should have for a few clips' frames
LITTLE = 2**30  # bytes of a disk: a few hundred videos
NOTHING = 64 * 2**20


def shared_memory(needs: Needs) -> Finding:
    """Ray keeps frames there, and NCCL its buffers; a container has 64 MiB of it by default."""
    if not SHARED.is_dir():
        return warning("there is no /dev/shm: Ray keeps frames on a disk", "mount a tmpfs there")
    if small_shared_memory() and needs.ranks > 1 and needs.needs_gpu:
        return trouble(shared_memory_trouble())
    size = disk_usage(SHARED)
    if size.free < FRAMES:
        said = f"{size.free / 2**20:.0f} of {size.total / 2**20:.0f} MiB are free: Ray keeps frames on a disk instead"
        return warning(said, shared_memory_trouble().remedy)
    return ok(f"{size.free / 2**30:.1f} GiB are free")


def temporary(needs: Needs) -> Finding:
    """mp4 files are made there, and Ray's sockets."""
    from pipelines.video.mp4 import temporary_folder

    folder = temporary_folder()
    rate, free = _rate_there(folder), disk_usage(folder).free
    said = f"{folder}: {rate:.0f} MB/s, {free / 2**30:.1f} GiB are free"
    asked = os.environ.get("TMPDIR")
    if asked and os.path.abspath(asked) != os.path.abspath(folder):
        return warning(f"TMPDIR is {asked!r}, which can't be written; {said}", "set TMPDIR to a folder that can be")
    return _by_room(said, free)


def caches(needs: Needs) -> Finding:
    """Downloads, compiled kernels and the marks of passed preflights."""
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    said = f"downloads go to {hub}"
    try:
        free = disk_usage(nearest(hub)).free
        _try_writing(nearest(hub))
        home = Path.home()
        _try_writing(home)
    except OSError as error:
        place = error.filename or hub
        found = f"{said}; {os.path.dirname(str(place)) or place} can't be written ({error.strerror})"
        return warning(found, "set HOME, or HF_HOME and TRITON_CACHE_DIR, to a folder that can be written")
    return ok(f"{said}, where {free / 2**30:.1f} GiB are free")


def prompts(needs: Needs) -> Finding:
    """The prompt set can be opened; `numina prompts check` looks at its rows."""
    from cluster.prompts.promptset import open_prompts

    assert needs.prompts is not None
    return ok(f"{open_prompts(needs.prompts, limit=needs.limit).rows} rows in {needs.prompts}")


def output(needs: Needs) -> Finding:
    """Through the store's own files: create-if-absent, a rate, and room."""
    assert needs.output is not None
    if needs.output_mark and not Path(needs.output_mark).exists():
        return fails(
            f"{needs.output} isn't on the disk here that the job's driver has there",
            "give a folder that all nodes share, or an object store such as s3://bucket/folder",
        )
    files = check_output(needs.output, single_writer=needs.single_writer)
    probe, content = f"{TEMPORARY}probe-{uuid.uuid4().hex}", os.urandom(PROBE_BYTES)
    began = time.perf_counter()
    try:
        files.replace(probe, content)
        rate = PROBE_BYTES / (time.perf_counter() - began) / 1e6
    finally:
        files.remove(probe)
    promise = "one writer at a time" if needs.single_writer else "create-if-absent works"
    said = f"{files.root}: {promise}, {rate:.0f} MB/s"
    if "://" in needs.output:
        return ok(said)
    free = disk_usage(files.root).free
    return _by_room(f"{said}, {free / 2**30:.1f} GiB are free", free)


def _by_room(said: str, free: int) -> Finding:
    if free < NOTHING:
        return fails(said, "free some space there, or name another place")
    return warning(said, "free some space there") if free < LITTLE else ok(said)


def _rate_there(folder: str) -> float:
    """MB/s of a file that is written and synchronised. Raises MachineError where none can be."""
    began = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise MachineError(
            f"a file of {PROBE_BYTES // 2**20} MiB can't be written in {folder} ({error.strerror})",
            "free some space there, or set TMPDIR to another folder",
        ) from error
    return PROBE_BYTES / (time.perf_counter() - began) / 1e6


def _try_writing(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder / "file")) from error
