"""A disk that is soon full, and a real S3 server with a bucket."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import s3fs

from tests.faults.jobs import Job
from tests.faults.s3_server import USER, Server
from tests.forks import family


@pytest.fixture(autouse=True)
def no_job_left() -> Iterator[None]:
    """A test that fails amid a job would leave it to run for ever beside the others."""
    yield
    while Job.started:
        process = Job.started.pop()
        if process.poll() is None:
            orphans = family(process.pid)
            process.kill()
            process.wait()
            for orphan in orphans:
                with suppress(psutil.NoSuchProcess):
                    orphan.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 1 MiB."""
    folder = tmp_path / "out"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small filesystem needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Of S3, a process of its own."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own, in the environment that clients read."""
    for name, value in {**USER, "AWS_ENDPOINT_URL": server.endpoint}.items():
        monkeypatch.setenv(name, value)
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    s3fs.S3FileSystem.clear_instance_cache()  # one made for another server
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
