"""What a worklist promises: exactly what is left of a job, its finished rows unread, in memory that doesn't grow."""

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cluster.prompts.files
import cluster.prompts.row
from cluster.dataset.store import Committed
from cluster.job.config import load_job
from cluster.job.names import TaskNames
from cluster.job.prepared import PreparedJob
from cluster.job.tasks import ClipTask
from cluster.job.worklist import open_worklist
from cluster.prompts.promptset import open_prompts
from cluster.prompts.write import make_prompts, write_targets
from cluster.rows import TARGETS
from numina.errors import PromptSetError
from pipelines.models.registry import inspect_model
from tests.cluster.tasks import tasks_of

MODEL = inspect_model("testbed")
NOTHING = Committed(keys=frozenset(), tasks=frozenset())
CIRCLES = "two red circles"


def a_plan(path: str, *overrides: str) -> PreparedJob:
    job = load_job("demo", [f"prompts={path}", "strategies=[numina]", *overrides])
    prompts = open_prompts(path, limit=job.limit)
    return PreparedJob(job=job, model=MODEL, device="cpu", dtype="float32", prompts=prompts)


def numbered(folder: Path | str, rows: int, row_group: int = 3, **columns: Any) -> str:
    """A set of different prompts."""
    path = Path(folder) / "set.parquet"
    prompts = [f"{CIRCLES} and number {number}" for number in range(rows)]
    pq.write_table(pa.table({"prompt": prompts, **columns}), path, row_group_size=row_group)
    return str(path)


def of(tasks: Iterable[ClipTask], *, digests: bool = True) -> Committed:
    """What an output holds where these tasks are committed, or given up."""
    listed = list(tasks)
    names = frozenset(bytes.fromhex(task.digest) for task in listed) if digests else frozenset[bytes]()
    return Committed(keys=frozenset(bytes.fromhex(task.key) for task in listed), tasks=names)


def counts(
    prepared: PreparedJob, committed: Committed = NOTHING, given_up: Committed = NOTHING
) -> tuple[int, int, int, int]:
    worklist = open_worklist(prepared, committed, given_up)
    assert len(list(worklist.tasks())) == worklist.total - worklist.done - worklist.failed
    return worklist.asked, worklist.total, worklist.done, worklist.failed


def forbid_parsing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def parsed(prompt: str, **settings: Any) -> None:
        raise AssertionError(f"{prompt!r} was parsed")

    monkeypatch.setattr(cluster.prompts.row, "read_prompt", parsed)
    return monkeypatch.undo


def test_a_fresh_job_has_all_of_its_tasks_left(tmp_path: Path) -> None:
    """The same tasks as the plan's own, in the order of the set, and no difference on a second walk."""
    prepared = a_plan(numbered(tmp_path, 7), "samples=2", "strategies=[baseline,numina]")
    worklist = open_worklist(prepared, NOTHING, NOTHING)
    assert (worklist.asked, worklist.total, worklist.done, worklist.failed) == (28, 28, 0, 0)
    assert list(worklist.tasks()) == list(worklist.tasks()) == list(tasks_of(prepared))


def test_what_is_committed_or_given_up_is_not_left(tmp_path: Path) -> None:
    """Task by task, not row by row; a video that failed once and was made since is done."""
    prepared = a_plan(numbered(tmp_path, 5), "samples=2")
    tasks = list(tasks_of(prepared))
    worklist = open_worklist(prepared, of(tasks[:3]), of(tasks[2:6]))
    assert (worklist.total, worklist.done, worklist.failed) == (10, 3, 3)
    assert list(worklist.tasks()) == tasks[6:]


def test_finished_rows_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing costs a hundred times what a digest does: a resume doesn't pay it for what is done or given up."""
    prepared = a_plan(numbered(tmp_path, 6))
    tasks = list(tasks_of(prepared))
    undo = forbid_parsing(monkeypatch)
    assert counts(prepared, of(tasks[:5]), of(tasks[5:])) == (6, 6, 5, 1)
    with pytest.raises(AssertionError, match="number 5"):
        open_worklist(prepared, of(tasks[:5]), NOTHING)
    undo()


def test_rows_of_an_older_version_are_recognised_by_their_keys(tmp_path: Path) -> None:
    """An output whose rows have no digests, and a set whose targets were filled in since: nothing is made twice."""
    path = numbered(tmp_path, 4)
    tasks = list(tasks_of(a_plan(path)))
    assert counts(a_plan(path), of(tasks[:3], digests=False), of(tasks[3:], digests=False)) == (4, 4, 3, 1)
    write_targets(path, path)
    filled = list(tasks_of(a_plan(path)))
    assert [task.key for task in filled] == [task.key for task in tasks]
    assert {task.digest for task in filled}.isdisjoint(task.digest for task in tasks)
    assert counts(a_plan(path), of(tasks)) == (4, 4, 4, 0)


def test_a_set_that_grew_is_resumed(tmp_path: Path) -> None:
    """Rows in another order, between others, with other columns, in other files: known ones are known."""
    first = list(tasks_of(a_plan(numbered(tmp_path, 4))))
    prompts = [f"{CIRCLES} and number {number}" for number in (9, 3, 2, 8, 1, 0)]
    table = pa.table({"source": ["web"] * 6, "prompt": pa.array(prompts).dictionary_encode()})
    pq.write_table(table, tmp_path / "grown.parquet")
    worklist = open_worklist(a_plan(str(tmp_path / "grown.parquet")), of(first), NOTHING)
    assert [task.row.index for task in worklist.tasks()] == [0, 3]
    assert [task.row.extra for task in worklist.tasks()] == [{"source": "web"}] * 2


def test_all_that_is_wrong_with_what_is_left_is_told_at_once(tmp_path: Path) -> None:
    """Every row that is still to be made is checked before any is: rows far beyond the first, repeats among them.

    A row that is done is no problem any more, whatever is said of it now.
    """
    path, prompts = str(tmp_path / "set.parquet"), [f"{CIRCLES} and number {number}" for number in range(8)]
    asked = pa.array([[{"noun": "circles", "count": 2}]] * 8, TARGETS)
    pq.write_table(pa.table({"prompt": prompts, "targets": asked}), path, row_group_size=3)
    done = of(list(tasks_of(a_plan(path)))[:2])
    prompts[4] = ""
    pq.write_table(pa.table({"prompt": prompts, "targets": asked}), path, row_group_size=3)
    with pytest.raises(PromptSetError) as error:
        open_worklist(a_plan(path, "max_count=1"), done, NOTHING)
    lines = str(error.value).splitlines()
    assert "has 6 problems" in lines[0]
    assert [line.split(", ")[1] for line in lines[1:7]] == [f"row {number}" for number in (2, 3, 4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ({"id": "a", "prompt": "two birds"}, r"row 2, column 'id': 'a': is also in .*, row 0"),
        ({"id": "c", "prompt": CIRCLES, "seed": 3}, "row 2, .* the same prompt, targets and seed as in .*, row 1"),
    ],
)
def test_repeats_are_found_among_finished_rows(tmp_path: Path, again: dict[str, Any], said: str) -> None:
    """The same video twice would be counted twice: it is refused at any time. So is an id that came a second time."""
    rows: list[dict[str, Any]] = [{"id": "a", "prompt": CIRCLES}, {"id": "b", "prompt": CIRCLES, "seed": 3}]
    path, grown = str(tmp_path / "set.parquet"), str(tmp_path / "grown.parquet")
    make_prompts(rows, path)
    make_prompts([*rows, again], grown)
    for done in (of(tasks_of(a_plan(path))), NOTHING):
        with pytest.raises(PromptSetError, match=said):
            open_worklist(a_plan(grown), done, NOTHING)


def test_given_targets_equal_parsed_ones(tmp_path: Path) -> None:
    """Rows whose targets differ only in who wrote them down repeat each other; beside a finished one, which isn't
    parsed, the other is found to be done."""
    rows: list[dict[str, Any]] = [
        {"prompt": CIRCLES},
        {"prompt": CIRCLES, "targets": [{"noun": "circles", "count": 2}]},
    ]
    path, grown = str(tmp_path / "set.parquet"), str(tmp_path / "grown.parquet")
    make_prompts(rows[:1], path)
    make_prompts(rows, grown)
    with pytest.raises(PromptSetError, match=r"row 1, .* the same prompt, targets and seed"):
        open_worklist(a_plan(grown), NOTHING, NOTHING)
    assert counts(a_plan(grown), of(tasks_of(a_plan(path)))) == (2, 2, 2, 0)


@pytest.mark.parametrize("first", [3, 2**63 - 2])
def test_samples_that_share_a_seed_are_one_video(tmp_path: Path, first: int) -> None:
    """Rows with neighbouring seeds: the video is the first one's, asked for and counted once, whoever made it."""
    path = str(tmp_path / "set.parquet")
    seeds = [(first + number) % 2**63 for number in range(3)]
    make_prompts([{"id": str(place), "prompt": CIRCLES, "seed": seed} for place, seed in enumerate(seeds)], path)
    prepared = a_plan(path, "samples=2", "strategies=[baseline,numina]")
    worklist = open_worklist(prepared, NOTHING, NOTHING)
    tasks = list(worklist.tasks())
    assert tasks == list(tasks_of(prepared))
    assert [(task.row.id, task.sample) for task in tasks[::2]] == [("0", 0), ("0", 1), ("1", 1), ("2", 1)]
    assert (worklist.asked, worklist.total) == (8, 8)
    assert counts(prepared, of(tasks[:3])) == (8, 8, 3, 0)
    Path(path).unlink()
    make_prompts([{"id": "1", "prompt": CIRCLES, "seed": seeds[1]}], path)
    of_the_second = of(tasks_of(a_plan(path, "samples=2", "strategies=[baseline,numina]")))
    Path(path).unlink()
    make_prompts([{"id": str(place), "prompt": CIRCLES, "seed": seed} for place, seed in enumerate(seeds)], path)
    assert counts(prepared, of_the_second) == (8, 8, 4, 0)


def test_strategies_of_one_configuration_are_asked_for_once(tmp_path: Path) -> None:
    """A variant with numina's own settings is numina."""
    path = numbered(tmp_path, 2)
    prepared = a_plan(path, "method.guide.add=6", "variants.grid.guide.add=[5,6]")
    assert counts(prepared) == (4, 4, 0, 0)
    assert [task.strategy for task in open_worklist(prepared, NOTHING, NOTHING).tasks()] == ["numina", "grid:add=5"] * 2


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 11),
    row_group=st.integers(1, 12),
    block=st.integers(1, 5),
    limit=st.none() | st.integers(1, 12),
    samples=st.integers(1, 2),
    shards=st.integers(1, 5),
    data=st.data(),
)
def test_shards_and_orders_have_each_task_once(
    rows: int, row_group: int, block: int, limit: int | None, samples: int, shards: int, data: st.DataObject
) -> None:
    """Whatever the files' row groups, shards together are the job, shuffled or not; so are their counts."""
    with TemporaryDirectory() as folder, patch.object(cluster.prompts.files, "BLOCK_ROWS", block):
        seeds = data.draw(st.lists(st.none() | st.integers(0, 3), min_size=rows, max_size=rows))
        path = numbered(folder, rows, row_group, seed=pa.array(seeds, pa.int64()))
        settings = [f"samples={samples}", *([f"limit={limit}"] if limit else [])]
        prepared = a_plan(path, *settings)
        expected = list(tasks_of(prepared))
        done = data.draw(st.sets(st.sampled_from(range(len(expected)))))
        committed = of(expected[place] for place in done)
        left = [task for place, task in enumerate(expected) if place not in done]
        seed = data.draw(st.none() | st.integers(0, 9))
        found: list[ClipTask] = []
        for index in range(shards):
            worklist = open_worklist(a_plan(path, *settings, f"shard={index}/{shards}"), committed, NOTHING)
            tasks = list(worklist.tasks(shuffle=seed))
            assert worklist.asked == len(expected)
            assert len(tasks) == worklist.total - worklist.done
            assert {task.row.index % shards for task in tasks} <= {index}
            if seed is None:
                assert tasks == [task for task in left if task.row.index % shards == index]
            found += tasks
        assert sorted(task.key for task in found) == sorted(task.key for task in left)


def test_drivers_that_shuffle_differently_meet_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed gives one order at all times, another seed another one: of a tenth of the walk, little is the same."""
    monkeypatch.setattr(cluster.prompts.files, "BLOCK_ROWS", 20)
    worklist = open_worklist(a_plan(numbered(tmp_path, 400, row_group=200)), NOTHING, NOTHING)
    one, again, other = ([task.key for task in worklist.tasks(shuffle=seed)] for seed in (1, 1, 2))
    assert one == again
    assert sorted(one) == sorted(other)
    assert len(set(one[:40]) & set(other[:40])) <= 20


def test_a_walk_holds_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are read when they are come to, and those without anything left not at all."""
    monkeypatch.setattr(cluster.prompts.files, "BLOCK_ROWS", 2)
    prepared = a_plan(numbered(tmp_path, 8, row_group=4))
    tasks = list(tasks_of(prepared))
    worklist = open_worklist(prepared, of(tasks[2:6]), NOTHING)
    read: list[int] = []
    whole = cluster.prompts.files._Reader.read

    def spied(reader: Any, block: cluster.prompts.files.Block) -> pa.RecordBatch:
        read.append(block.index)
        return whole(reader, block)

    monkeypatch.setattr(cluster.prompts.files._Reader, "read", spied)
    walk = worklist.tasks()
    assert next(walk) == tasks[0]
    assert read == [0]
    assert list(walk) == [tasks[1], *tasks[6:]]
    assert read == [0, 6]


def test_progress_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were passed, up to all: checking a million new rows takes minutes."""
    monkeypatch.setattr(cluster.prompts.files, "BLOCK_ROWS", 2)
    told: list[int] = []
    open_worklist(a_plan(numbered(tmp_path, 7, row_group=4)), NOTHING, NOTHING, report=told.append)
    assert told == [2, 4, 6, 7]


def test_the_look_at_a_set_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two blocks of rows; then nothing is known of what is left."""
    monkeypatch.setattr(cluster.prompts.files, "BLOCK_ROWS", 2)
    told: list[int] = []
    prepared = a_plan(numbered(tmp_path, 7, row_group=4))
    assert open_worklist(prepared, NOTHING, NOTHING, report=told.append, stopped=lambda: len(told) == 2) is None
    assert told == [2, 4]


def test_a_set_that_was_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    """What is left is known by row numbers: they mean nothing in another file."""
    path = numbered(tmp_path, 6)
    worklist = open_worklist(a_plan(path), NOTHING, NOTHING)
    numbered(tmp_path, 5)
    with pytest.raises(PromptSetError, match=r"set\.parquet was replaced after it was checked"):
        next(worklist.tasks())


class TestVerified:
    """What is asked for until a judge accepts it."""

    OVERRIDES = ("strategies=[baseline,numina+verified]", "verify.attempts=3")

    def test_a_sample_is_done_when_it_is_settled(self, tmp_path: Path) -> None:
        """A committed attempt isn't enough: it is handed out to be judged. Settled by its chain, it is done."""
        prepared = a_plan(numbered(tmp_path, 2), *self.OVERRIDES)
        tasks = list(tasks_of(prepared))
        first = next(task for task in tasks if task.verified)
        worklist = open_worklist(prepared, of([first]), NOTHING)
        assert (worklist.total, worklist.done) == (4, 0)
        assert {task.key: task.there for task in worklist.tasks()} == {task.key: task is first for task in tasks}
        assert open_worklist(prepared, of([first], digests=False), NOTHING).done == 0
        settled = open_worklist(prepared, of([first]), NOTHING, settled=frozenset([bytes.fromhex(first.chain)]))
        assert settled.done == 1
        assert first.key not in [task.key for task in settled.tasks()]

    def test_what_failed_for_good_is_known_by_the_chain(self, tmp_path: Path) -> None:
        """Whichever attempt it was: the sample isn't begun again."""
        prepared = a_plan(numbered(tmp_path, 1), *self.OVERRIDES)
        [first] = [task for task in tasks_of(prepared) if task.verified]
        later = TaskNames(prepared).attempts(first)[2]
        assert later.chain_digest == first.digest
        failed = Committed(keys=frozenset(), tasks=frozenset([bytes.fromhex(later.chain_digest)]))
        for committed in (NOTHING, of([first])):
            assert open_worklist(prepared, committed, failed).failed == 1

    def test_a_strategy_shares_its_clips(self, tmp_path: Path) -> None:
        """numina's clip is the first attempt of numina+verified, and of a seed search among seeds of numina."""
        path = numbered(tmp_path, 1)
        names = "strategies=[numina,numina+verified,numina+seed_search]"
        tasks = list(tasks_of(a_plan(path, names, "search.seeds=3")))
        assert [(task.attempt, task.verified) for task in tasks] == [(0, True), (1, False), (2, False)]
        [alone] = tasks_of(a_plan(path, "strategies=[numina]"))
        assert alone.key == tasks[0].key
        assert TaskNames(a_plan(path, names)).attempts(tasks[0])[2].key == tasks[2].key
