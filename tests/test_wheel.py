"""The wheel carries what a checkout has: configs, the embedded model, the demo's prompts, the report's template."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROBE = """
from pathlib import Path
import cluster.job.config
from cluster.job.prepared import prepare
from cluster.planner import estimate

assert "site" in cluster.job.config.__file__, cluster.job.config.__file__
plan = prepare(cluster.job.config.load_job("demo", ["output=out"]))
assert plan.prompts.rows == 8
assert estimate(plan).videos == 16
assert (Path(cluster.job.config.__file__).parents[1] / "report" / "templates").is_dir()
"""


def test_an_installed_wheel_finds_its_configs_and_weights(tmp_path: Path) -> None:
    """Unpacked elsewhere and run from there, the demo job loads and plans from the wheel's own files."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("numina_video-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        assert not [name for name in archive.namelist() if name.startswith(("tests/", "out/"))]
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
