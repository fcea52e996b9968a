"""What names a video: keys that never change, digests of what was asked; and what a plan knows without its rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.dataset.store import Store
from cluster.job.checks import check_submitted
from cluster.job.config import JobConfig, load_job
from cluster.job.prepared import FIRST_ROWS, PreparedJob, prepare
from cluster.job.tasks import ClipTask
from cluster.job.worklist import open_worklist
from cluster.prompts.promptset import open_prompts
from cluster.prompts.write import make_prompts
from cluster.rows import ROW_SCHEMA
from cluster.workers.row import layout_arrays, row_of
from numina.correct import Correction
from numina.errors import ConfigError, PromptSetError
from numina.layout import Layout
from numina.prompts.targets import Target
from pipelines.sampling.clip import Clip
from tests.cluster.job.test_worklist import MODEL, NOTHING
from tests.cluster.tasks import row_key, tasks_of

Job = Callable[..., JobConfig]
ROW: dict[str, Any] = {"id": "a", "prompt": "two red circles", "negative_prompt": "blurry", "seed": 5}


def tasks_in(path: Path, *rows: dict[str, Any], job: JobConfig | None = None, **changes: Any) -> list[ClipTask]:
    path.unlink(missing_ok=True)
    make_prompts(rows, str(path))
    prepared = PreparedJob(
        job=job or load_job("demo", ["strategies=[numina]"]),
        model=MODEL,
        device="cpu",
        dtype="float32",
        prompts=open_prompts(str(path)),
    )
    return list(tasks_of(replace(prepared, **changes)))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (
            {
                "prompt": "",
                "negative_prompt": "blurry",
                "targets": [],
                "seed": 2**63 - 1,
                "config": {"z": 5.0, "a": {"b": [1, 2.5]}},
                "model_revision": "é",
                "algorithm_version": "x",
            },
            "798a41f0f18b6004513f88a5e2d39bab",
        ),
        (
            {
                "prompt": "three cats, “deux” chiens\n",
                "negative_prompt": None,
                "targets": [Target("cats", 3)],
                "seed": 7,
                "config": {},
                "model_revision": "rev",
                "algorithm_version": 2,
            },
            "2d9d189ff7ad6fd5c72138ff7d0482da",
        ),
    ],
)
def test_keys_never_change(content: dict[str, Any], key: str) -> None:
    """A key that changed would have every video of an old output made again."""
    assert row_key(**content) == key


def test_a_task_has_the_key_of_its_row(tmp_path: Path) -> None:
    """However fast a plan makes keys."""
    [task] = tasks_in(tmp_path / "set.parquet", ROW)
    job = load_job("demo", ["strategies=[numina]"])
    assert task.key == row_key(
        prompt=ROW["prompt"],
        negative_prompt="blurry",
        targets=[Target("circles", 2)],
        seed=5,
        config=job.row_config("numina", "float32"),
        model_revision=MODEL.revision,
        algorithm_version=3,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"id": "b"},
        {"id": None},
        {"prompt": "two red circles "},
        {"negative_prompt": None},
        {"negative_prompt": ""},
        {"seed": 6},
        {"seed": None},
        {"targets": [{"noun": "circles", "count": 2}]},
    ],
)
def test_a_digest_changes_with_what_is_asked(tmp_path: Path, change: dict[str, Any]) -> None:
    """Each of the row's own columns as it is given, null apart from empty."""
    [task], [other] = (tasks_in(tmp_path / "set.parquet", row) for row in (ROW, ROW | change))
    assert len(task.digest) == 32
    assert task.digest != other.digest


def test_a_digest_changes_with_what_decides_the_pixels(tmp_path: Path) -> None:
    """Settings, dtype, checkpoint, the job's seed, strategy and sample: each task of these jobs has its own."""
    path, usual = tmp_path / "set.parquet", ["strategies=[numina,baseline]", "samples=2"]
    found = tasks_in(path, ROW, job=load_job("demo", usual))
    for override in ("seed=1", "generation.steps=7", "generation.guidance_scale=2.5"):
        found += tasks_in(path, ROW, job=load_job("demo", [*usual, override]))
    found += tasks_in(path, ROW, job=load_job("demo", usual), dtype="float16")
    found += tasks_in(path, ROW, job=load_job("demo", usual), model=replace(MODEL, revision="another"))
    assert len({task.digest for task in found}) == len(found) == 24


def test_a_digest_changes_with_nothing_else(tmp_path: Path) -> None:
    """Neither place nor neighbours, other columns, degrees, batch, shard or the output's name."""
    path = tmp_path / "set.parquet"
    [task] = tasks_in(path, ROW)
    overrides = ["strategies=[numina]", "parallel.batch=3", "shard=1/2", "output=elsewhere", "cluster.attempts=9"]
    first = {"id": "first", "prompt": "one cross", "source": "web"}
    [_, other] = tasks_in(path, first, ROW, job=load_job("demo", overrides))
    assert (other.digest, other.key) == (task.digest, task.key)
    assert other.row.extra == {"source": None}


def test_the_digest_is_a_column_of_the_row(tiny_job: Job) -> None:
    """A later run recognises the row by it."""
    prepared = prepare(tiny_job())
    task = next(tasks_of(prepared))
    row = row_of(prepared, task, Clip(np.zeros((0, 64, 64, 3), np.uint8), b"", {}), None, retries=0)
    assert row["task_digest"] == task.digest
    assert ROW_SCHEMA.field("task_digest").type == pa.string()


@pytest.mark.parametrize(("confidence", "left_alone"), [(None, None), (0.25, "read with a confidence below 0.5: …")])
def test_confidence_is_in_the_row_and_the_layout_file(
    tiny_job: Job, tmp_path: Path, confidence: float | None, left_alone: str | None
) -> None:
    """In the order of the targets, read back as written; null, and no array, where the reading doesn't tell."""
    prepared = prepare(tiny_job())
    task = next(tasks_of(prepared))
    nouns = len(task.row.targets)
    told = None if confidence is None else np.full(nouns, confidence)
    layout = Layout(np.zeros((nouns, 5, 4, 4), np.int16), tracked=True, confidence=told)
    correction = Correction(layout, None, None, left_alone)
    row = row_of(prepared, task, Clip(np.zeros((0, 64, 64, 3), np.uint8), b"", {}), correction, retries=0)
    store = Store(str(tmp_path / "out"))
    store.open_run({})
    row["layout_file"] = store.put_layout(task.key, layout_arrays(task, correction))
    store.commit(row | {"file_name": "a.mp4", "video_sha256": "ab"})
    [back] = store.rows().to_pylist()
    assert back["confidences"] == (None if told is None else told.tolist())
    assert (back["left_alone"], back["guided"], back["shortfall"]) == (left_alone, False, None)
    with np.load(tmp_path / "out" / back["layout_file"]) as arrays:
        assert ("confidence" in arrays) == (told is not None)
        if told is not None:
            np.testing.assert_array_equal(arrays["confidence"], told)


def test_videos_are_counted_without_rows(tiny_job: Job) -> None:
    """Rows from footers, times samples, times strategies that differ."""
    variants = ["method.guide.add=6", "variants.grid.guide.add=[5,6]"]
    prepared = prepare(tiny_job("samples=3", *variants))
    assert prepared.asked == 2 * 3 * 3 == len(list(tasks_of(prepared)))
    assert prepare(tiny_job("samples=3", "limit=1")).asked == 6


def test_the_first_rows_are_checked_at_once_and_the_others_before_work(tiny_job: Job, tmp_path: Path) -> None:
    """Planning a large job takes no longer than a small one's; nothing starts until the whole set is checked."""
    path = str(tmp_path / "large.parquet")
    rows = [{"prompt": f"two circles and number {number}", "targets": None} for number in range(FIRST_ROWS)]
    make_prompts([*rows, {"prompt": " "}], path)
    prepared = prepare(tiny_job(f"prompts={path}"))
    with pytest.raises(PromptSetError, match=rf"1 problem:\n.*row {FIRST_ROWS}, column 'prompt': ' '"):
        open_worklist(prepared, NOTHING, NOTHING)
    make_prompts([{"prompt": " "}, *rows], str(tmp_path / "other.parquet"))
    with pytest.raises(PromptSetError, match=r"row 0, column 'prompt': ' '"):
        prepare(tiny_job(f"prompts={tmp_path}/other.parquet"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["cluster.address=auto"], "output is 'out/demo', relative to a copy .* that Ray deletes"),
        (["output=/data/out"], "cluster.address is 'local', which starts a second Ray in the submitted job"),
    ],
)
def test_a_submitted_job_that_would_lose_its_rows_is_refused(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], said: str
) -> None:
    """What `ray job submit` runs stands in a folder that goes with the job; outside of it both are fine."""
    check_submitted(load_job("demo", overrides))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=said):
        check_submitted(load_job("demo", overrides))
    check_submitted(load_job("demo", ["output=s3://bucket/out", "cluster.address=auto"]))
