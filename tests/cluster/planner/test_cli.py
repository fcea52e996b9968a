"""The verb `plan`: what it prints is readable and can be copied; impossible wishes end with status 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.job.checks import check_combination
from cluster.job.config import load_job
from numina.errors import ConfigError, InputError
from pipelines.models.families import inspect
from tests.cluster.planner.conftest import WAN_14B, write_checkpoint


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The 14B job on a checkpoint of its shape, with the shipped prompts."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "Wan2.1-T2V-14B-Diffusers", WAN_14B)
    return ["--config", "wan14b", f"model.path={folder}", "prompts=testbed:demo"]


def prepared(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_cluster_gets_candidates_overrides_and_reasons(job: list[str]) -> None:
    """The job on top, a line per candidate with how its time is known, what to copy, and why the first is the first."""
    output = prepared(*job, "--gpus", "8", "--gpu", "h100")
    for text in ("Wan2.1-T2V-14B-Diffusers (40 blocks, 40 heads)", "32760 per clip", "8 × H100 80 GB SXM, 79 GiB"):
        assert text in output
    lines = output.splitlines()
    [first] = [line.split() for line in lines if line.startswith("1 ")]
    assert first == ["1", "8", "1", "1", "1", "none", "gang", "51.2", "469", "61.4", "measured"]
    [second] = [line.split() for line in lines if line.startswith("2 ")]
    assert second[1:3] == ["4", "2"]
    assert second[10:12] == ["estimated", "from"]
    assert "1: parallel.cfg=1 parallel.ulysses=1 parallel.gangs=8" in lines
    assert "  gangs 8: 61.4 clips an hour with 1 GPU for each, " in output
    assert "\x1b" not in output  # plain text where there is no terminal
    assert max(len(line) for line in lines[: lines.index("why 1:")]) <= 120


@pytest.mark.parametrize("config", ["wan1.3b", "wan14b", "wan2.2-5b", "cogvideox-5b"])
def test_a_plan_needs_neither_weights_nor_prompts_nor_torch(config: str, tmp_path: Path) -> None:
    """As on a laptop: of a process of its own, whose cache is empty; with clips, their hours, disk and price."""
    code = "import sys\nfrom cluster.cli.app import app\ntry: app()\nfinally: print(HEAVY & set(sys.modules))"
    heavy = "{'torch', 'diffusers', 'transformers', 'ray', 'scipy', 'pandas', 'huggingface_hub.hf_api'}"
    words = ["plan", "--config", config, "--gpus", "8", "--gpu", "h100", "--clips", "10000", "--price", "2.5"]
    done = subprocess.run(
        [sys.executable, "-c", code.replace("HEAVY", heavy), *words],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "set()"
    for text in ("as published (it isn't here)", "GPU-hours", "a clip ", "10,000 clips", "price", " h ", " GB "):
        assert text in done.stdout
    assert not list(tmp_path.iterdir())


def test_its_overrides_make_a_supported_job(job: list[str]) -> None:
    """Each candidate's line, added to the same command, is a job that loads and passes the checks of `run`."""
    model = inspect(job[2].removeprefix("model.path="))
    output = prepared(*job, "--gpus", "16", "--nodes", "2", "--objective", "latency")
    copied = [line.partition(": ")[2].split() for line in output.splitlines() if line[1:3] == ": "]
    assert copied[0] == ["parallel.ulysses=8"]  # of two branches, as the job has it
    for overrides in copied:
        assert overrides != ["as", "configured"]
        check_combination(load_job("wan14b", [*job[2:], *overrides]), model, "cuda")


def test_overrides_of_degrees_and_memory_are_wishes(job: list[str]) -> None:
    """What the command line names is held; what can't be is refused with the nearest."""
    output = prepared(*job, "--gpus", "8", "parallel.cfg=2", "memory.text_encoder=apart")
    candidates = [line.split() for line in output.splitlines() if line[:2] in ("1 ", "2 ", "3 ", "4 ", "5 ")]
    assert candidates
    assert all((words[2], words[6]) == ("2", "apart") for words in candidates)
    with pytest.raises(ConfigError, match=r"nearest on 8 GPUs: parallel\.ulysses=4"):
        prepared(*job, "--gpus", "8", "parallel.ulysses=3")


def test_without_gpus_the_job_as_configured_is_described(job: list[str]) -> None:
    """Its gangs, memory and time on the GPU that was measured."""
    output = prepared(*job)
    assert "1 × 4 ranks (cfg 2 × ulysses 2 × ring 1), engine xfuser" in output
    assert "32760 per clip, 16380 per rank" in output
    assert "46.5 GiB at most on every GPU" in output
    assert "forward: 1959 ms, estimated from one branch" in output


def test_memory_that_is_not_there(job: list[str], tmp_path: Path) -> None:
    """A named GPU that the configured job doesn't fit is refused; so is a cluster of them, if no way leads there."""
    (tmp_path / "small.yaml").write_text("name: a 24 GiB GPU\nmemory_gib: 24\n")
    small = ["--gpu", f"{tmp_path}/small.yaml"]
    with pytest.raises(InputError, match=r"22.5 GiB more than the 24 .*what fits: memory.shard=zero3 \("):
        prepared(*job, *small)
    assert "memory.shard=zero3" in prepared(*job, *small, "--gpus", "8")
    assert "doesn't fit: the job as configured needs" in prepared(*job, "parallel.batch=16")


@pytest.mark.parametrize("gpus", ["936", "10000"])
def test_clusters_of_any_size_are_planned(gpus: str) -> None:
    """Also of more GPUs than a clip has tokens to share."""
    output = prepared("--config", "wan14b", "--gpus", gpus)
    [first] = [line.split() for line in output.splitlines() if line.startswith("1 ")]
    assert first[:5] == ["1", gpus, "1", "1", "1"]


def test_what_is_not_known_is_said_and_nothing_is_ignored(job: list[str]) -> None:
    """Sizes in plain digits; a time that wasn't measured is unknown, and the disk isn't; --accuracy needs a judge."""
    output = prepared("--config", "cogvideox-5b", "--gpus", "8", "--clips", "1000")
    assert " 326 MB" in output
    assert "e+0" not in output
    unknown = prepared("--config", "demo", "--price", "2")
    assert [line.split()[1:5] for line in unknown.splitlines() if line.startswith("16 clips")] == [
        ["clips", "unknown", "unknown", "0.086"]
    ]
    with pytest.raises(InputError, match="none of the strategies numina is verified"):
        prepared(*job, "--accuracy", "0.5")


def test_options_about_a_cluster_need_its_size(job: list[str]) -> None:
    """An objective without GPUs would be ignored; an unknown one lists those there are."""
    with pytest.raises(InputError, match="--gpus 8"):
        prepared(*job, "--objective", "latency")
    with pytest.raises(InputError, match="those shipped: h100"):
        prepared(*job, "--gpus", "8", "--gpu", "h9000")
    result = CliRunner().invoke(app, ["plan", *job, "--gpus", "8", "--objective", "speed"])
    assert result.exit_code == 2
    assert "latency" in result.output
