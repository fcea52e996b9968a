"""Folders as the four published repositories have them, through the verbs: checked, planned and run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.job.config import JobConfig, load_job
from cluster.job.prepared import prepare
from cluster.prompts.write import make_prompts
from cluster.runtime.run import run_job
from tests.layouts import published_folder

CONFIGS = {
    "wan2.1-t2v-1.3b": "wan1.3b",
    "wan2.1-t2v-14b": "wan14b",
    "wan2.2-ti2v-5b": "wan2.2-5b",
    "cogvideox-5b": "cogvideox-5b",
}
PROMPT = "three hourglasses and two teddy bears"


def output_of(*words: str) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_layout_is_checked_planned_and_run(
    name: str, tmp_path: Path, joining_job: Callable[..., JobConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    """By the shipped config for it, at a tiny clip: plain and guided rows, from shards, BF16 and subwords."""
    folder = published_folder(name, tmp_path / name)
    checked = output_of("models", "check", str(folder))
    assert f"stored as {'BF16' if name == 'cogvideox-5b' else 'F32'}" in checked
    assert "T5Tokenizer" in checked
    planned = output_of("plan", "--config", CONFIGS[name], f"model.path={folder}", "--gpus", "8")
    assert "as it is here" in planned
    assert "time: no forward of 3 blocks of 4 heads was measured" in planned
    make_prompts([{"id": "one", "prompt": PROMPT}], str(tmp_path / "one.parquet"))
    side = 128 if name == "wan2.2-ti2v-5b" else 64
    places = [f"model.path={folder}", f"prompts={tmp_path}/one.parquet", f"output={tmp_path}/rows"]
    clip = [f"generation.height={side}", f"generation.width={side}", "generation.num_frames=17", "generation.steps=2"]
    small = ["model.device=cpu", "parallel.cfg=1", "parallel.ulysses=1", "strategies=[baseline,numina]"]
    own = load_job(CONFIGS[name], [*places, *clip, *small, f"cluster.address={joining_job().cluster.address}"])
    outcome = run_job(prepare(own))
    assert (outcome.generated, outcome.failed) == (2, 0)
    rows = Store.reader(f"{tmp_path}/rows").rows().to_pylist()
    assert {row["strategy"] for row in rows} == {"baseline", "numina"}
    [numina] = [row for row in rows if row["strategy"] == "numina"]
    assert [target["noun"] for target in numina["targets"]] == ["hourglasses", "bears"]
    assert numina["identified"]
