"""Commits and verdicts gathered: readers see each once, whoever compacts beside them."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.dataset.garbage import collect_garbage
from cluster.dataset.store import Committed, Store
from cluster.observability.status import status_of
from tests.cluster.dataset.outputs import a_row, key_of, leaves


class TestSegments:
    def test_compaction_changes_nothing_for_readers(self, tmp_path: Path) -> None:
        """Rows, keys and status are the same before, between and after compactions, also without the commits."""
        store = Store(str(tmp_path))
        store.open_run({}, asked=9)
        for number in range(5):
            store.commit(a_row(key_of(number), store, extra={"source": number}))
        before = store.rows()
        assert len(store.compact()) == 1
        assert store.rows().equals(before)
        assert store.compact() == []
        store.commit(a_row(key_of(9), store, extra={"source": None}))
        assert store.compact() == []
        assert len(store.compact(at_least=1)) == 1
        assert len(store.rows()) == 6
        for name in leaves(tmp_path):
            if name.startswith("commits/"):
                (tmp_path / name).unlink()
        assert len(store.rows()) == len(store.committed()) == status_of(store).done == 6

    def test_overlapping_segments_show_a_row_once(self, tmp_path: Path) -> None:
        """Two processes may compact the same commits at once."""
        store = Store(str(tmp_path))
        for number in range(4):
            store.commit(a_row(key_of(number), store))
        [first] = store.compact()
        (tmp_path / first).rename(tmp_path / "aside.parquet")
        store.commit(a_row(key_of(4), store))
        store.compact()
        (tmp_path / "aside.parquet").rename(tmp_path / first)
        assert store.rows()["key"].to_pylist() == sorted(map(key_of, range(5)))

    def test_given_keys_alone_are_gathered(self, tmp_path: Path) -> None:
        """With keys only their commits are read, in segments of at most `most`; one that isn't there is passed over."""
        store = Store(str(tmp_path))
        for number in range(7):
            store.commit(a_row(key_of(number), store))
        names = store.compact([*map(key_of, range(5)), key_of(99)], most=2)
        gathered = [pq.read_table(tmp_path / name)["key"].to_pylist() for name in names]
        assert sorted(key for keys in gathered for key in keys) == sorted(map(key_of, range(5)))
        assert max(map(len, gathered)) == 2
        assert store.row_files.loose() == sorted([key_of(5), key_of(6)])
        assert store.compact([key_of(6)]) == []


def write_rows(root: str, start: Any, keys: list[str]) -> None:
    store = Store(root)
    start.wait()
    for number, key in enumerate(keys):
        store.commit(a_row(key, store))
        if number % 20 == 19:
            store.compact(keys[number - 19 : number + 1])


def compact_again(root: str, start: Any, done: Any) -> None:
    store = Store(root)
    start.wait()
    while not done.is_set():
        store.compact(most=30)
        time.sleep(0.05)


def test_compaction_beside_writers_and_readers(tmp_path: Path) -> None:
    """Two writers that also compact and a third compactor disturb no reader: it sees each row once, and no row that it
    saw is ever missing again."""
    context = multiprocessing.get_context("forkserver")
    keys, start, done = [key_of(number) for number in range(120)], context.Barrier(4), context.Event()
    root = str(tmp_path)
    writers = [context.Process(target=write_rows, args=(root, start, keys[n * 40 : n * 40 + 80])) for n in range(2)]
    compactor = context.Process(target=compact_again, args=(root, start, done))
    for process in (*writers, compactor):
        process.start()
    start.wait()
    store, seen = Store(root), set[str]()
    while any(writer.is_alive() for writer in writers):
        now = store.rows()["key"].to_pylist()
        assert len(now) == len(set(now))
        assert seen <= set(now)
        assert seen <= {key.hex() for key in store.committed_index().keys}
        seen |= set(now)
    done.set()
    for process in (*writers, compactor):
        process.join(timeout=60)
        assert process.exitcode == 0
    assert store.rows()["key"].to_pylist() == sorted(keys)
    for name in leaves(tmp_path / "commits"):
        (tmp_path / "commits" / name).unlink()
    store.compact(at_least=1)
    assert len(store.committed()) > 80  # what was left to the compactor may not have been its turn yet


class TestIndex:
    def test_the_index_knows_keys_and_tasks(self, tmp_path: Path) -> None:
        """Keys and task digests come from segments and loose commits alike; rows without a digest have none."""
        store, tasks = Store(str(tmp_path)), [key_of(100 + number) for number in range(4)]
        assert store.committed_index() == Committed(keys=frozenset(), tasks=frozenset())
        for number, task in enumerate(tasks[:3]):
            store.commit(a_row(key_of(number), store, task_digest=task))
        store.commit(a_row(key_of(3), store))
        store.compact()
        store.commit(a_row(key_of(4), store, task_digest=tasks[3]))
        store.commit(a_row(key_of(5), store))
        index = store.committed_index()
        assert index.keys == {bytes.fromhex(key_of(number)) for number in range(6)}
        assert index.tasks == set(map(bytes.fromhex, tasks))
        assert store.committed() == set(map(key_of, range(6)))

    def test_a_row_of_an_older_version_has_no_task(self, tmp_path: Path) -> None:
        """Commits and segments without the column count by their keys."""
        store = Store(str(tmp_path))
        store.open_run({})
        for number in range(3):
            store.commit(a_row(key_of(number), store))
        for name in leaves(tmp_path / "commits"):
            path = tmp_path / "commits" / name
            pq.write_table(pq.read_table(path).drop_columns(["task_digest", "spans", "latents_file"]), path)
        store.compact([key_of(0), key_of(1)])
        index = store.committed_index()
        assert (len(index.keys), index.tasks) == (3, frozenset())
        assert store.rows()["spans"].null_count == store.rows()["latents_file"].null_count == 3
        assert collect_garbage(store).files["videos"] == 0

    def test_only_commits_that_no_segment_holds_are_opened(self, tmp_path: Path) -> None:
        """An index, a status and keys of compacted rows read no commit file again."""
        store = Store(str(tmp_path))
        for number in range(3):
            store.commit(a_row(key_of(number), store))
        store.compact()
        for name in leaves(tmp_path / "commits"):
            (tmp_path / "commits" / name).write_bytes(b"not read")
        assert len(store.committed_index().keys) == status_of(store).done == len(store.rows()) == 3

    def test_one_look_says_whether_a_key_is_committed(self, tmp_path: Path) -> None:
        """True from the commit on, for every holder."""
        store, key = Store(str(tmp_path)), key_of(1)
        row = a_row(key, store)
        assert not Store(str(tmp_path)).is_committed(key)
        store.commit(row)
        assert Store(str(tmp_path)).is_committed(key)
        with pytest.raises(ValueError, match="32 hex digits"):
            store.is_committed("../run")

    def test_other_names_among_the_commits_are_no_rows(self, tmp_path: Path) -> None:
        """What a filesystem or a person left there is passed over."""
        store = Store(str(tmp_path))
        store.commit(a_row(key_of(1), store))
        folder = tmp_path / "commits" / key_of(1)[:2]
        for name in (".nfs0001", f"{key_of(2)}.parquet~", "notes.txt", ".numina-abc"):
            (folder / name).write_bytes(b"")
        assert store.committed() == {key_of(1)}

    def test_given_up_is_what_failed_for_good(self, tmp_path: Path) -> None:
        """The last record of a key decides; a key with a row isn't given up; the records' task digests come along."""
        store = Store(str(tmp_path))
        store.commit(a_row(key_of(0), store))
        store.fail(key_of(0), {"task_digest": key_of(100)})
        store.fail(key_of(1), {"task_digest": key_of(101), "final": False})
        store.fail(key_of(1), {"task_digest": key_of(101), "final": True})
        store.fail(key_of(2), {"final": False})
        store.fail(key_of(3), {})
        given_up = store.given_up(store.committed_index())
        assert given_up.keys == {bytes.fromhex(key_of(1)), bytes.fromhex(key_of(3))}
        assert given_up.tasks == {bytes.fromhex(key_of(101))}


def test_a_stream_goes_on_when_a_clean_up_gathers_what_it_reads(tmp_path: Path) -> None:
    """Each row once, also where single files and segments vanish between two of its steps."""
    store = Store(str(tmp_path))
    store.open_run({})
    for number in range(30):
        store.put_evaluation("exact", key_of(number), {"count_accuracy": number / 32})
    for start in (0, 5, 10):
        store.compact_evaluations("exact", map(key_of, range(start, start + 10)))
    streamed = store.verdict_tables("exact", ["key", "count_accuracy"])
    rows = next(streamed).to_pylist()
    collect_garbage(Store(str(tmp_path)))
    rows += [row for table in streamed for row in table.to_pylist()]
    expected = [{"key": key_of(number), "count_accuracy": number / 32} for number in range(30)]
    assert sorted(rows, key=lambda row: str(row["key"])) == sorted(expected, key=lambda row: str(row["key"]))
