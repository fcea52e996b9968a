"""Prompt sets that aren't on a disk: HTTP, S3 and memory, read where they lie."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.prompts.promptset import open_prompts
from numina.errors import PromptSetError
from tests.cluster.prompts.test_promptset import a_set


def start(command: list[str], port: int, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A server process, when it answers."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    process.kill()
    raise TimeoutError(f"{command} doesn't answer")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with a set, and the addresses at which it is served: by a plain HTTP server and from S3."""
    s3fs = pytest.importorskip("s3fs")
    folder = tmp_path_factory.mktemp("served")
    rows = range(400)
    noise = np.random.default_rng(0).bytes(400 * 20_000)  # 8 MB: more than a reader fetches at once
    padding = [noise[row * 20_000 : (row + 1) * 20_000] for row in rows]
    for name in ("part-0", "part-1"):
        prompts = [f"three cats and number {name[-1]}{row}" for row in rows]
        a_set(folder / f"set/{name}.parquet", {"prompt": prompts, "padding": padding}, row_group_size=150)
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        http, s3 = one.getsockname()[1], two.getsockname()[1]
    secrets = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    settings = {**secrets, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}", "AWS_DEFAULT_REGION": "us-east-1"}
    servers = [
        start(["-m", "http.server", str(http), "--bind", "127.0.0.1"], http, folder, dict(os.environ)),
        start(["-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3)], s3, folder, os.environ | secrets),
    ]
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()  # one of another test knows another server
            bucket = s3fs.S3FileSystem()
            bucket.mkdir("prompts")
            for file in (folder / "set").iterdir():
                bucket.put_file(str(file), f"prompts/set/{file.name}")
            yield folder, {"http": f"http://127.0.0.1:{http}", "s3": "s3://prompts"}
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for server in servers:
            server.kill()
            server.wait()


@pytest.mark.parametrize("protocol", ["http", "s3"])
@pytest.mark.parametrize("place", ["set/part-1.parquet", "set/", "set/part-*.parquet"])
def test_a_set_is_read_from_where_it_lies(served: tuple[Path, dict[str, str]], protocol: str, place: str) -> None:
    """A file, a folder or a glob, on S3 and on a plain HTTP server that can't send parts of files: as from a disk."""
    folder, addresses = served
    here, there = open_prompts(str(folder / place)), open_prompts(f"{addresses[protocol]}/{place}")
    assert there.rows == here.rows
    assert {bool(file.options) for file in there.files} == {protocol == "http"}  # read whole there, in parts from S3
    expected = [batch for _, batch in here.read()]
    assert all(batch.equals(other) for (_, batch), other in zip(there.read(), expected, strict=True))
    backwards = there.read(reversed(there.blocks), ["prompt"])
    prompts = [batch.column("prompt").to_pylist() for _, batch in backwards]
    assert prompts == [batch.column("prompt").to_pylist() for batch in reversed(expected)]


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_set_that_isnt_there_is_an_error(served: tuple[Path, dict[str, str]], protocol: str) -> None:
    """On object stores and web servers too the message names what was asked for."""
    for place in ("set/part-7.parquet", "nothing/", "set/nothing-*.parquet"):
        with pytest.raises(PromptSetError, match=place.replace("*", r"\*")):
            open_prompts(f"{served[1][protocol]}/{place}")
