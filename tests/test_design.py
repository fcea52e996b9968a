"""The design's one-way imports: cluster → pipelines → numina, Ray in cluster only, xfuser and deepspeed lazily."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "numina": {"pipelines", "cluster", "ray", "diffusers", "transformers", "xfuser", "deepspeed", "av", "omegaconf"},
    "pipelines": {"cluster", "ray", "omegaconf", "pyarrow", "fsspec"},
}
LAZY = {"xfuser", "deepspeed"}  # can't be imported on every machine


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """The top-level packages that a file imports, and whether on being imported itself."""
    tree = ast.parse(file.read_text())
    at_top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from ((name.split(".")[0], node in at_top) for name in names)


@pytest.mark.parametrize("package", ["numina", "pipelines", "cluster"])
def test_imports_go_one_way(package: str) -> None:
    """No package imports one above it, nor a library that isn't its own."""
    wrong = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / package).rglob("*.py")
        for name, at_top in imports(file)
        if name in FORBIDDEN.get(package, set()) or (name in LAZY and at_top)
    }
    assert not wrong


def test_no_other_top_level_folders() -> None:
    """The folders are fixed; dot-folders and what a checkout makes for itself are not counted."""
    made = {"out", "build", "dist"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert folders - made <= {"numina", "pipelines", "cluster", "configs", "slurm", "tests"}


def test_the_driver_loads_no_model_library() -> None:
    """Planning and resuming start in seconds: the model libraries are for ranks, scikit-learn is for layout tasks."""
    heavy = "{'diffusers', 'transformers', 'sklearn'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, cluster.cli, cluster.driver, cluster.planner; print({heavy})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
