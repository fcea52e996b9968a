"""What a row says of the code that made it."""

import shutil
import subprocess
import sys
from pathlib import Path

from cluster.workers.code import PACKAGES, ROOT
from cluster.workers.row import code_version


def version_of(checkout: Path, cwd: Path) -> str:
    """`code_version` of a process that runs the code of a checkout."""
    code = f"import sys; sys.path.insert(0, {str(checkout)!r}); from cluster.workers.row import code_version as v"
    command = [sys.executable, "-c", f"{code}; print(v())"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd, env={}).stdout.strip()


def test_the_version_names_the_code(tmp_path: Path) -> None:
    """The same for the same files, wherever they lie and from wherever they run; another one after any change: a
    line, a file more, a file's name."""
    copy = tmp_path / "copy"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    seen = [version_of(copy, tmp_path)]
    assert seen == [code_version()]
    assert version_of(copy, copy) == seen[0]  # the caches that a run leaves don't count
    changed = copy / "numina" / "refine.py"
    changed.write_text(changed.read_text() + "# another line\n")
    seen.append(version_of(copy, tmp_path))
    (copy / "pipelines" / "more.py").write_text("")
    seen.append(version_of(copy, tmp_path))
    (copy / "pipelines" / "more.py").rename(copy / "pipelines" / "most.py")
    seen.append(version_of(copy, tmp_path))
    assert len(set(seen)) == 4
    assert {version.partition("+")[0] for version in seen} == {code_version().partition("+")[0]}
