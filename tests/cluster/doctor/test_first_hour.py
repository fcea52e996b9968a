"""The errors of the first hour on a new machine: each is one sentence with its remedy, the same from the run and from
`numina doctor`, within a minute. Faults are real where a machine without a GPU can have them."""

import errno
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from cluster.doctor.check import Result, State, examine
from cluster.doctor.checks import CHECKS
from cluster.doctor.needs import Needs
from cluster.job.config import JobConfig
from cluster.job.joining import joined
from cluster.job.prepared import prepare
from cluster.runtime.run import run_job
from numina.errors import GangError, MachineError, OutputError
from pipelines.models.registry import resolve_device
from pipelines.parallel import devices
from pipelines.parallel.group import reach_trouble
from pipelines.parallel.libraries import XFUSER, require
from tests.cluster.conftest import TINY
from tests.hub import COMMIT, Hub, serving

Job = Callable[..., JobConfig]

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is really there")
root = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")

PATIENCE = 300  # seconds: a minute on a machine that isn't busy with other tests
ONE_GPU = ("model.device=cuda", "model.dtype=float32", "parallel.ulysses=1")
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading"
    " and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
MOUNTED = 'mount -t tmpfs -o {options} tmpfs {place} && exec "$@"'


def doctor(name: str, needs: Needs) -> Result:
    """One line of the table."""
    [result] = examine({name: CHECKS[name]}, needs)
    return result


def sentence(result: Result) -> str:
    return f"{result.found}; {result.remedy}"


def python(
    *arguments: str, before: tuple[str, ...] = (), **environment: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """A Python process of its own, and its seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [*before, sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done, time.monotonic() - began


def on_a_disk(options: str, place: Path | str) -> tuple[str, ...]:
    """What a command is run behind so that it, and nobody else, sees a small or a read-only disk at a place."""
    return "unshare", "-m", "sh", "-c", MOUNTED.format(options=options, place=place), "sh"


# --- GPUs ---


@pytest.fixture
def cuda_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A torch for CUDA 13.0 on a machine of four GPUs, which begins with this error."""

    def say(text: str) -> None:
        def init() -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        for gpu in range(4):
            (tmp_path / f"nvidia/gpus/{gpu}").mkdir(parents=True)
        monkeypatch.setattr(devices, "DRIVER", tmp_path / "nvidia")

    return say


@pytest.mark.parametrize(
    ("visible", "said", "told"),
    [
        (None, OLD_DRIVER, r"driver is for CUDA 11\.4 at most, and torch \S+ needs CUDA 13\.0; update the driver"),
        ("", "No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES is '', which hides all GPUs; unset it"),
        ("7", "No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES is '7', and the driver shows 4 GPUs.*; name GPUs"),
        (None, "CUDA unknown error - this may be due to", "torch sees no GPU .CUDA unknown error.*; see whether"),
        (
            None,
            "Error 804: forward compatibility was attempted",
            "driver doesn't fit the CUDA 13.0.*; update the driver",
        ),
    ],
)
@without_gpu
def test_what_hides_a_gpu(
    cuda_says: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    visible: str | None,
    said: str,
    told: str,
) -> None:
    """A driver, a variable, or who knows: `model.device=cuda` is refused, `auto` takes the CPU with a warning unless
    all GPUs were hidden on purpose, and doctor says the same."""
    cuda_says(said)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(MachineError, match=told) as refused:
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"
    assert (str(refused.value) in caplog.text) == (visible != "")
    result = doctor("GPUs", Needs(job=True, device="cuda"))
    assert (result.state, sentence(result)) == (State.FAILS, str(refused.value))
    assert doctor("GPUs", Needs()).state is State.WARNING


@without_gpu
def test_no_gpu_in_a_ray_worker(tiny_job: Job) -> None:
    """A node that promises a GPU that isn't there: the job ends at its gang's first start, with the sentence."""
    head = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    try:
        job = tiny_job(
            f"cluster.address={head.address}", "model.device=cuda", "model.dtype=float32", "parallel.ulysses=1"
        )
        began = time.monotonic()
        with pytest.raises(GangError, match=r"gang-0 could not start: MachineError: .*torch.*; \w+"):
            run_job(prepare(job))
        assert time.monotonic() - began < PATIENCE
    finally:
        ray.shutdown()
        head.shutdown()


# --- libraries ---


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (None, r"xfuser isn't installed here; pip install 'numina-video\[gpu\]'"),
        ("raise ImportError('undefined symbol: _ZN3c104cuda')", "xfuser .* can't be imported with torch .*undefined"),
        (
            "raise OSError('libcudart.so.12: cannot open')",
            "imported with torch .*libcudart.*; install the builds",
        ),
        ("import torch; torch.ops.xfuser.gone", "can't be imported with torch .*; install the builds"),
    ],
)
def test_wrong_torch_for_xfuser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str | None, told: str) -> None:
    """Whatever its import raises, a rank that needs xfuser, and doctor, say which versions don't fit."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "xfuser"]:
        monkeypatch.delitem(sys.modules, name)
    if module is not None:
        (tmp_path / "xfuser").mkdir()
        (tmp_path / "xfuser/__init__.py").write_text(module)
        monkeypatch.syspath_prepend(str(tmp_path))
    elif torch.cuda.is_available():
        pytest.skip("xfuser may really be there")
    with pytest.raises(MachineError, match=told) as refused:
        require(XFUSER)
    result = doctor("xfuser", Needs(job=True, device="cuda", ranks=2, sequence_ranks=2))
    assert (result.state, sentence(result)) == (State.FAILS, str(refused.value))
    assert doctor("xfuser", Needs()).state is State.WARNING  # no job has asked for it
    assert not CHECKS["xfuser"].when(Needs(job=True, device="cuda"))  # nor does one of single ranks


def test_an_import_that_takes_long_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large library on a cold disk takes its time: a job waits for it, too."""
    (tmp_path / "xfuser").mkdir()
    (tmp_path / "xfuser/__init__.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "xfuser", raising=False)
    needs = Needs(job=True, device="cuda", ranks=2, sequence_ranks=2)
    for name in ("xfuser", "deepspeed", "torchao", "FlashAttention-3"):
        assert CHECKS[name].seconds > 20.0, name
        assert CHECKS[name].late is State.WARNING, name
    [result] = examine({"xfuser": replace(CHECKS["xfuser"], seconds=1.0)}, needs)
    assert (result.state, result.found) == (State.WARNING, "the check gave no answer within 1 s")


# --- between ranks ---


def test_ranks_on_a_wrong_interface(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends at its gang's first start and names the variable and the interfaces that there are."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "wrong0")
    told = r"GLOO_SOCKET_IFNAME is 'wrong0', and this machine has lo.*; set it to the interface that all nodes share"
    result = doctor("between ranks", Needs(job=True, device="cpu", ranks=2, sequence_ranks=2))
    assert result.state is State.FAILS
    assert re.search(told, sentence(result))
    began = time.monotonic()
    with pytest.raises(GangError, match=told):
        run_job(prepare(tiny_job()))
    assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        (
            "wrong0",
            "NCCL error in: x.cpp:47\nLast error:\nBootstrap : no socket interface found",
            "NCCL_SOCKET_IFNAME is 'wr",
        ),
        ("^docker", "Last error:\nsocketPollConnect: connect returned Connection refused", "open all ports between"),
        (
            None,
            "no answer within 60 s",
            r"can't reach each other over NCCL \(no answer within 60 s\); set NCCL_SOCKET",
        ),
    ],
)
def test_nccl_that_reaches_nobody(monkeypatch: pytest.MonkeyPatch, name: str | None, said: str, told: str) -> None:
    """What torch says of NCCL is turned into what can be done."""
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    if name:
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", name)
    assert re.search(told, str(reach_trouble("nccl", said)))


@root
def test_a_container_with_64_mb_of_shared_memory() -> None:
    """NCCL's own error, and doctor, name the option that gives it more."""
    code = (
        "from pipelines.parallel.group import reach_trouble\n"
        "from cluster.doctor.needs import Needs\n"
        "from cluster.doctor.places import shared_memory\n"
        "print(reach_trouble('nccl', 'Error while creating shared memory segment /dev/shm/nccl-x (size 33030528)'))\n"
        "print(shared_memory(Needs(job=True, device='cuda', ranks=2)))\n"
        "print(shared_memory(Needs(job=True, device='cpu')))\n"
    )
    done, _ = python("-c", code, before=on_a_disk("size=64m", "/dev/shm"))
    run, gang, cpu = done.stdout.splitlines()
    assert "/dev/shm has 64 MiB" in run
    assert "--shm-size=16g" in run
    assert "FAILS" in gang
    assert all(part in gang for part in run.split("; "))
    assert "WARNING" in cpu


# --- places and limits ---

RUN = ("-m", "cluster.cli", "run", "--config", "demo", *TINY, "limit=1", "parallel.ulysses=1", "strategies=[baseline]")


def both(tmp_path: Path, *overrides: str, before: tuple[str, ...] = (), status: int = 1, **environment: str) -> str:
    """What the run says to a fault, in one sentence and within a minute, that doctor says of it, too."""
    given = [f"output={tmp_path}/out", *overrides]
    done, seconds = python(*RUN, *given, before=before, **environment)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert seconds < PATIENCE
    said = done.stderr.rpartition("error: ")[2].strip()
    # The same table that `--json` prints; its own Ray isn't asked where the fault is elsewhere.
    checked, _ = python("-m", "cluster.cli", "doctor", "--json", *RUN[3:], *given, before=before, **environment)
    assert checked.returncode == 1, checked.stderr
    plain = checked.stdout.replace("\\", "")
    assert said.partition("; ")[0].replace("\\", "") in plain, f"{said}\n{checked.stdout}"
    return said


def test_too_few_open_files(tmp_path: Path) -> None:
    """Ray would be killed without a word of it."""
    before = ("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    assert re.search("may have 64 open files here, and Ray needs 128; raise the limit", both(tmp_path, before=before))


def test_a_ray_that_does_not_start() -> None:
    """Its own words, and what it may lack."""
    told = r"no Ray can be started here .*ValueError.* MiB free; free some space there or"
    others = psutil.Process().children(recursive=True)
    with pytest.raises(MachineError, match=told), joined("local", num_cpus=1, object_store_memory=1):
        pass
    for process in {*psutil.Process().children(recursive=True)} - {*others}:  # what had started ends with its driver
        process.kill()


def test_an_output_that_cannot_be_made(tmp_path: Path) -> None:
    """Before Ray starts."""
    said = both(tmp_path, "output=/proc/out", status=2)
    assert said == (
        "output '/proc/out' can't be written: No such file or directory, in '/proc'; free some space there, or"
        " give another"
    )


def test_an_output_without_exclusive_create(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without hard links, or with none that hold: before Ray starts, and nothing is left in the folder."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    job = tiny_job()
    with pytest.raises(OutputError, match=r"has no hard links.*single_writer=true") as refused:
        run_job(prepare(job))
    assert not Path(job.output).exists()
    result = doctor("output", Needs(job=True, output=job.output))
    assert result.state is State.FAILS
    assert sentence(result) == str(refused.value)
    assert doctor("output", Needs(job=True, output=job.output, single_writer=True)).state is State.OK


@root
def test_a_job_needs_no_home_and_no_room_for_temporary_files(tmp_path: Path) -> None:
    """With a HOME and a TMPDIR that can't be written, a RAY_TMPDIR that is full, and the C locale, it is done: Ray and
    mp4 files take another folder. Doctor warns of each, and says that the folder that was asked for isn't used."""
    full = tmp_path / "full"
    full.mkdir()
    filled = (*on_a_disk("size=4k", full), "sh", "-c", f'yes > {full}/all; exec "$@"', "sh")
    nowhere = {"HOME": "/proc", "TMPDIR": "/proc", "RAY_TMPDIR": str(full), "LANG": "C", "LC_ALL": "C"}
    done, _ = python(*RUN, f"output={tmp_path}/out", before=filled, **nowhere)
    assert done.returncode == 0, done.stderr
    assert doctor("caches", Needs(job=True)).state is State.OK
    code = (
        "from cluster.doctor.check import examine\nfrom cluster.doctor.checks import CHECKS\n"
        "from cluster.doctor.needs import Needs\n"
        "for line in examine({n: CHECKS[n] for n in ('caches', 'temporary files', 'locale')}, Needs()): print(line)"
    )
    told = python("-c", code, **nowhere)[0].stdout
    assert told.count("State.WARNING") == 3, told
    for words in ("set HOME, or HF_HOME", "TMPDIR is '/proc', which can't be written", "set LANG=C.UTF-8"):
        assert words in told
    told = python("-c", code, before=filled, RAY_TMPDIR=str(full), TMPDIR=str(full))[0].stdout
    assert f"TMPDIR is '{full}', which can't be written" in told


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Metrics take another one."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        result = doctor("ports", Needs(job=True, metrics_port=taken.getsockname()[1]))
    assert result.state is State.WARNING
    assert "is taken: metrics are served at a free one" in result.found


def test_a_clock_a_day_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Object stores refuse requests of such a machine."""
    assert doctor("clock", Needs(job=True, output=str(tmp_path))).state is State.OK
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + 86400)
    result = doctor("clock", Needs(job=True, output=str(tmp_path)))
    assert result.state is State.FAILS
    assert re.search(r"8640\d s ahead of the output's storage", result.found)


# --- the hub ---


@pytest.fixture(scope="module")
def hub(tiny_checkpoint: Path) -> Iterator[Hub]:
    served = Hub()
    served.add("some/model", COMMIT, tiny_checkpoint)
    with serving(served):
        yield served


ASK = """
import sys
from cluster.doctor.check import examine
from cluster.doctor.checks import CHECKS
from cluster.doctor.needs import Needs
from numina.errors import NuminaError
from pipelines.models.registry import inspect_model
try:
    print(inspect_model(sys.argv[1], sys.argv[2]).name)
except NuminaError as error:
    print(error)
[line] = examine({"model": CHECKS["model"]}, Needs(job=True, model=sys.argv[1], revision=sys.argv[2]))
print(line.state, line.found, line.remedy, sep="; ")
"""


def ask(hub: Hub, repository: str, cache: Path, *, before: tuple[str, ...] = (), **environment: str) -> list[str]:
    """What the run says of a hub id, then what doctor does."""
    given = hub.environment(cache) | environment
    done, _ = python("-c", ASK, repository, COMMIT, before=before, **given)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("repository", "told"),
    [
        ("gated/model", "is gated: accept its terms at .*, and set HF_TOKEN on every node"),
        ("denied/model", r"the hub refuses denied/model at \w+ .HTTP 401.; set HF_TOKEN to a valid token"),
    ],
)
def test_a_hub_that_wants_a_token(hub: Hub, tmp_path: Path, repository: str, told: str) -> None:
    """Gated, or a token that isn't one."""
    run, checked = ask(hub, repository, tmp_path)
    assert re.search(told, run)
    assert checked.startswith("fails; ")
    assert run.partition("; ")[0] in checked


def test_an_interrupted_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    """It says that what is there is kept; the same again is whole, and then the hub isn't needed."""
    hub.drops = {"scheduler/scheduler_config.json"}
    interrupted, _ = ask(hub, "some/model", tmp_path / "cache", HF_HUB_DOWNLOAD_TIMEOUT="2")
    assert interrupted == "some/model" or re.search("can't be downloaded .*downloaded files are kept", interrupted)
    assert ask(hub, "some/model", tmp_path / "cache")[0] == "some/model"
    run, checked = ask(Hub("http://127.0.0.1:9"), "some/model", tmp_path / "cache")
    assert run == "some/model"
    assert checked.startswith("ok; some/model is complete in ")
    run, checked = ask(Hub("http://127.0.0.1:9"), "some/model", tmp_path / "empty")
    assert "can't be downloaded" in run
    assert checked.startswith("fails; ")
    assert "check the network" in checked


@root
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            "size=256k",
            r"needs .* GB more in .*, but its disk has .* GB free; free some, or set HF_HUB_CACHE",
        ),
        ("ro", "can't be written to .*Read-only file system.; set HF_HOME, or HF_HUB_CACHE"),
    ],
)
def test_a_disk_that_takes_no_download(hub: Hub, tmp_path: Path, options: str, told: str) -> None:
    """Too small, or never to be written."""
    run, _ = ask(hub, "some/model", tmp_path, before=on_a_disk(options, tmp_path))
    assert re.search(told, run)
