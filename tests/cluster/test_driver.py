"""The runtime on a real local Ray: every video once, whatever is lost on the way."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from ray.exceptions import RayError

from cluster.driver import Driver, JobProgress, _Flight, prepare, run_job
from cluster.job import JobConfig
from cluster.promptset import make_prompts
from cluster.store import Store
from numina.errors import ConfigError, ModelError, OutputError, PromptSetError
from pipelines.video import decode_mp4
from tests.cluster.conftest import PROMPTS

Job = Callable[..., JobConfig]


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_job_commits_every_video_once_and_resumes_for_nothing(tiny_job: Job, tmp_path: Path) -> None:
    """Two prompts × two strategies on a gang of two: four rows with their files; run again, nothing is generated."""
    job = tiny_job()
    outcome = run_job(prepare(job))
    assert (outcome.total, outcome.done, outcome.generated, outcome.failed) == (4, 4, 4, 0)

    rows = Store(job.output).rows().to_pylist()
    assert {(row["id"], row["strategy"]) for row in rows} == {
        (id, strategy) for id in ("pair", "single") for strategy in ("baseline", "numina")
    }
    for row in rows:
        video = decode_mp4(tmp_path / "out" / row["file_name"])
        assert video.shape == (row["num_frames"], row["height"], row["width"], 3)
        assert row["source"] == "test"  # the set's own column is carried
        assert row["ulysses"] == 2
        if row["strategy"] == "numina":
            layout = np.load(tmp_path / "out" / row["layout_file"])
            assert layout["labels"].shape == (len(row["targets"]), 5, 4, 4)
            assert [noun["noun"] for noun in row["identified"]] == [target["noun"] for target in row["targets"]]
            assert row["guided"] == ("refined" in layout)
    assert {row["seed"] for row in rows if row["id"] == "single"} == {7}

    before = files(tmp_path / "out" / "videos")
    again = run_job(prepare(tiny_job("parallel.ulysses=1")))  # other degrees may resume
    assert (again.done, again.generated) == (4, 0)
    assert files(tmp_path / "out" / "videos") == before


def test_a_killed_rank_costs_time_but_no_row(tiny_job: Job) -> None:
    """SIGKILL of one rank in mid-job: a fresh gang takes over, every row is there, nothing failed.

    The batch that was lost with it is tried again clip by clip.
    """
    job = tiny_job("generation.steps=30", "samples=2", "parallel.batch=2")
    killed: list[int] = []

    def kill_one_rank(progress: JobProgress) -> None:
        if progress.generated and not killed:
            ranks = [p for p in psutil.Process().children(recursive=True) if "ray::Rank" in " ".join(p.cmdline())]
            ranks += [p for p in psutil.process_iter() if "ray::Rank" in p.name()]
            killed.append(ranks[0].pid)
            os.kill(ranks[0].pid, signal.SIGKILL)

    outcome = run_job(prepare(job), kill_one_rank)
    assert killed
    assert (outcome.done, outcome.failed) == (8, 0)
    assert len(Store(job.output).rows()) == 8
    assert max(row["retries"] for row in Store(job.output).rows().to_pylist()) >= 1


def test_a_prompt_set_grows_and_only_new_rows_are_made(tiny_job: Job) -> None:
    """`limit` for a first look, then the rest: no video is made twice."""
    assert run_job(prepare(tiny_job("limit=1", "parallel.ulysses=1", "strategies=[baseline]"))).generated == 1
    rest = run_job(prepare(tiny_job("parallel.ulysses=1", "strategies=[baseline]")))
    assert (rest.done, rest.generated) == (2, 1)


def test_another_configuration_in_the_same_output_is_refused(tiny_job: Job, tmp_path: Path) -> None:
    """The error shows what differs, and nothing is written."""
    Store(tiny_job().output).open_run(prepare(tiny_job()).identity())
    before = files(tmp_path / "out")
    with pytest.raises(OutputError, match=r"steps: 4 there, 5 now"):
        run_job(prepare(tiny_job("generation.steps=5")))
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["parallel.ulysses=3"], ConfigError, "use one of 1, 2, 4"),
        (["model.path=/nowhere"], ModelError, r"/nowhere has no model_index\.json"),
        (["prompts=/nowhere.parquet"], PromptSetError, "/nowhere.parquet"),
        (["max_count=2"], PromptSetError, r"row 0.*circles"),
        (["generation.cache=magcache"], ConfigError, r"generation\.cache=magcache doesn't run on 2 ranks"),
        (
            ["variants.a.identify.cache=first_block", "parallel.ulysses=1", "parallel.batch=2"],
            ConfigError,
            r"method\.identify\.cache=first_block .* parallel\.batch=1",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    tiny_job: Job, tmp_path: Path, overrides: list[str], error: type[Exception], message: str
) -> None:
    """Degrees, caches, model and prompts are checked without Ray, and without an output folder."""
    with pytest.raises(error, match=message):
        prepare(tiny_job(*overrides))
    assert not (tmp_path / "out").exists()


def test_a_poison_prompt_is_recorded_and_the_job_goes_on(tiny_job: Job) -> None:
    """A prompt that the model can't take (its noun is cut off) fails with its reason; the others are made."""
    job = tiny_job("parallel.ulysses=1", "strategies=[numina]")
    long = " ".join(["red"] * 30)
    path = str(Path(job.output).parent / "poison.parquet")
    make_prompts(
        [
            {"id": "long", "prompt": f"{long} and three circles", "targets": [{"noun": "circles", "count": 3}]},
            {"id": "good", "prompt": "two red circles", "targets": [{"noun": "circles", "count": 2}]},
        ],
        path,
    )
    outcome = run_job(prepare(tiny_job("parallel.ulysses=1", "strategies=[numina]", f"prompts={path}")))
    assert (outcome.done, outcome.failed) == (1, 1)
    [records] = Store(job.output).failures().values()
    assert "circles" in records[0]["error"]
    assert "cut off" in records[0]["error"]
    resumed = run_job(prepare(tiny_job("parallel.ulysses=1", "strategies=[numina]", f"prompts={path}")))
    assert (resumed.generated, resumed.failed) == (0, 1)
    again = ["parallel.ulysses=1", "strategies=[numina]", f"prompts={path}", "retry_failed=true"]
    assert run_job(prepare(tiny_job(*again))).failed == 1
    [records] = Store(job.output).failures().values()
    assert len(records) == 2  # tried once more, and said so


# --- batches ---


def numbered(job: Job, number: int, *overrides: str) -> Driver:
    """A driver, not running, over `number` prompts; `ids` says which tasks a batch has."""
    path = str(Path(job().output).parent / f"{number}.parquet")
    make_prompts([{"id": str(index), "prompt": "two red circles"} for index in range(number)], path)
    plan = prepare(job(f"prompts={path}", *overrides))
    driver = Driver(plan, Store(plan.job.output), JobProgress(total=0), lambda progress: None)
    driver.pending.extend(plan.tasks())
    return driver


def batches(driver: Driver) -> list[str]:
    """All batches that a gang would be given, as their strategy and ids."""
    found = []
    while driver.pending:
        batch = driver._next_batch()
        [strategy] = {task.strategy for task in batch}
        found.append(f"{strategy} {' '.join(task.row.id or '' for task in batch)}")
    return found


def test_a_batch_is_of_one_strategy(tiny_job: Job) -> None:
    """Prompts stay in their order, strategies take turns, and the last batches hold what is left."""
    expected = ["baseline 0 1 2", "numina 0 1 2", "baseline 3 4", "numina 3 4"]
    assert batches(numbered(tiny_job, 5, "parallel.batch=3")) == expected
    assert batches(numbered(tiny_job, 2)) == ["baseline 0", "numina 0", "baseline 1", "numina 1"]


def test_a_failed_batch_is_tried_again_clip_by_clip(tiny_job: Job) -> None:
    """Whatever failed once goes alone, after what didn't; after the last attempt it is recorded, and only it."""
    driver = numbered(tiny_job, 5, "parallel.batch=2", "strategies=[baseline]", "cluster.attempts=3")

    def fail_next() -> None:
        flight = _Flight(driver._next_batch(), gang=None, stage="denoise")
        driver.flights.append(flight)
        driver._fail(flight, RayError("lost"))

    fail_next()
    assert [task.row.id for task in driver.pending] == ["2", "3", "4", "0", "1"]
    waiting = list(driver.pending)
    assert batches(driver) == ["baseline 2 3", "baseline 4", "baseline 0", "baseline 1"]
    driver.pending.extend(sorted(waiting, key=lambda task: task.row.id != "2"))  # 2 3 4 0 1: a failed one in the window
    driver.pending.rotate(2)
    assert batches(driver) == ["baseline 0", "baseline 1", "baseline 2 3", "baseline 4"]
    driver.pending.extend(waiting[3:])
    for _ in range(3):
        fail_next()
    assert [task.row.id for task in driver.pending] == ["1"]
    [records] = driver.store.failures().values()
    assert (records[0]["row"], records[0]["stage"]) == (0, "denoise")
    assert "lost" in records[0]["error"]
    assert driver.progress.failed == 1


def test_the_same_video_is_asked_for_once(tiny_job: Job) -> None:
    """A variant with numina's settings, or a seed that two rows' samples share: two tasks of one key would collide."""
    path = str(Path(tiny_job().output).parent / "near.parquet")
    make_prompts([{"id": str(seed), "prompt": "two red circles", "seed": seed} for seed in (3, 4)], path)
    given = ["samples=2", "strategies=[numina]", "method.guide.add=6", "variants.grid.guide.add=[5,6]"]
    plan = prepare(tiny_job(f"prompts={path}", *given))
    tasks = list(plan.tasks())
    assert [(task.row.id, task.seed) for task in tasks[::2]] == [("3", 3), ("3", 4), ("4", 5)]
    assert [task.strategy for task in tasks] == ["numina", "grid:add=5"] * 3
    assert len({task.key for task in tasks}) == 6


def test_rows_depend_on_neither_gangs_nor_degrees_nor_batch(tiny_job: Job) -> None:
    """Two gangs of one rank and one clip per forward, or one gang of two ranks and two clips: the same rows and videos.

    Strategies are mixed; a prompt whose noun is cut off fails in both, and costs its batch mate nothing.
    """
    path = str(Path(tiny_job().output).parent / "mixed.parquet")
    long = {"id": "long", "prompt": f"{'red ' * 30}circles", "targets": [{"noun": "circles", "count": 3}]}
    make_prompts([PROMPTS[0], long, PROMPTS[1]], path)
    made = []
    for parallel in (
        ["parallel.gangs=2", "parallel.ulysses=1"],
        ["parallel.ulysses=2", "parallel.batch=2"],
    ):
        job = tiny_job(*parallel, f"prompts={path}", f"output={tiny_job().output}-{len(made)}")
        outcome = run_job(prepare(job))
        assert (outcome.generated, outcome.failed) == (5, 1)  # without NUMINA the long prompt is a prompt like any
        assert len(outcome.gangs) == job.parallel.gangs
        store = Store(job.output)
        [[record]] = store.failures().values()
        assert (record["row"], record["stage"]) == (1, "identify")
        assert "cut off" in record["error"]
        rows = {row["key"]: row for row in store.rows().to_pylist()}
        made.append({key: (row, decode_mp4(store.read(row["file_name"]))) for key, row in rows.items()})
    side_by_side, together = made
    assert side_by_side.keys() == together.keys()
    for key, (row, video) in together.items():
        other, other_video = side_by_side[key]
        for name in ("id", "strategy", "seed", "identified", "guided", "shortfall", "config_hash", "retries"):
            assert row[name] == other[name], name
        assert np.abs(video.astype(int) - other_video).mean() < 0.5
