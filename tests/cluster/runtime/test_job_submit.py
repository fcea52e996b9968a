"""`ray job submit`: a job sent to a Ray that runs already, with token authentication and a dashboard on loopback."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.dataset.store import Store
from cluster.prompts.write import make_prompts
from tests.cluster.conftest import PROMPTS, TINY
from tests.forks import family
from tests.slurm.conftest import free_ports, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
STOP_WAIT = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})


class Head:
    """A Ray of four cores that `ray job` talks to."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port, client_port = free_ports(2)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.port}",
        }
        # Other Rays may run on this host: none of the ports may be a fixed one.
        ports = ["--port=0", f"--dashboard-port={self.port}", f"--ray-client-server-port={client_port}"]
        ports += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command = ["ray", "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}/ray", *ports]
        with (folder / "head.log").open("w") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def job(self, verb: str, *arguments: str, **environment: str) -> str:
        """What `ray job VERB` prints, whatever becomes of the job."""
        done = subprocess.run(
            ["ray", "job", verb, *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        return f"{done.stdout}{done.stderr}exit status {done.returncode}"

    def end(self) -> None:
        """Ends Ray with all of its processes."""
        processes = family(self.process.pid)
        self.process.terminate()
        self.process.wait(100)
        _, living = psutil.wait_procs(processes, timeout=20)
        for process in living:
            process.kill()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head that takes jobs; its folder's path is short, for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    head = Head(folder)
    try:
        wait_until(lambda: "exit status 0" in head.job("submit", "--", "true"), 200)
        yield head
    finally:
        head.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def job(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """What goes to `numina run`: two prompts, on one rank of that Ray."""
    make_prompts(PROMPTS, str(tmp_path / "prompts.parquet"))
    places = [f"prompts={tmp_path}/prompts.parquet", f"output={tmp_path}/out", f"model.path={tiny_checkpoint}"]
    return ["run", "--config", "demo", "cluster.address=auto", *places, *TINY, "parallel.ulysses=1"]


def test_a_checkout_is_sent_with_the_job(head: Head, job: list[str], tmp_path: Path) -> None:
    """No node needs numina: driver and ranks import it from the working directory, where its configs are, too."""
    checkout, imported = tmp_path / "checkout", tmp_path / "imported"
    for package in ("cluster", "configs", "numina", "pipelines"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("runtime/driver", "workers/rank"):
        with (checkout / f"cluster/{module}.py").open("a") as file:
            file.write(f"\nwith open({str(imported)!r}, 'a') as log: print(__name__, __file__, file=log)\n")
    log = head.job("submit", "--working-dir", str(checkout), "--", "python", "-m", "cluster.cli", *job)
    assert "4 of 4 videos" in log
    assert "exit status 0" in log
    assert len(rows(tmp_path)) == 4
    places = dict(line.split() for line in imported.read_text().splitlines())
    assert set(places) == {"cluster.runtime.driver", "cluster.workers.rank"}
    assert all("working_dir_files" in place for place in places.values())


def test_a_stopped_job_goes_on(head: Head, job: list[str], tmp_path: Path) -> None:
    """`ray job stop` lets clips under way be finished, given the time; submitted again, the job makes the others."""
    many = [*job, "strategies=[baseline]", "samples=40", "generation.steps=12"]
    head.job("submit", "--no-wait", "--submission-id=first", f"--runtime-env-json={STOP_WAIT}", "--", "numina", *many)
    wait_until(lambda: len(list((tmp_path / "out/commits").rglob("*.parquet"))) > 2, 400)
    head.job("stop", "first")
    assert "STOPPED" in head.job("status", "first").upper()
    log = head.job("logs", "first")
    assert "the same command continues" in log, log
    before = rows(tmp_path)
    assert 0 < len(before) < 80

    log = head.job("submit", "--", "numina", *many)
    assert "80 of 80 videos" in log
    assert f"{80 - len(before)} generated now" in log
    assert Counter(row["id"] for row in rows(tmp_path)) == {"pair": 40, "single": 40}


def test_a_failure_is_the_jobs(head: Head, job: list[str]) -> None:
    """Wrong input: the job's status, the reason in its log, and an exit status for scripts."""
    log = head.job("submit", "--submission-id=wrong", "--", "numina", *job, "parallel.ulises=2")
    assert "did you mean 'parallel.ulysses'?" in log
    assert "exit status 1" in log
    status = head.job("status", "wrong")
    assert "failed with exit code 2" in status


def test_strangers_are_refused(head: Head, tmp_path: Path) -> None:
    """The dashboard listens on loopback alone, and takes jobs only with the token."""
    listening = [
        at.laddr.ip for at in psutil.net_connections("tcp") if at.status == "LISTEN" and at.laddr.port == head.port
    ]
    assert listening == ["127.0.0.1"]
    assert "Missing authentication token" in head.job("submit", "--", "true", RAY_AUTH_MODE="disabled")
    assert "Invalid authentication token" in head.job("submit", "--", "true", RAY_AUTH_TOKEN="0" * 64)


def rows(folder: Path) -> list[dict]:
    return Store(f"{folder}/out", single_writer=True).rows().to_pylist()
