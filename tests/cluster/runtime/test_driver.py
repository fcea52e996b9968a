"""The runtime on a real local Ray: every video once, and a clip that fails costs itself alone."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load

import cluster.runtime.driver
import cluster.runtime.fleet
import cluster.workers.rank
import cluster.workers.tasks
from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.job.long_prompts import LongPrompts
from cluster.job.prepared import PreparedJob, prepare
from cluster.observability.progress import JobProgress
from cluster.prompts.write import make_prompts
from cluster.runtime.run import run_job
from cluster.workers.code import ROOT
from cluster.workers.tasks import Draft, Output, Receipt
from numina.errors import (
    ClipError,
    ConfigError,
    GangError,
    InputError,
    JobError,
    ModelError,
    OutputError,
    PromptSetError,
)
from numina.stage import Stage
from pipelines.models.registry import load_model
from pipelines.sampling.clip import Clip
from pipelines.sampling.generate import generate
from pipelines.video.mp4 import decode_mp4, encode_mp4
from tests.cluster.conftest import PROMPTS, processes
from tests.cluster.tasks import tasks_of
from tests.faults.quick_job import Misshapen

Job = Callable[..., JobConfig]
PLAIN = ["strategies=[baseline]"]


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_job_commits_every_video_once_and_resumes_for_nothing(joining_job: Job, tmp_path: Path) -> None:
    """Two prompts × two strategies on a gang of two: four rows with their files; run again, nothing is generated."""
    job = joining_job()
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
        assert row["latents_file"] is None
        assert (row["gpu_name"], row["torch_version"], row["attention_kernel"]) == (None, torch.__version__, "native")
        assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{12}", row["code_version"])
        places = ["gang-0", "cpu", "gang-0", "cpu"] if row["strategy"] == "numina" else ["gang-0", "cpu"]
        assert [span["place"] for span in row["spans"]] == places
        assert len(bytes.fromhex(row["task_digest"])) == 16
        if row["strategy"] == "numina":
            layout = np.load(tmp_path / "out" / row["layout_file"])
            assert layout["labels"].shape == (len(row["targets"]), 5, 4, 4)
            assert [noun["noun"] for noun in row["identified"]] == [target["noun"] for target in row["targets"]]
            assert row["guided"] == ("refined" in layout)
    assert {row["seed"] for row in rows if row["id"] == "single"} == {7}

    before = files(tmp_path / "out" / "videos")
    again = run_job(prepare(joining_job("parallel.ulysses=1")))  # other degrees may resume
    assert (again.done, again.generated) == (4, 0)
    assert files(tmp_path / "out" / "videos") == before


@pytest.mark.usefixtures("quick_model")
def test_a_row_that_can_not_be_written_costs_its_own_clip(joining_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded with its column and value; the clip beside it in the batch is committed, and the job goes on."""
    path = str(Path(joining_job().output).parent / "odd.parquet")
    prompts = [
        {"prompt": f"two red circles, take {number}", "source": "x" if number == 1 else None} for number in range(3)
    ]
    make_prompts(prompts, path)
    known = Output.of

    def of(prepared: PreparedJob) -> Output:
        return replace(known(prepared), extra_columns=pa.schema([("source", pa.int64())]))

    monkeypatch.setattr(Output, "of", of)
    job = joining_job(*PLAIN, "parallel.ulysses=1", "parallel.batch=2", f"prompts={path}")
    outcome = run_job(prepare(job))
    assert (outcome.done, outcome.failed, outcome.retries) == (2, 1, 0)
    [[record]] = Store(job.output).failures().values()
    assert (record["row"], record["stage"]) == (1, "write")
    assert "column 'source': 'x' can't be written as int64" in record["error"]
    monkeypatch.undo()


def test_a_clip_that_can_not_be_encoded_costs_itself(tiny_job: Job) -> None:
    """A fault in one clip's frames leaves the clip beside it."""
    prepared = prepare(tiny_job(*PLAIN))
    store = Store(prepared.job.output)
    store.open_run(prepared.identity())
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    clips = [Clip(frames[..., :2], b"", {Stage.DENOISE: 1.0}), Clip(frames, b"", {Stage.DENOISE: 1.0})]
    drafts = [Draft(task=task, correction=None, timings={}, spans=[], retries=0) for task in tasks_of(prepared)]
    wrong, right = cluster.workers.tasks.write._function(clips, drafts, Output.of(prepared), 0.0)
    assert isinstance(wrong, ClipError)
    assert isinstance(right, Receipt)
    assert store.committed() == {drafts[1].task.key}


def test_latents_are_kept_where_asked(joining_job: Job) -> None:
    """They decode to the frames that the mp4 was made of, and an output may have rows with them and without."""
    job = joining_job(*PLAIN, "parallel.ulysses=1", "limit=1", "latents=true", "generation.crf=0")
    assert prepare(job).identity() == prepare(joining_job("generation.crf=0")).identity()
    assert run_job(prepare(job)).generated == 1
    store = Store(job.output)
    [row] = store.rows().to_pylist()
    kept, model = load(store.read(row["latents_file"])), load_model(job.model.path, device="cpu")
    frames = model.decode(torch.from_numpy(kept["latents"])[None]).pixels[0].numpy()
    same = encode_mp4(frames, fps=job.generation.fps, crf=0)
    assert np.array_equal(decode_mp4(same), decode_mp4(store.read(row["file_name"])))
    alone = generate(model, row["prompt"], seed=row["seed"], generation=job.generation, method=None)
    assert np.abs(frames.astype(int) - alone.video).max() <= 1
    assert alone.latents is None


@pytest.mark.usefixtures("quick_model")
def test_a_prompt_set_grows_and_only_new_rows_are_made(joining_job: Job) -> None:
    """`limit` for a first look, then the rest: no video is made twice."""
    assert run_job(prepare(joining_job("limit=1", "parallel.ulysses=1", "strategies=[baseline]"))).generated == 1
    rest = run_job(prepare(joining_job("parallel.ulysses=1", "strategies=[baseline]")))
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
        (["parallel.ulysses=3"], ConfigError, r"4 heads; nearest that works: parallel\.ulysses=2"),
        (["parallel.cfg=2", "generation.guidance_scale=1"], ConfigError, r"two branches.*: parallel\.cfg=1"),
        (["memory.shard=zero3", "parallel.ulysses=1"], ConfigError, r"this gang has one.*: memory\.shard=none"),
        (["model.path=/nowhere"], ModelError, r"/nowhere has no model_index\.json"),
        (["prompts=/nowhere.parquet"], PromptSetError, "/nowhere.parquet"),
        (["max_count=2", "targets_doubtful=refuse"], PromptSetError, r"row 0.*circles"),
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


@pytest.mark.usefixtures("quick_model")
def test_input_that_turns_out_wrong_in_mid_job_is_no_wrong_input(joining_job: Job) -> None:
    """By then something was started: the error's class, and so the exit status, says that a job has failed."""
    job = joining_job(*PLAIN, "parallel.ulysses=1")
    prepared = prepare(job)

    def lose_the_set(progress: JobProgress) -> None:
        if progress.total:
            Path(job.prompts).unlink(missing_ok=True)

    with pytest.raises(JobError, match=r"the job stopped after it began: prompt set .*prompts\.parquet") as raised:
        run_job(prepared, lose_the_set)
    assert not isinstance(raised.value, InputError)
    assert Store(job.output).run_config()


def test_a_bug_costs_one_try(joining_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong shape is a RuntimeError, as a lost peer is; its clip is given up at once, and the error says why."""
    monkeypatch.setattr(cluster.workers.rank, "Rank", Misshapen)
    job = joining_job(*PLAIN, "parallel.ulysses=1", "limit=1", "cluster.attempts=3")
    outcome = run_job(prepare(job))
    assert (outcome.done, outcome.failed, outcome.retries) == (0, 1, 0)
    [[record]] = Store(job.output).failures().values()
    assert record["tries"] == 1
    assert "shapes cannot be multiplied" in record["error"]


def test_a_guidance_beyond_all_bounds_ends_in_failure_records(joining_job: Job) -> None:
    """Its clips are no numbers: each is recorded with the reason and the stage, after one try, and none is a row. The
    gang of two ranks stays in step and in place."""
    outcome = run_job(prepare(joining_job("generation.guidance_scale=1e30", "parallel.batch=2")))
    assert (outcome.done, outcome.generated, outcome.failed, outcome.retries) == (0, 0, 4, 0)
    store = Store(joining_job().output)
    assert len(store.rows()) == 0
    records = [record for [record] in store.failures().values()]
    assert sorted(record["stage"] for record in records) == ["denoise", "denoise", "identify", "identify"]
    assert all(
        record["error"].startswith("ClipError: the latents have values that aren't finite") for record in records
    )
    assert all(record["tries"] == 1 for record in records)


class SpoilsOne(cluster.workers.rank.Rank):
    """One clip of the set has a NaN in its noise, on every rank: the one whose seed is 7."""

    def load(self, first: Any) -> Any:
        loaded = super().load(first)
        model: Any = self._ready.model
        noise = model.noise

        def spoilt(seeds: Any, generation: Any) -> torch.Tensor:
            drawn: torch.Tensor = noise(seeds, generation)
            drawn[[seed == 7 for seed in seeds], 0, 0, 0, 0] = torch.nan
            return drawn

        model.noise = spoilt
        return loaded


def test_one_broken_clip_costs_its_batch_mates_nothing(joining_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two on two ranks: the other clip of each batch is committed, plain and corrected; the same gang."""
    monkeypatch.setattr(cluster.workers.rank, "Rank", SpoilsOne)
    outcome = run_job(prepare(joining_job("parallel.batch=2")))
    assert (outcome.generated, outcome.failed, outcome.retries) == (2, 2, 0)
    store = Store(joining_job().output)
    assert {(row["id"], row["strategy"], row["retries"]) for row in store.rows().to_pylist()} == {
        ("pair", "baseline", 0),
        ("pair", "numina", 0),
    }
    assert {record["row"] for [record] in store.failures().values()} == {1}


@pytest.fixture
def encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the text encoder looks how long prompts are."""
    monkeypatch.setattr(LongPrompts, "problem", lambda self, row: None)


@pytest.mark.usefixtures("quick_model")
def test_a_gang_with_other_code_is_refused(joining_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence that names both places, before it is given any work."""
    monkeypatch.setattr(cluster.runtime.fleet, "code_digest", lambda: "0" * 16)
    with pytest.raises(
        GangError, match=rf"gang-0 runs other code than this driver: {ROOT} on [\d.]+ is \w+, {ROOT} here is 0{{16}}"
    ):
        run_job(prepare(joining_job("parallel.ulysses=1")))


@pytest.mark.usefixtures("encoder_alone")
@pytest.mark.usefixtures("quick_model")
def test_a_poison_prompt_is_recorded_and_the_job_goes_on(joining_job: Job) -> None:
    """A prompt that the model can't take fails with its reason; the others are made."""
    job = joining_job("parallel.ulysses=1", "strategies=[numina]")
    path = str(Path(job.output).parent / "poison.parquet")
    make_prompts(
        [
            {"id": "bad", "prompt": "three red circles, unfit"},
            {"id": "good", "prompt": "two red circles", "targets": [{"noun": "circles", "count": 2}]},
        ],
        path,
    )
    outcome = run_job(prepare(joining_job("parallel.ulysses=1", "strategies=[numina]", f"prompts={path}")))
    assert (outcome.done, outcome.failed) == (1, 1)
    [records] = Store(job.output).failures().values()
    assert (records[0]["stage"], records[0]["error"]) == (
        "identify",
        "InputError: 'three red circles, unfit' is unfit",
    )
    resumed = run_job(prepare(joining_job("parallel.ulysses=1", "strategies=[numina]", f"prompts={path}")))
    assert (resumed.generated, resumed.failed) == (0, 1)
    again = ["parallel.ulysses=1", "strategies=[numina]", f"prompts={path}", "retry_failed=true"]
    assert run_job(prepare(joining_job(*again))).failed == 1
    [records] = Store(job.output).failures().values()
    assert len(records) == 2  # tried once more, and said so


@pytest.mark.slow
@pytest.mark.usefixtures("encoder_alone")
def test_rows_depend_on_neither_gangs_nor_degrees_nor_batch(joining_job: Job) -> None:
    """Two gangs of one rank and one clip per forward; one gang of two ranks and two clips; two ranks with a branch
    each and prompts encoded apart, by an encoder that is lost on the way: the same rows and videos.

    Strategies are mixed; a prompt whose noun is cut off fails in all, and costs its batch mate nothing.
    """
    path = str(Path(joining_job().output).parent / "mixed.parquet")
    long = {"id": "long", "prompt": f"{'red ' * 30}circles", "targets": [{"noun": "circles", "count": 3}]}
    make_prompts([PROMPTS[0], long, PROMPTS[1]], path)
    killed: list[int] = []

    def kill_the_encoder(progress: JobProgress) -> None:
        if progress.generated and not killed:
            [encoder] = processes("Encoder")
            killed.append(encoder.pid)
            encoder.kill()

    made = []
    for parallel, report in (
        (["parallel.gangs=2", "parallel.ulysses=1"], lambda progress: None),
        (["parallel.ulysses=2", "parallel.batch=2"], lambda progress: None),
        (
            ["parallel.cfg=2", "parallel.ulysses=1", "memory.text_encoder=apart", "cluster.clips_in_flight=1"],
            kill_the_encoder,
        ),
    ):
        job = joining_job(*parallel, f"prompts={path}", f"output={joining_job().output}-{len(made)}")
        outcome = run_job(prepare(job), report)
        assert (outcome.generated, outcome.failed) == (5, 1)  # without NUMINA the long prompt is a prompt like any
        assert len([name for name in outcome.gangs if name.startswith("gang")]) == job.parallel.gangs_at_least
        store = Store(job.output)
        [[record]] = store.failures().values()
        assert (record["row"], record["stage"]) == (1, "identify")
        assert "cut off" in record["error"]
        rows = {row["key"]: row for row in store.rows().to_pylist()}
        assert all((row["cfg"], row["ulysses"]) == (job.parallel.cfg, job.parallel.ulysses) for row in rows.values())
        made.append({key: (row, decode_mp4(store.read(row["file_name"]))) for key, row in rows.items()})
    assert killed
    one, *others = made
    assert not any(row["retries"] for row, _ in (*one.values(), *others[0].values()))
    for other in others:
        assert other.keys() == one.keys()
        for key, (row, video) in other.items():
            expected, expected_video = one[key]
            for name in ("id", "strategy", "seed", "identified", "guided", "shortfall", "config_hash"):
                assert row[name] == expected[name], name
            assert row["timings"]["encode"] > 0
            assert np.abs(video.astype(int) - expected_video).mean() < 0.5
