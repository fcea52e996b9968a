"""The READMEs' commands work: each `numina` line runs or, if it needs a real checkpoint, its job loads."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.job.config import load_job
from cluster.rows import EVALUATION_SCHEMA, ROW_SCHEMA

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / f"{name}/README.md" for name in ("cluster", "configs", "numina", "pipelines", "slurm")),
]
SMALL = ["generation.height=64", "generation.width=64"]
README_WORDS = 1200  # at most: it is read whole, the others are looked up


def blocks(language: str) -> list[str]:
    """The code blocks of all pages, in their order."""
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def commands(language: str) -> list[str]:
    """The lines of such blocks, each command once: pages repeat some."""
    joined = "\n".join(blocks(language)).replace("\\\n", " ")
    return list(dict.fromkeys(line for line in joined.splitlines() if line))


BASH = commands("bash")


def test_the_first_page_is_short() -> None:
    """It says what numina is and leads on; what it leaves out, the folders' pages hold."""
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


def test_the_two_commands_are_the_makefiles() -> None:
    """`make demo` and `make test` stand in the README; CI runs both."""
    ci = (ROOT / ".ci/run").read_text()
    for command in ("make demo", "make test"):
        assert command in BASH
        assert command in ci


def test_cluster_scripts_and_settings_are_real() -> None:
    """What is submitted to a scheduler runs in the system's tests, in small; here its scripts, configs and keys."""
    lines = commands("sh")
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line)
        assert all((ROOT / word).is_file() for word in words if word.endswith(".sbatch"))
        if "--config" in words:
            job = words[words.index("--config") :]
            load_job(job[1], [word.replace("…", "there") for word in job[2:]])


def test_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other command, one after the other in one folder; in this process, which has imported all that each would
    import anew. As they stand, but jobs make clips of a quarter of the pixels."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in BASH if not line.startswith("make ")]
    assert len(lines) >= 15
    for line in lines:
        words = shlex.split(line)[1:]
        smaller = SMALL if words[0] in ("run", "calibrate") else []
        done = CliRunner().invoke(app, [*words, *smaller], catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"


def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines from Python to an mp4."""
    [snippet] = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "video.mp4").stat().st_size > 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link and picture is in the repository; a link into a page leads to a heading."""
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert links
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in re.findall("^#.*", text, re.M)
    }
    for link in links:
        path, _, heading = link.partition("#")
        assert (page.parent / path).exists(), link
        assert not heading or path or heading in headings, link


def test_all_columns_are_explained() -> None:
    """cluster/README.md names every column of a row and of a verdict."""
    text = (ROOT / "cluster/README.md").read_text()
    own = text[text.index("### Columns of a row") : text.index("### Columns of a verdict")]
    verdict = text[text.index("### Columns of a verdict") : text.index("## Long jobs")]
    assert not [name for name in ROW_SCHEMA.names if f"`{name}`" not in own]
    assert not [name for name in EVALUATION_SCHEMA.names if f"`{name}`" not in verdict]
