"""A job's Ray: tried before it is joined; its own one needs no home and no short TMPDIR, and runs the driver's code."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

import cluster.job.joining
import cluster.runtime.fleet
from cluster.job.joining import PRIVATE, joined, reachable, running_clusters, socket_folder
from numina.errors import ConfigError, GangError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://10.0.0.1:10001", r"cluster\.address is 'ray://.*; Ray clients .* give HOST:PORT of the head"),
        ("http://10.0.0.1:8265", "job servers aren't supported"),
        ("10.0.0.1", "give local, auto, or HOST:PORT"),
        ("head:", "give local, auto, or HOST:PORT"),
        (":6379", "give local, auto, or HOST:PORT"),
        ("head:99999", "give local, auto, or HOST:PORT"),
        ("head:six", "give local, auto, or HOST:PORT"),
        ("", "give local, auto, or HOST:PORT"),
        ("no.such.host.invalid:6379", "nothing answers at no.such.host.invalid:6379"),
        ("ñ" * 80 + ":6379", "nothing answers"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, message: str) -> None:
    """By value, rule and remedy."""
    with pytest.raises(ConfigError, match=message):
        reachable(address)


def test_a_dead_ray_is_refused_at_once() -> None:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"nothing answers at 127\.0\.0\.1:{port} .*; is the cluster running"):
        reachable(f"127.0.0.1:{port}")


@pytest.fixture(params=["silent", "web"])
def other_server(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that is no Ray: one that says nothing, or one that speaks HTTP."""
    if request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]
    else:
        server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_another_server_is_refused_in_time(other_server: int) -> None:
    """Within 15 seconds, whatever it says."""
    began = time.monotonic()
    with pytest.raises(ConfigError, match="is no Ray head that lets this process in"):
        reachable(f"127.0.0.1:{other_server}")
    assert time.monotonic() - began < 16


@contextmanager
def a_head() -> Iterator[str]:
    """The address of a Ray in a process of its own: this one's Ray keeps the mode that it was first used in."""
    code = (
        "import sys; from ray.cluster_utils import Cluster\n"
        "head = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False})\n"
        "print(head.address, flush=True); sys.stdin.read(); head.shutdown()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture
def tokenless_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head that asks for no token, whatever token the home folder has."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with a_head() as address:
        yield address


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_the_token_of_the_home_folder_opens_a_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str) -> None:
    """`ray start` asks for a token once the home folder has one, and who joins by address isn't told. A head that asks
    for none gets none: it would start no actor."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("5eed" * 16)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with a_head() as address:
        monkeypatch.delenv("RAY_AUTH_MODE")
        code = (
            "import os, sys; from cluster.job.joining import reachable\n"
            "print(reachable(sys.argv[1]), os.environ.get('RAY_AUTH_MODE'))"
        )
        ask = [sys.executable, "-c", code, address]
        said = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True).stdout.split()
        assert said == [address, "token" if mode == "token" else "None"]
        (tmp_path / ".ray/auth_token").unlink()
        refused = "its token in RAY_AUTH_MODE" in subprocess.run(ask, cwd=ROOT, capture_output=True, text=True).stderr
        assert refused == (mode == "token")


def test_a_ray_that_answers_is_joined(tokenless_head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another version is refused before it is."""
    assert reachable(tokenless_head) == tokenless_head
    assert tokenless_head in running_clusters()
    monkeypatch.setattr(cluster.job.joining, "running_clusters", lambda: {tokenless_head})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert reachable("auto") == tokenless_head
    monkeypatch.setattr(ray, "__version__", "1.0")
    with pytest.raises(
        ConfigError, match=r"a Ray [\d.]+ on Python [\d.]+, but this is Ray 1\.0 on .*both must be the same"
    ):
        reachable(tokenless_head)


def test_auto_needs_one_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None or several are refused; RAY_ADDRESS names one."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(cluster.job.joining, "running_clusters", lambda: set())
    with pytest.raises(ConfigError, match="no Ray cluster runs on this machine; start one"):
        reachable("auto")
    monkeypatch.setattr(cluster.job.joining, "running_clusters", lambda: {"10.0.0.1:1", "10.0.0.2:2"})
    with pytest.raises(ConfigError, match=r"several Rays run here: give one of 10\.0\.0\.1:1, 10\.0\.0\.2:2"):
        reachable("auto")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"nothing answers at 127\.0\.0\.1:1"):
        reachable("auto")


def test_the_note_of_another_user_is_passed_over(tmp_path: Path) -> None:
    """`ray start` of somebody else may have left a file that only its user may read."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("127.0.0.1:1")
    (tmp_path / "ray/ray_current_cluster").chmod(0)
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    asks = "from cluster.job.joining import _noted; print(_noted())"
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*powerless, sys.executable, "-c", asks], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != "127.0.0.1:1"


def test_sockets_get_a_short_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TMPDIR if it is short and can be written, /tmp otherwise."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    (tmp_path / "file").touch()
    for bad in (str(tmp_path / ("x" * 90)), "/dev/null/x", str(tmp_path / "file"), "ñ" * 20):
        monkeypatch.setenv("TMPDIR", bad)
        folder = Path(socket_folder())
        assert folder.parent == Path("/tmp")
        assert folder.name.startswith(PRIVATE)
        folder.rmdir()
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    folder = Path(socket_folder())
    assert folder.parent == Path("/var/tmp")
    folder.rmdir()


DRIVER = """
import json, logging, os, sys
logging.basicConfig()
import pipelines, ray
from cluster.job.joining import joined, reachable, running_clusters
from cluster.observability.metrics import Metrics, endpoints, is_free
from cluster.workers.code import code_digest

@ray.remote
def imported():
    import cluster, numina, pipelines
    from cluster.workers.code import code_digest
    return [os.path.dirname(module.__file__) for module in (cluster, numina, pipelines)], code_digest()

with joined("local", num_cpus=1):
    own = ray.get_runtime_context().gcs_address
    places, digest = ray.get(imported.remote())
    metrics = Metrics("runs/ü/\\u6f22\\n\\udcff")
    metrics.failed("ö")
    metrics.now(states={"gang-ñ": "identify"}, busy={"gang-ñ": 0.5}, queued={})
    metrics.committed({"strategy": "ünï", "timings": {"identify": "no number"}})  # a bug of ours
    metrics.committed({"strategy": "a", "timings": None})
    found = {"places": places, "same": digest == code_digest(), "hidden": own not in running_clusters(),
             "cwd": os.getcwd(), "endpoints": endpoints(),
             "folder": ray._private.worker._global_node.get_temp_dir_path()}
with joined("local", num_cpus=1):
    found["again"] = ray.get(imported.remote())[0] == places
print(json.dumps(found | {"left": os.path.exists(found["folder"])}))
"""


def test_a_private_ray_takes_nothing_from_its_surroundings(tmp_path: Path) -> None:
    """No home, a TMPDIR that is too long, and a folder with packages of our names: workers import what the driver did;
    metrics of any name, and a bug in them, end nothing; `auto` of others doesn't find it, and nothing of it is left."""
    here, long = tmp_path / "another program", tmp_path / ("x" * 90)
    long.mkdir()
    for name in ("cluster", "numina", "pipelines"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text("raise RuntimeError('another program')\n")
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": "/dev/null/home", "TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], cwd=here, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["places"] == [str(ROOT / name) for name in ("cluster", "numina", "pipelines")]
    assert (found["same"], found["hidden"], found["again"], found["left"]) == (True, True, True, False)
    assert found["cwd"] == str(here)
    assert Path(found["folder"]).name.startswith(PRIVATE)
    assert not any(place.endswith(":-1") for place in found["endpoints"])
    assert done.stderr.count("metrics end here, the job continues") == 1


@pytest.mark.parametrize("names", [("pipelines",), ("numina", "pipelines")])
def test_the_driver_runs_its_own_code_from_any_folder(tmp_path: Path, names: tuple[str, ...]) -> None:
    """`python -m` puts the folder that it is started in first; the console script doesn't."""
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('another program')\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = "import sys; sys.path[0] = '/usr/bin'; from cluster.cli.app import main; main()"
    for command in (["-m", "cluster.cli"], ["-c", script]):
        done = subprocess.run(
            [sys.executable, *command, "config", "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_a_cluster_that_this_machine_is_no_part_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray says of it when it is joined is an error of ours."""

    def refuse(**options: Any) -> None:
        raise ConnectionError("no raylet here")

    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(GangError, match=r"can't be joined .*no raylet here.*must be a part"),
        joined("10.0.0.1:6379"),
    ):
        pass
