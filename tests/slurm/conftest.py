"""A real SLURM on this host, of two "nodes" of four "CPUs" each, from Debian's packages slurm-wlm and munge."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.dataset.store import Store
from cluster.prompts.write import make_prompts
from tests.cluster.conftest import TINY

ROOT = Path(__file__).parent.parent.parent
COUNTS, COLOURS = ("two", "three", "four"), ("red", "blue")
IDS = [f"{count}-{colour}" for count in COUNTS for colour in COLOURS]
DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential can't be used any more: 120 seconds, if nothing is said.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
KillWait=5
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
# Jobs in `urgent` preempt the others, which get this many seconds of grace.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=25
PartitionName=urgent Nodes=ALL State=UP PriorityTier=2
"""

# A stand-in for `numina`: it prints its arguments and, while a file `wait` is there, waits for a signal.
FAKE = """#!/bin/bash
echo "given: $*"
trap 'echo heard USR2; exit {status}' USR2
trap 'echo heard TERM; exit {status}' TERM
while [[ -e wait ]]; do sleep 0.1; done
exit {status}
"""


class Slurm:
    """The commands of one SLURM. Jobs are submitted from a test's folder, with this Python's `numina` on the PATH."""

    def __init__(self, config: Path, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(config),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def __call__(self, *command: str) -> str:
        """A command's output."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = (), **environment: str) -> str:
        """The id of a job of one of our scripts."""
        exported = [f"--export=ALL,{','.join(f'{name}={value}' for name, value in environment.items())}"]
        answer = self("sbatch", "--parsable", *options, *exported, str(ROOT / "slurm" / script), *arguments)
        return answer.strip()

    def field(self, job: str, name: str) -> str:
        """What SLURM says of a job or of a task of an array."""
        found = re.search(rf"\b{name}=(\S*)", self("scontrol", "show", "job", "--oneliner", job))
        assert found, f"{job} has no {name}"
        return found[1]

    def jobs(self, *jobs: str) -> str:
        """Those that aren't over, of some or of all."""
        return self("squeue", "--noheader", *(["--jobs", ",".join(jobs)] if jobs else [])).strip()

    def wait(self, *jobs: str, seconds: float = 400) -> None:
        """Until the jobs are over, and not merely requeued."""
        wait_until(lambda: not self.jobs(*jobs), seconds, self.logs)

    def logs(self) -> str:
        """What the jobs of this test have printed."""
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("*.log")))


def wait_until(condition: Callable[[], object], seconds: float, reason: Callable[[], str] = lambda: "") -> None:
    """Looks at a condition until it holds."""
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late, f"it didn't come true in {seconds} s\n{reason()}"
        time.sleep(0.3)


@pytest.fixture(scope="session")
def slurm_config() -> Iterator[Path]:
    """The configuration of a SLURM that runs, ended with the session."""
    if missing := [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]:
        pytest.skip(f"{', '.join(missing)} not installed; on Debian: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd runs jobs as their users, for which it must be root")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, ports=free_ports(3)))
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "pid-file", "log-file")]
    daemons = [start(folder, "munged", "--foreground", "--force", f"--seed-file={folder}/munge.seed", *munge)]
    slurm = Slurm(config, folder)
    try:
        wait_until((folder / "munge.socket").exists, 60)
        daemons.append(start(folder, "slurmctld", "-D"))
        wait_until(lambda: "UP" in subprocess.getoutput(f"SLURM_CONF={config} scontrol ping"), 60)
        daemons += [start(folder, "slurmd", "-D", "-N", node) for node in ("one", "two")]
        wait_until(lambda: slurm("sinfo", "--noheader", "--format=%T %D").split() == ["idle", "2"], 60)
        yield config
        slurm("scancel", "--user=root")
        wait_until(lambda: not slurm.jobs(), 60)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(slurm_config: Path, tmp_path: Path) -> Slurm:
    """SLURM, with a folder to submit in."""
    return Slurm(slurm_config, tmp_path)


@pytest.fixture
def own_tmpdir() -> Iterator[dict[str, str]]:
    """TMPDIR of submitted jobs, which leave nothing in it. Its path is short for the sake of Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))
    yield {"TMPDIR": str(folder)}
    left = list(folder.glob("numina.*"))
    shutil.rmtree(folder)
    assert not left, "what Ray left behind, on either node"


@pytest.fixture
def job(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """What goes to `numina run`: clips of six prompts, whole seconds of work on one rank."""
    prompts = [
        {"id": f"{c}-{colour}", "prompt": f"{c} {colour} circles on a grey background"}
        for c in COUNTS
        for colour in COLOURS
    ]
    make_prompts(prompts, str(tmp_path / "prompts.parquet"))
    places = ["prompts=prompts.parquet", "output=dataset", f"model.path={tiny_checkpoint}"]
    return ["--config", "demo", *places, *TINY, "strategies=[baseline]", "parallel.ulysses=1"]


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[int], None]:
    """Puts a `numina` that ends with a status into the .venv of the folder of submission."""

    def put(status: int) -> None:
        command = tmp_path / ".venv/bin/numina"
        command.parent.mkdir(parents=True)
        command.write_text(FAKE.format(status=status))
        command.chmod(0o755)

    return put


def committed(folder: Path) -> int:
    return len(list((folder / "dataset/commits").rglob("*.parquet")))


def wait_for(slurm: Slurm, condition: Callable[[], object]) -> None:
    """Until something has come true of a job that runs; not for ever, and not where no job is left."""
    wait_until(lambda: condition() or not slurm.jobs(), 400, slurm.logs)
    assert condition(), slurm.logs()


def wait_for_words(slurm: Slurm, words: str, times: int = 1) -> None:
    """Until the jobs have printed something so many times."""
    wait_for(slurm, lambda: slurm.logs().count(words) >= times)


def assert_exact(folder: Path, samples: int) -> None:
    """Every sample of every prompt is there once."""
    rows = Store(str(folder / "dataset"), single_writer=True).rows().to_pylist()
    assert Counter(row["id"] for row in rows) == dict.fromkeys(IDS, samples)
    assert len({row["key"] for row in rows}) == len(rows) == samples * len(IDS)


def start(folder: Path, daemon: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A daemon in the foreground; what it says goes to a file."""
    environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with (folder / f"{daemon}.out").open("ab") as output:
        return subprocess.Popen([daemon, *arguments], env=environment, stdout=output, stderr=output)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports
