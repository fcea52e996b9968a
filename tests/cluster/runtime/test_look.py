"""The look at a prompt set on a real Ray: gangs start beside it, bad rows stop the job or are skipped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.job.config import JobConfig, load_job
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.observability.status import status_of
from cluster.prompts.write import make_prompts
from cluster.runtime.run import run_job
from numina.errors import ConfigError, OutputError, PromptSetError
from tests.cluster.conftest import processes
from tests.cluster.tasks import tasks_of

Job = Callable[..., JobConfig]
QUICK = ["strategies=[baseline]", "parallel.ulysses=1"]
MANY = 12_000  # rows, which take some seconds to check


def many(path: Path, *last: str) -> str:
    """A large set of prompts that are read, each another one."""
    prompts = [f"two red circles and {number} blue squares of {number} metres" for number in range(1, MANY + 1)]
    pq.write_table(pa.table({"prompt": [*prompts, *last]}), path)
    return str(path)


class EnoughError(Exception):
    """All was seen."""


class Events:
    """What a job reports, in order, each once."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, now: JobProgress) -> None:
        standing = [state for state in now.gangs.values() if state not in ("placing", "loading", "compiling")]
        told = {
            "gangs": bool(now.gangs),
            "standing": bool(standing),
            "checked": now.total > 0,
            "clip": now.generated > 0,
        }
        self.seen += [name for name, true in told.items() if true and name not in self.seen]


@pytest.mark.usefixtures("quick_model")
def test_gangs_start_while_the_set_is_checked(joining_job: Job, tmp_path: Path) -> None:
    """They begin before all rows are checked, and no clip is made before that."""
    events = Events()

    def stop_after_one(now: JobProgress) -> None:
        events(now)
        if now.generated:
            raise EnoughError

    with pytest.raises(EnoughError):
        run_job(prepare(joining_job(*QUICK, f"prompts={many(tmp_path / 'many.parquet')}")), stop_after_one)
    assert events.seen[0] == "gangs"
    assert events.seen.index("checked") < events.seen.index("clip")


@pytest.mark.usefixtures("quick_model")
def test_a_bad_row_far_in_the_set_stops_the_job_before_its_first_clip(
    joining_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is wrong input as ever, the gangs that had begun are gone, and no output was begun."""
    monkeypatch.setenv("NUMINA_DIARY", str(tmp_path / "diary"))
    job = joining_job(*QUICK, f"prompts={many(tmp_path / 'many.parquet', ' ')}")
    events = Events()
    with pytest.raises(PromptSetError, match=rf"1 problem:\n.*row {MANY}, column 'prompt': ' '[^$]*prompts_bad=skip"):
        run_job(prepare(job), events)
    assert events.seen[:1] == ["gangs"]
    assert not {"checked", "clip"} & set(events.seen)
    assert not processes("Rank")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "diary").exists()


@pytest.mark.usefixtures("quick_model")
def test_a_small_bad_set_starts_no_gang(joining_job: Job, tmp_path: Path) -> None:
    """What is wrong is known at once."""
    rows = [{"prompt": f"two circles and {number} squares of {number} metres"} for number in range(1, 101)]
    make_prompts([*rows, {"prompt": " "}], str(tmp_path / "set.parquet"))
    events = Events()
    with pytest.raises(PromptSetError, match="row 100"):
        run_job(prepare(joining_job(*QUICK, f"prompts={tmp_path}/set.parquet")), events)
    assert events.seen == []


def test_another_output_is_refused_before_rows_are_checked(tiny_job: Job, tmp_path: Path) -> None:
    """And before a gang starts: the look at a million rows takes minutes."""
    Store(tiny_job().output).open_run(prepare(tiny_job()).identity())
    looked: list[int] = []
    other = tiny_job("generation.steps=5", f"prompts={many(tmp_path / 'many.parquet')}")
    with pytest.raises(OutputError, match="steps: 4 there, 5 now"):
        run_job(prepare(other), lambda now: looked.append(now.checked))
    assert looked == []


# --- bad rows ---

BAD: list[dict[str, Any]] = [
    {"id": "pair", "prompt": "two red circles and three blue squares"},
    {"id": "empty", "prompt": ""},
    {"id": "absent", "prompt": "two red circles", "targets": [{"noun": "cats", "count": 2}]},
    {"id": "pair", "prompt": "four red circles"},
    {"id": "no id!", "prompt": "five red circles"},
    {"id": "single", "prompt": "one green cross", "seed": 7},
]


@pytest.mark.usefixtures("quick_model")
def test_bad_rows_are_skipped_and_listed(joining_job: Job, tmp_path: Path) -> None:
    """The good ones are made; the others are named once each, at the start, at the end, in a file and by status.

    The same command again makes nothing, and skips the same rows; a corrected set makes what is new, and lists nothing.
    """
    path = tmp_path / "bad.parquet"
    make_prompts(BAD, str(path))
    given = [*QUICK, f"prompts={path}", "prompts_bad=skip"]
    with pytest.raises(PromptSetError, match=r"4 problems(.*\n)*4 bad rows can be left out.*prompts_bad=skip"):
        prepare(joining_job(*given[:-1]))
    outcome = run_job(prepare(joining_job(*given)))
    assert (outcome.total, outcome.generated, outcome.skipped, outcome.left) == (2, 2, 4, 0)
    store = Store(str(tmp_path / "out"))
    assert {row["id"] for row in store.rows().to_pylist()} == {"pair", "single"}
    listed = [json.loads(line) for line in (tmp_path / "out/REJECTED.jsonl").read_text().splitlines()]
    assert [(own["row"], own["column"]) for own in listed] == [
        (1, "prompt"),
        (2, "targets"),
        (3, "id"),
        (4, "id"),
    ]
    assert all(own["rule"] and own["value"] is not None for own in listed)
    status = status_of(store)
    assert (status.asked, status.left, status.skipped) == (2, 0, 4)
    told = CliRunner().invoke(app, ["status", str(tmp_path / "out")]).output
    assert "4 rows of the prompt set skipped" in told

    again = run_job(prepare(joining_job(*given)))
    assert (again.done, again.generated, again.skipped) == (2, 0, 4)
    path.unlink()
    make_prompts(
        [row | {"id": f"row-{place}"} if "!" in row["id"] else row for place, row in enumerate(BAD)][::4], str(path)
    )
    corrected = run_job(prepare(joining_job(*QUICK, f"prompts={path}")))
    assert (corrected.total, corrected.generated, corrected.skipped) == (2, 1, 0)
    assert not (tmp_path / "out/REJECTED.jsonl").exists()


@pytest.mark.usefixtures("quick_model")
def test_every_shard_lists_its_own_bad_rows(joining_job: Job, tmp_path: Path) -> None:
    """Array tasks write beside each other; status adds them up."""
    make_prompts(BAD, str(tmp_path / "bad.parquet"))
    for shard in range(2):
        job = joining_job(*QUICK, f"prompts={tmp_path}/bad.parquet", "prompts_bad=skip", f"shard={shard}/2")
        outcome = run_job(prepare(job))
        assert (outcome.generated, outcome.skipped, outcome.left) == (1, 2, 0)
    rows = [
        [json.loads(line)["row"] for line in (tmp_path / f"out/REJECTED-{shard}-of-2.jsonl").read_text().splitlines()]
        for shard in range(2)
    ]
    assert rows == [[2, 4], [1, 3]]
    status = status_of(Store(str(tmp_path / "out")))
    assert (status.done, status.left, status.skipped) == (2, 0, 4)


@pytest.mark.usefixtures("quick_model")
def test_a_set_of_bad_rows_alone_is_refused(joining_job: Job, tmp_path: Path) -> None:
    """There is nothing to make."""
    make_prompts(BAD[1:3], str(tmp_path / "bad.parquet"))
    with pytest.raises(PromptSetError, match="all 2 rows are bad"):
        run_job(prepare(joining_job(*QUICK, f"prompts={tmp_path}/bad.parquet", "prompts_bad=skip")))
    assert not (tmp_path / "out").exists()


# --- how targets are taken from prompts ---

READ: list[dict[str, Any]] = [
    {"id": "sure", "prompt": "two red circles and three blue squares"},
    {"id": "article", "prompt": "two red circles and a blue square"},
    {"id": "only", "prompt": "a green cross"},
    {"id": "given", "prompt": "a green cross", "targets": [{"noun": "cross", "count": 1}]},
    {"id": "doubtful", "prompt": "two red circles and 99 blue squares"},
]


def asked(job: JobConfig) -> dict[str, tuple[str, str, list[tuple[str, int]]]]:
    """Of every row its key, digest and targets."""
    return {
        task.row.id or "": (task.key, task.digest, [(own.noun, own.count) for own in task.row.targets])
        for task in tasks_of(prepare(job))
    }


def test_settings_of_reading_change_the_rows_that_they_concern(tiny_job: Job, tmp_path: Path) -> None:
    """A clip's key changes with its targets alone; a digest, which names it unread, says how they are read."""
    path = str(tmp_path / "read.parquet")
    make_prompts(READ, path)
    job = ["strategies=[numina]", f"prompts={path}"]
    first = asked(tiny_job(*job, "targets_from=numerals+articles"))
    assert first["article"][2] == [("circles", 2), ("square", 1)]
    numerals = asked(tiny_job(*job, "targets_from=numerals"))
    assert {id: own[2] for id, own in numerals.items()} == {
        "sure": [("circles", 2), ("squares", 3)],
        "article": [("circles", 2)],
        "only": [],
        "given": [("cross", 1)],
        "doubtful": [("circles", 2)],
    }
    plain = asked(tiny_job(*job, "targets_from=numerals+articles", "targets_doubtful=plain"))
    assert plain["doubtful"][2] == []
    for other, changed in ((numerals, {"article", "only"}), (plain, {"doubtful"})):
        assert {id for id in first if first[id][0] != other[id][0]} == changed
        assert {id for id in first if first[id][1] == other[id][1]} == {"given"}
    with pytest.raises(PromptSetError, match=r"row 4, .*99 blue squares.*doubtful"):
        prepare(tiny_job(*job, "targets_doubtful=refuse"))
    assert asked(tiny_job(*job, "max_count=100"))["doubtful"][2] == [("circles", 2), ("squares", 99)]


@pytest.mark.usefixtures("quick_model")
def test_another_reading_makes_what_it_changes(
    joining_job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is done is known by its key; the job's start says how many rows are doubtful or ask for nothing."""
    make_prompts(READ, str(tmp_path / "read.parquet"))
    job = ["strategies=[numina]", "parallel.ulysses=1", f"prompts={tmp_path}/read.parquet"]
    with caplog.at_level("INFO"):
        assert run_job(prepare(joining_job(*job, "targets_from=numerals+articles"))).generated == 5
        assert "1 rows to be made are doubtful, targets_doubtful=keep" in caplog.text
        assert "ask for no count" not in caplog.text
        assert run_job(prepare(joining_job(*job, "targets_from=numerals"))).generated == 2
        assert "2 rows to be made ask for no count" not in caplog.text
        assert "1 rows to be made ask for no count" in caplog.text


@pytest.mark.parametrize("setting", ["prompts_bad", "targets_from", "targets_doubtful"])
def test_another_value_is_refused(setting: str) -> None:
    """With what there is to choose from."""
    with pytest.raises(ConfigError, match=rf"{setting} is 'maybe'; choose from "):
        load_job("demo", [f"{setting}=maybe"])
    with pytest.raises(ConfigError, match=rf"^{setting} is 'maybe'; choose from "):
        JobConfig(**{setting: "maybe"})
