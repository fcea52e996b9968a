"""The Ray of a job: one that runs already, looked for and tried before it is joined, or one of the job's own.

A Ray of a job's own has a folder `numina-…` for its sockets and logs, and its own token: it needs no home folder and no
particular TMPDIR, and `auto` doesn't find it. Workers import numina from where the driver did.
"""

import json
import logging
import os
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster.private.ray import load_token, token_loader
from numina.errors import ConfigError, GangError, MachineError

PRIVATE = "numina-"  # begins the name of the folder of a job's own Ray
CONNECT_SECONDS = 5.0  # for a port to answer
PROBE_SECONDS = 10.0  # for a Ray head to say what it is; with CONNECT_SECONDS at most 15
SOCKET_BYTES = 107  # the longest path of a Unix socket
FOLDER_BYTES = 32 * 2**20  # free where Ray's folder is: without room for its logs it doesn't start, nor say why
BELOW_FOLDER = 64  # bytes of the longest socket's path below Ray's folder

OPEN_FILES = 65536  # that are asked for
OPEN_FILES_NEEDED = 128  # by Ray for a job of one gang; by 64 it is killed, and says nothing of files
OPEN_FILES_REMEDY = "raise the limit: `ulimit -n 65536`, LimitNOFILE, or --ulimit nofile=65536 of a container"

_PROBE = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster", timeout=5).decode())
"""

log = logging.getLogger(__name__)


def reachable(address: str, setting: str = "cluster.address") -> str:
    """Where the Ray that is meant answers, HOST:PORT; `local` stays `local`.

    Raises ConfigError, within 15 seconds, if none answers there, or one of another version of Ray or Python.
    """
    if address == "local":
        return address
    if "://" in address:
        raise ConfigError(
            f"{setting} is {address!r}; Ray clients and job servers aren't supported: give HOST:PORT of the head (port"
            " 6379 unless it was started with another) on a machine of the cluster, or use `ray job submit`"
        )
    place = _found(setting) if address == "auto" else address
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"{setting} is {address!r}; give local, auto, or HOST:PORT such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{setting} is {address!r}, but nothing answers at {place} ({error}); is the cluster running? `ray status"
            f" --address {place}` asks it; local starts a Ray for this job"
        ) from error
    _check_versions(setting, place, _metadata(setting, place))
    return place


def allow_open_files() -> None:
    """Takes as many open files as this process may have: Ray's processes, which inherit that, need many.

    Raises MachineError where these are too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < OPEN_FILES_NEEDED:
        raise MachineError(
            f"a process may have {most} open files here, and Ray needs {OPEN_FILES_NEEDED}",
            OPEN_FILES_REMEDY,
        )


def _metadata(setting: str, place: str) -> dict[str, str]:
    """What a Ray head says of itself. Asked by another process: in this one Ray would end it if it's no head.

    The home folder's token is taken if the head wants one, and only then: one that wants none starts no actor for who
    comes with a token.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROBE, place],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
        )
        if "AuthenticationError" in asked.stderr and "RAY_AUTH_MODE" not in os.environ and load_token():
            return _metadata(setting, place)
        found: dict[str, str] = json.loads(asked.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        said = "" if isinstance(error, subprocess.TimeoutExpired) else asked.stderr.strip().rpartition("\n")[2]
        raise ConfigError(
            f"{setting} is {place!r}, but what answers there is no Ray head that lets this process in"
            f"{f' ({said[:200]})' if said else ''}; give the head's port (6379 by default), and its token in"
            " RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if it has one"
        ) from error
    return found


def _check_versions(setting: str, place: str, metadata: dict[str, str]) -> None:
    theirs = metadata.get("ray_version"), metadata.get("python_version")
    mine = ray.__version__, ".".join(map(str, sys.version_info[:3]))
    if theirs != mine:
        raise ConfigError(
            f"{setting} is {place!r}, a Ray {theirs[0]} on Python {theirs[1]}, but this is Ray {mine[0]} on Python"
            f" {mine[1]}; both must be the same: use the cluster's environment, or start the cluster from this one"
        )


# --- auto ---


def _found(setting: str) -> str:
    """The Ray that `auto` means: RAY_ADDRESS, the one that `ray start` began last, or the only one on this machine."""
    if (given := os.environ.get("RAY_ADDRESS") or "auto") != "auto":
        return given
    running = running_clusters()
    noted = _noted()
    if noted in running:
        return str(noted)
    if len(running) == 1:
        return running.pop()
    if running:
        raise ConfigError(f"{setting} is auto, but several Rays run here: give one of {', '.join(sorted(running))}")
    raise ConfigError(
        f"{setting} is auto, but no Ray cluster runs on this machine; start one (ray start --head), give its HOST:PORT,"
        " or local to start a Ray for this job"
    )


def _noted() -> str | None:
    """The address that `ray start` noted in its folder."""
    for folder in (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"):
        if folder and (file := Path(folder) / "ray/ray_current_cluster").is_file():
            try:
                return file.read_text(encoding="utf-8").strip()
            except PermissionError:  # another user's
                continue
    return None


def running_clusters() -> set[str]:
    """Heads' addresses of all Rays with a part on this machine, without those that belong to one job alone."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").replace("\0", " ").split(" ")
        except OSError:  # it has ended, or is another user's
            continue
        if not words[0].endswith("/raylet/raylet"):
            continue
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if not Path(options.get("--temp-dir", "")).name.startswith(PRIVATE) and options.get("--gcs-address"):
            found.add(options["--gcs-address"])
    return found


# --- join, or start ---


@contextmanager
def joined(address: str, **local: Any) -> Iterator[None]:
    """The Ray at an address that was `reachable`, joined and left again; `local` starts one with these options of
    `ray.init`, and ends it.

    Raises GangError if it can't be joined, MachineError if none can be started here, ConfigError if there is no place
    for its sockets.
    """
    allow_open_files()
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address != "local":
        try:
            with _beside_the_code():
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise GangError(
                f"the Ray at {address} can't be joined ({error}); this machine must be a part of the cluster"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    folder = socket_folder()
    try:
        with _own_token():
            try:
                _start(folder, **options, **local)
                yield
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str, **options: Any) -> None:
    """Raises MachineError where Ray can't, with what it needs: its own messages are about its parts."""
    try:
        with _beside_the_code():
            ray.init(address="local", _temp_dir=folder, include_dashboard=False, **options)
    except Exception as error:
        free = shutil.disk_usage(folder).free / 2**20
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise MachineError(
            f"no Ray can be started here ({said}); {folder} has {free:.0f} MiB free",
            "free some space there or set RAY_TMPDIR to another folder, and see that memory, processes (`ulimit -u`)"
            " and open files aren't at their limits",
        ) from error


def socket_folder() -> str:
    """A new folder for a Ray's sockets, whose paths a long TMPDIR would make too long."""
    asked = [os.environ[name] for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)]
    longest = SOCKET_BYTES - BELOW_FOLDER - len(f"/{PRIVATE}12345678")
    for place in [*asked, "/tmp", "/var/tmp", "/dev/shm"]:
        if len(os.fsencode(os.path.abspath(place))) <= longest:
            try:
                folder = tempfile.mkdtemp(prefix=PRIVATE, dir=os.path.abspath(place))
            except OSError:
                continue
            if shutil.disk_usage(folder).free >= FOLDER_BYTES:
                return folder
            os.rmdir(folder)
    raise ConfigError(
        f"TMPDIR is {os.environ.get('TMPDIR')!r}, but Ray needs a folder that can be written, has"
        f" {FOLDER_BYTES // 2**20} MiB free, and whose path has at most {longest} bytes, and /tmp, /var/tmp and"
        " /dev/shm are none either; set RAY_TMPDIR to one"
    )


@contextmanager
def _own_token() -> Iterator[None]:
    """A token for a Ray of this job, unless the environment has one. Ray's own would lie in the home folder, which may
    be read-only, and be shared by all jobs."""
    tokens = token_loader()
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    tokens.reset_cache()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        tokens.reset_cache()


@contextmanager
def _beside_the_code() -> Iterator[None]:
    """The working directory that Ray puts first on its workers' import path is the folder of our packages.

    Where the user stands may be a folder with a `pipelines/` of its own, or another checkout.
    """
    before = os.open(".", os.O_RDONLY)  # also where it was removed meanwhile
    try:
        os.chdir(Path(__file__).resolve().parents[2])
        yield
    finally:
        os.fchdir(before)
        os.close(before)
