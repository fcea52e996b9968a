"""A job as most people run one: not as root, from a checkout that they can only read, in a folder with any name."""

import os
import shutil
import site
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOBODY = 65534  # user and group of no rights, on any Linux
SMALL = ["limit=1", "generation.steps=4", "generation.height=64", "generation.width=64", "model.device=cpu"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own is not."""
    made = Path(tempfile.mkdtemp(prefix="numina für alle ", dir="/tmp"))
    made.chmod(0o755)
    yield made
    subprocess.run(["chmod", "-R", "u+w", str(made)], check=True)
    shutil.rmtree(made)


@pytest.fixture
def python(folder: Path) -> list[str]:
    """An interpreter with our packages that the user may start."""
    if os.getuid() != 0:
        return [sys.executable]
    found = [
        sys.executable,
        shutil.which(f"python{sys.version_info[0]}.{sys.version_info[1]}", path="/usr/local/bin:/usr/bin"),
    ]
    for place in filter(None, found):
        try:
            if as_user([place, "-c", "import torch, ray, cluster.cli.app"], folder, folder).returncode == 0:
                return [place]
        except PermissionError:
            continue
    pytest.skip(f"no user but root may read this Python or its packages: {', '.join(filter(None, found))}")


def as_user(command: list[str], checkout: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command without HOME, in the C locale, whose files nobody else may read; not as root."""
    packages = [str(checkout if (checkout / "cluster").is_dir() else ROOT), *site.getsitepackages()]
    return subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": os.defpath, "LANG": "C", "PYTHONPATH": ":".join(packages), "OMP_NUM_THREADS": "1"},
        umask=0o077,
        capture_output=True,
        timeout=280,
        encoding="utf-8",
        errors="replace",
        check=False,
        **({"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}),
    )


def read_only_checkout(folder: Path) -> Path:
    """A copy of what the command needs; its user may change nothing in it."""
    checkout = folder / "check out"
    for name in ("numina", "pipelines", "cluster", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    for path in (checkout, *checkout.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return checkout


def test_a_job_of_an_ordinary_user(folder: Path, python: list[str]) -> None:
    """Run, look, report and resume: all exit with 0, files are the user's alone, the checkout stays as it was."""
    checkout, work = read_only_checkout(folder), folder / "Träume & more"
    work.mkdir()
    before = sorted(checkout.rglob("*"))
    if os.getuid() == 0:
        os.chown(work, NOBODY, NOBODY)
    output = f"{work}/die Ausgabe 一"
    run = [*python, "-m", "cluster.cli", "run", "--config", "demo", f"output={output}", *SMALL]
    look = [[*python, "-m", "cluster.cli", verb, output] for verb in ("status", "evaluate", "report")]
    for command in (run, *look, run):
        done = as_user(command, checkout, work)
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
    clips = list(Path(output).rglob("*.mp4"))
    assert len(clips) >= 1
    assert (Path(output) / "report.html").is_file()
    made = [path for path in Path(output).rglob("*") if path.is_file()]
    assert [path for path in made if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)] == []
    assert sorted(checkout.rglob("*")) == before
