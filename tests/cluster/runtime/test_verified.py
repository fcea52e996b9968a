"""`verified` on a real Ray: a judge beside the gangs, attempts until one is accepted, and resuming amid a chain.

The counter finds no shape in a random model's clips and rejects them all; where one is to be accepted, its verdict is
there before.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.evaluation.outcomes import outcomes, strategies_of
from cluster.job.config import JobConfig
from cluster.job.names import TaskNames
from cluster.job.prepared import prepare
from cluster.job.tasks import ClipTask
from cluster.observability.status import status_of
from cluster.prompts.write import make_prompts
from cluster.runtime.run import run_job
from numina.errors import InputError, ModelError
from tests.cluster.tasks import tasks_of
from tests.pipelines.judges import tiny

Job = Callable[..., JobConfig]
VERIFIED = ["strategies=[numina+verified]", "verify.attempts=3", "parallel.ulysses=1", "generation.steps=3"]


def chains(job: JobConfig) -> dict[str, list[ClipTask]]:
    """All attempts that a prompt may have, by its id."""
    prepared = prepare(job)
    return {task.row.id or "": TaskNames(prepared).attempts(task) for task in tasks_of(prepared) if task.verified}


def accept(job: JobConfig, task: ClipTask) -> None:
    """A verdict that was there before."""
    store = Store(job.output)
    store.open_run(prepare(job).identity())
    verdict = {"count_accuracy": 1.0, "chain": task.chain, "attempt": task.attempt, "strength": task.strength}
    store.put_evaluation("counter", task.key, verdict)


@pytest.mark.usefixtures("quick_model")
def test_attempts_go_on_until_one_is_accepted(joining_job: Job) -> None:
    """One prompt's second attempt is accepted, the other's are all rejected: two rows and three, a verdict on each,
    and what each cost. Run again, nothing is made; with more attempts allowed, the rejected one goes on."""
    job = joining_job(*VERIFIED)
    own = chains(job)
    accept(job, own["pair"][1])
    outcome = run_job(prepare(job))
    assert (outcome.total, outcome.done, outcome.generated, outcome.failed) == (2, 2, 5, 0)
    assert (outcome.accepted, outcome.rejected) == (1, 1)

    store = Store(job.output)
    rows = store.rows().to_pylist()
    attempts = {(row["id"], row["attempt"]): row for row in rows}
    assert attempts.keys() == {("pair", 0), ("pair", 1), ("single", 0), ("single", 1), ("single", 2)}
    assert {row["key"] for row in rows} == {task.key for task in [*own["pair"][:2], *own["single"]]}
    assert len({row["seed"] for row in rows}) == 5
    verdicts = {row["key"]: row for row in store.evaluations("counter").to_pylist()}
    assert verdicts.keys() == {row["key"] for row in rows}
    [strategy] = strategies_of(store, rows)
    made = {found.kept["id"]: found for found in outcomes(strategy, rows, verdicts)}
    assert (made["pair"].accepted, made["pair"].kept["attempt"], made["single"].accepted) == (True, 1, False)
    assert made["single"].cost > made["pair"].cost > 0

    status = status_of(store)
    assert (status.done, status.completed, status.left) == (5, 2, 0)
    told = CliRunner().invoke(app, ["status", job.output], catch_exceptions=False).stdout
    assert "2 done, 0 failed, 0 left of 2; 5 videos made for them" in told
    again = run_job(prepare(job))
    assert (again.done, again.generated) == (2, 0)
    more = run_job(prepare(joining_job(*VERIFIED[:1], "verify.attempts=4", *VERIFIED[2:])))
    assert (more.done, more.generated, more.rejected) == (2, 1, 1)


def test_a_judge_that_cant_know_a_noun_is_refused_first(tiny_job: Job, tmp_path: Path) -> None:
    """Before anything is generated, with what to do."""
    make_prompts([{"prompt": "three cats"}], str(tmp_path / "cats.parquet"))
    job = tiny_job(*VERIFIED, f"prompts={tmp_path}/cats.parquet")
    with pytest.raises(InputError, match="knows coloured shapes and creatures only, not cats"):
        prepare(job)
    with pytest.raises(ModelError, match="grounding-dino"):
        prepare(tiny_job(*VERIFIED, "verify.judge=published", f"judge.path={tmp_path}/nowhere"))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_model")
def test_a_chain_goes_on_where_it_was_left(joining_job: Job) -> None:
    """What was committed and not judged is judged, not made again; clips of other strategies are attempts too."""
    plain = joining_job(*VERIFIED, "strategies=[numina]")
    assert run_job(prepare(plain)).generated == 2
    job = joining_job(*VERIFIED, "verify.attempts=2", "limit=1")
    [attempts] = chains(job).values()
    accept(job, attempts[1])
    outcome = run_job(prepare(job))
    assert (outcome.total, outcome.done, outcome.generated, outcome.accepted) == (1, 1, 1, 1)
    assert Store(job.output).row(attempts[0].key) is not None


@pytest.mark.slow
def test_stronger_attempts_keep_the_noise(joining_job: Job) -> None:
    """With more guidance each; the clip differs where anything was guided at all."""
    retry = ["verify.retry=stronger", "verify.strengthen=2", "verify.attempts=2", "method.preset=paper"]
    job = joining_job(*VERIFIED, *retry, "limit=1", "method.guide.add=4")
    assert run_job(prepare(job)).generated == 2
    first, second = sorted(Store(job.output).rows().to_pylist(), key=lambda row: row["attempt"])
    assert (first["seed"], first["strength"], second["strength"]) == (second["seed"], 1.0, 2.0)
    assert first["guided"]
    assert second["guided"]
    assert first["video_sha256"] != second["video_sha256"]


@pytest.mark.usefixtures("quick_model")
def test_a_prompt_is_enhanced_and_its_own_is_kept(joining_job: Job) -> None:
    """The row says what was generated with and what was asked; both strategies are of one prompt."""
    job = joining_job("strategies=[baseline,prompt_enhancement]", "parallel.ulysses=1", "generation.steps=2", "limit=1")
    assert run_job(prepare(job)).generated == 2
    store = Store(job.output)
    rows = {row["strategy"]: row for row in store.rows().to_pylist()}
    plain, enhanced = rows["baseline"], rows["prompt_enhancement"]
    assert plain["original_prompt"] is None
    assert enhanced["original_prompt"] == plain["prompt"] != enhanced["prompt"]
    assert enhanced["targets"] == plain["targets"]
    assert enhanced["seed"] == plain["seed"]
    samples = [
        outcome.sample
        for strategy in strategies_of(store, list(rows.values()))
        for outcome in outcomes(strategy, list(rows.values()), {})
    ]
    assert len(samples) == 2
    assert len(set(samples)) == 1


@pytest.mark.slow
def test_one_command_compares_strategies(tmp_path: Path) -> None:
    """On the embedded model: clips are made, judged by two, and a table is printed; again, nothing is made."""
    overrides = ["--config", "comparison", f"output={tmp_path}/out", "limit=2", "strategies=[baseline,verified]"]
    clip = ["--clip", str(tiny.clip(tmp_path / "clip"))]
    command = [sys.executable, "-m", "cluster.cli", "compare", *overrides, "verify.attempts=2", *clip]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        for words in ("judged by counter", "baseline", "verified", "CountAcc verified − baseline", "cost of one"):
            assert words in done.stdout
    rows = Store(f"{tmp_path}/out", single_writer=True).rows().to_pylist()
    summary = json.loads((tmp_path / "out/evaluations/summary.json").read_text())
    own = {found["strategy"]: found for found in summary["judges"][0]["strategies"]}
    assert len(rows) == own["baseline"]["attempts"] + own["verified"]["attempts"]
    assert own["verified"]["accepted"] + own["verified"]["rejected"] == 2
    assert 0 < own["verified"]["groups"][0]["measures"]["temporal_consistency"]["mean"] <= 1
    better = own["verified"]["groups"][0]["measures"]["count_accuracy"]["mean"]
    assert better > own["baseline"]["groups"][0]["measures"]["count_accuracy"]["mean"]
