"""The README's commands work: each `numina` line runs, or, where it needs a real checkpoint, at least its job loads."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.job.config import load_job

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BASH = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
NEEDS_WEIGHTS = "/models/"


def test_the_two_commands_are_the_makefiles() -> None:
    """`make demo` and `make test` stand in the README; CI runs both."""
    ci = (ROOT / ".ci/run").read_text()
    for command in ("make demo", "make test"):
        assert command in BASH
        assert command in ci


@pytest.mark.parametrize("line", [line for line in BASH if NEEDS_WEIGHTS in line])
def test_cluster_commands_name_real_configs_and_keys(line: str) -> None:
    """Commands that need Wan's weights: their config is shipped and every override is a known key."""
    words = shlex.split(line)
    assert words[0] == ".venv/bin/numina"
    load_job(words[words.index("--config") + 1], [word for word in words if "=" in word])


def test_cluster_scripts_and_settings_are_real() -> None:
    """What is submitted to a scheduler runs in the system's tests, in small; here its scripts, configs and keys."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)
        assert all((ROOT / word).is_file() for word in words if word.endswith(".sbatch"))
        if "--config" in words:
            job = words[words.index("--config") :]
            load_job(job[1], [word.replace("…", "there") for word in job[2:]])


def test_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other command, as it stands, in one folder, one after the other; in this process, which has imported all
    that each would import anew."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in BASH if not line.startswith("make ") and NEEDS_WEIGHTS not in line]
    assert len(lines) >= 7
    for line in lines:
        done = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"


def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines from Python to an mp4."""
    [snippet] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "video.mp4").stat().st_size > 1000


def test_links_lead_somewhere() -> None:
    """Every relative link and picture of the README is in the repository."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
