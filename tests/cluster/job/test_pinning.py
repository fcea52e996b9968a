"""Jobs whose checkpoint is a hub id without a revision: whole ones, by `numina run`, from a small hub of our own."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.dataset.store import Store
from cluster.prompts.write import make_prompts
from tests.cluster.conftest import TINY
from tests.hub import COMMIT, LATER, Hub, serving
from tests.layouts import published_folder

MODEL, PUBLISHED = "Some-Lab/Wan2.1-Tiny-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
README = (Path(__file__).parents[3] / "README.md").read_text()
LOST_CACHE = """
import logging, shutil, sys
from cluster.job.config import load_job
from cluster.job.prepared import prepare
from cluster.runtime.run import run_job
logging.basicConfig(level=logging.INFO)
prepared = prepare(load_job("demo", sys.argv[2:]))
shutil.rmtree(sys.argv[1])
print(run_job(prepared).done)
"""


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    with serving(Hub()) as made:
        made.add(MODEL, COMMIT, tiny_checkpoint)
        yield made


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [
        f"model.path={MODEL}",
        f"output={tmp_path}/out",
        "limit=1",
        "strategies=[baseline]",
        "parallel.ulysses=1",
        *TINY,
    ]


def run(hub: Hub, cache: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **hub.environment(cache), **environment}
    return subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True, timeout=280)


def numina(hub: Hub, cache: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(hub, cache, "-m", "cluster.cli", *words, **environment)


def test_a_job_keeps_the_commit_that_it_began_with(hub: Hub, words: list[str], tmp_path: Path) -> None:
    """run.json has it; when the hub has a newer one, the same job and a larger one go on with the first, on a node
    without a network, too; another output takes the newer one."""
    other = tmp_path / "other"
    shutil.copytree(hub.repositories[MODEL][COMMIT], other)
    scheduler = other / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"flow_shift": 5.0}))
    began = numina(hub, tmp_path / "cache", "run", "--config", "demo", *words)
    assert began.returncode == 0, began.stderr
    assert f"{MODEL}: commit {COMMIT}" in began.stderr
    run_json = json.loads((tmp_path / "out/run.json").read_text())
    assert run_json["hub"] == {MODEL: COMMIT}
    hub.add(MODEL, LATER, other)
    again = numina(hub, tmp_path / "cache", "run", "--config", "demo", *words)
    assert (again.returncode, "1 of 1 videos" in again.stdout) == (0, True), again.stderr
    assert f"{MODEL}: commit {COMMIT}, as the output was begun with" in again.stderr
    more = numina(hub, tmp_path / "cache", "run", "--config", "demo", *words, "limit=2", HF_HUB_OFFLINE="1")
    assert more.returncode == 0, more.stderr
    rows = Store.reader(str(tmp_path / "out")).rows().to_pylist()
    assert [row["model"] for row in rows] == [MODEL, MODEL]
    assert len({row["model_revision"] for row in rows}) == 1
    assert Store.reader(str(tmp_path / "out")).hub_commits() == {MODEL: COMMIT}
    named = [*words, f"model.revision={LATER}"]
    refused = numina(hub, tmp_path / "cache", "run", "--config", "demo", *named)
    assert refused.returncode == 2
    assert "model.revision:" in refused.stderr


def test_a_node_without_the_checkpoint_fetches_it(hub: Hub, words: list[str], tmp_path: Path) -> None:
    """Two ranks of a node whose cache is empty: one downloads, and the gang's start says how long that took."""
    (tmp_path / "cache").mkdir()
    done = run(hub, tmp_path / "cache", "-c", LOST_CACHE, str(tmp_path / "cache"), *words, "parallel.ulysses=2")
    assert done.stdout.splitlines()[-1] == "1", done.stderr
    assert "gang-0 is ready after" in done.stderr
    assert "download" in done.stderr.partition("gang-0 is ready after")[2].splitlines()[0]
    assert set(hub.files.values()) == {2}  # the driver's, and the node's


def test_what_cannot_be_had_is_said_before_anything_starts(hub: Hub, words: list[str], tmp_path: Path) -> None:
    """Offline, with an empty cache: the folder, and the command that fills it."""
    failed = numina(hub, tmp_path / "cache", "run", "--config", "demo", *words, HF_HUB_OFFLINE="1")
    assert failed.returncode == 2
    assert f"{tmp_path}/cache/models--Some-Lab--Wan2.1-Tiny-Diffusers" in failed.stderr
    assert f"`hf download {MODEL}`" in failed.stderr
    assert not (tmp_path / "out").exists()


def test_the_readmes_first_job_on_gpus_is_complete(tmp_path: Path) -> None:
    """`numina run --config wan1.3b prompts=… output=…`, here with a clip that a CPU makes: from the hub's files, in the
    published layout, to rows. Then the cache has the checkpoint, and a plan reads it there."""
    make_prompts([{"id": "one", "prompt": "three hourglasses and two mice"}], str(tmp_path / "checked.parquet"))
    [line] = [line for line in README.splitlines() if "run --config wan1.3b prompts=" in line]
    asked = [word.replace("checked", f"{tmp_path}/checked") for word in shlex.split(line)[1:]]
    small = ["generation.height=64", "generation.width=64", "generation.num_frames=17", "generation.steps=2"]
    here = [f"output={tmp_path}/rows", "model.device=cpu", "cluster.address=local", *small]
    with serving(Hub()) as hub:
        hub.add(PUBLISHED, COMMIT, published_folder("wan2.1-t2v-1.3b", tmp_path / "hub"))
        done = numina(hub, tmp_path / "cache", *asked, *here)
        assert done.returncode == 0, done.stderr
        assert "1 of 1 videos" in done.stdout
        assert "gang-0 runs on a CPU, torch " in done.stderr
        assert "engine single, attention native, eager blocks" in done.stderr
        plan = ["plan", "--config", "wan1.3b", "--gpus", "8"]
        planned = numina(hub, tmp_path / "cache", *plan)
        assert "as it is here" in planned.stdout
        assert f"{PUBLISHED} (3 blocks, 4 heads)" in planned.stdout
        assert "as published" in numina(hub, tmp_path / "other", *plan).stdout
    [row] = Store.reader(f"{tmp_path}/rows").rows().to_pylist()
    assert (row["model"], [noun["noun"] for noun in row["targets"]]) == (PUBLISHED, ["hourglasses", "mice"])
