"""What an output promises: exactly one visible row per key, whole files, keys that depend on content alone."""

import errno
import hashlib
import io
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors import safe_open

from cluster.dataset.garbage import collect_garbage
from cluster.dataset.store import Committed, Store
from cluster.observability.status import status_of
from cluster.rows import ROW_SCHEMA
from cluster.storage.object_store import ObjectFiles
from cluster.storage.open import open_files
from cluster.storage.posix import PosixFiles
from numina.errors import DamageError, OutputError, StorageError
from numina.prompts.targets import Target

CATS = (Target(noun="cats", count=3),)


def key_of(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def a_row(key: str, store: Store, video: bytes = b"video", **columns: Any) -> dict[str, Any]:
    file_name, sha256 = store.put_video(key, video)
    return {
        "key": key,
        "file_name": file_name,
        "video_sha256": sha256,
        "prompt": "three cats",
        "targets": CATS,
        "strategy": "numina",
        "seed": 7,
        **columns,
    }


def leaves(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


class TestCommit:
    def test_a_second_commit_leaves_the_first(self, tmp_path: Path) -> None:
        """The first commit wins, the second says so and changes nothing."""
        store, key = Store(str(tmp_path)), key_of(1)
        assert store.commit(a_row(key, store, gpu_seconds=1.0))
        assert not store.commit(a_row(key, store, gpu_seconds=2.0))
        assert store.rows()["gpu_seconds"].to_pylist() == [1.0]
        assert store.committed() == {key}

    def test_a_row_comes_back_whole(self, tmp_path: Path) -> None:
        """Every column keeps its type and value; what wasn't given is null; the prompt set's own columns follow."""
        store = Store(str(tmp_path), extra_columns=pa.schema([("source", pa.string()), ("score", pa.float32())]))
        identified = [{"noun": "cats", "frames": [3, 2, 3], "count": 3}]
        row = a_row(
            key_of(1),
            store,
            identified=identified,
            shortfall=[0],
            timings={"denoise": 1.5, "decode": 0.25},
            guided=True,
            extra={"source": "web"},
        )
        store.commit(row)
        table = store.rows()
        assert table.schema.names == [*ROW_SCHEMA.names, "source", "score"]
        assert table.schema.field("score").type == pa.float32()
        (back,) = table.to_pylist()
        assert back["targets"] == [{"noun": "cats", "count": 3}]
        assert back["identified"] == identified
        assert back["timings"]["denoise"] == 1.5
        assert back["timings"]["encode"] is None
        assert back["committed_at"] is not None
        assert (back["source"], back["score"], back["guided"], back["width"]) == ("web", None, True, None)

    def test_undeclared_extra_columns_are_united(self, tmp_path: Path) -> None:
        """A null in one row and a value in another are one column with the value's type."""
        store = Store(str(tmp_path))
        store.commit(a_row(key_of(1), store, extra={"source": None}))
        store.commit(a_row(key_of(2), store, extra={"source": "web"}))
        assert sorted(store.rows()["source"].to_pylist(), key=str) == [None, "web"]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"prompt": None}, "prompt"),
            ({"promt": "x"}, "promt"),
            ({"extra": {"width": 3}}, "width"),
            ({"timings": {"sleep": 1.0}}, "sleep"),
        ],
    )
    def test_a_wrong_row_is_refused(self, tmp_path: Path, change: dict[str, Any], said: str) -> None:
        """A missing, misspelt or doubled column is an error, never a silent null."""
        store = Store(str(tmp_path))
        with pytest.raises(ValueError, match=said):
            store.commit(a_row(key_of(1), store) | change)
        assert store.committed() == set()

    def test_a_key_is_checked_before_it_names_a_file(self, tmp_path: Path) -> None:
        """Nothing but 32 hex digits can become a path."""
        with pytest.raises(ValueError, match="32 hex digits"):
            Store(str(tmp_path)).put_video("../../etc/passwd", b"")

    def test_videos_are_named_by_content(self, tmp_path: Path) -> None:
        """Two different videos of one key lie side by side; the same one twice is one file."""
        store, key = Store(str(tmp_path)), key_of(1)
        names = {store.put_video(key, data)[0] for data in (b"one", b"two", b"one")}
        assert leaves(tmp_path) == names
        assert len(names) == 2
        name, sha256 = store.put_video(key, b"one")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256
        assert name == f"videos/{key[:2]}/{key}-{sha256[:16]}.mp4"

    def test_layouts_repeat_byte_for_byte(self, tmp_path: Path) -> None:
        """Equal arrays make one file whatever the order they are given in; numpy reads it without pickles."""
        store, key = Store(str(tmp_path)), key_of(1)
        labels, nouns = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4), np.array(["cats"])
        name = store.put_layout(key, {"labels": labels, "nouns": nouns})
        assert store.put_layout(key, {"nouns": nouns, "labels": labels}) == name
        with np.load(io.BytesIO((tmp_path / name).read_bytes()), allow_pickle=False) as arrays:
            assert np.array_equal(arrays["labels"], labels)
            assert arrays["nouns"].tolist() == ["cats"]
        with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
            store.put_layout(key, {"bad": np.array([None])})

    def test_latents_repeat_byte_for_byte(self, tmp_path: Path) -> None:
        """Every bit comes back, with the model that made them; equal latents make one file."""
        store, key = Store(str(tmp_path)), key_of(1)
        latents = np.random.default_rng(0).standard_normal((4, 2, 3, 3), np.float32)
        assert store.put_latents(key, latents.copy(), "wan@12ab") == store.put_latents(key, latents, "wan@12ab")
        [name] = leaves(tmp_path)
        with safe_open(tmp_path / name, "np") as file:
            assert np.array_equal(file.get_tensor("latents"), latents)
            assert file.metadata() == {"model": "wan@12ab"}


def race(root: str, start: Any, keys: list[str], wins: Any) -> None:
    store = Store(root)
    rows = [a_row(key, store, video=os.urandom(2000)) for key in keys]
    start.wait()
    wins.put([row["key"] for row in rows if store.commit(row)])


def test_two_processes_that_race_have_one_winner_per_key(tmp_path: Path) -> None:
    """Of two processes committing the same keys at once each key has one winner, and the row is the winner's."""
    context = multiprocessing.get_context("forkserver")
    keys, start, wins = [key_of(number) for number in range(60)], context.Barrier(2), context.Queue()
    racers = [context.Process(target=race, args=(str(tmp_path), start, keys, wins)) for _ in range(2)]
    for racer in racers:
        racer.start()
    won = [*wins.get(timeout=60), *wins.get(timeout=60)]
    for racer in racers:
        racer.join(timeout=60)
    assert sorted(won) == sorted(keys)
    rows = Store(str(tmp_path)).rows().to_pylist()
    assert [row["key"] for row in rows] == sorted(keys)
    for row in rows:
        assert hashlib.sha256((tmp_path / row["file_name"]).read_bytes()).hexdigest() == row["video_sha256"]
    assert not [name for name in leaves(tmp_path) if ".numina-" in name]


def test_many_threads_have_one_winner(tmp_path: Path) -> None:
    """16 threads that create one name: one succeeds, and the content is that one's."""
    files = PosixFiles(str(tmp_path))
    for trial in range(10):
        with ThreadPoolExecutor(16) as threads:
            contents = [bytes([n]) * 5000 for n in range(16)]
            made = list(threads.map(files.create, [f"a/{trial}"] * 16, contents))
        assert sum(made) == 1
        assert files.read(f"a/{trial}") == contents[made.index(True)]


class TestOpenRun:
    CONFIG: ClassVar[dict[str, Any]] = {"generation": {"steps": 50, "size": [480, 832]}, "model_revision": "abc"}

    def test_the_same_configuration_resumes(self, tmp_path: Path) -> None:
        """A later run with equal keyed configuration is let in, whatever its degrees and its prompt count."""
        Store(str(tmp_path)).open_run(self.CONFIG, asked=10, info={"ulysses": 1})
        store = Store(str(tmp_path))
        store.open_run({"model_revision": "abc", "generation": {"size": (480, 832), "steps": 50.0}}, asked=20)
        assert status_of(store).asked == 20
        assert store.run_config() == self.CONFIG

    def test_every_difference_is_shown(self, tmp_path: Path) -> None:
        """Changed, new and missing keys are all named with both values, and nothing is changed."""
        Store(str(tmp_path)).open_run(self.CONFIG)
        before = (tmp_path / "run.json").read_bytes()
        with pytest.raises(OutputError) as error:
            Store(str(tmp_path)).open_run({"generation": {"steps": 25, "size": [480, 832], "shift": 5}})
        assert "generation.steps: 50 there, 25 now" in str(error.value)
        assert "generation.shift: absent there, 5 now" in str(error.value)
        assert 'model_revision: "abc" there, absent now' in str(error.value)
        assert "size" not in str(error.value)
        assert (tmp_path / "run.json").read_bytes() == before

    def test_a_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        """A folder that holds something else than an output is refused, and nothing is put into it."""
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(OutputError, match=r"thesis\.tex"):
            Store(str(tmp_path)).open_run(self.CONFIG)
        assert leaves(tmp_path) == {"thesis.tex"}

    def test_two_that_open_at_once_agree(self, tmp_path: Path) -> None:
        """Drivers that start together with one configuration all get in; of two configurations one wins."""
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: Store(str(tmp_path / "a")).open_run(self.CONFIG), range(8)))

        def opened(steps: int) -> bool:
            try:
                Store(str(tmp_path / "b")).open_run({"steps": steps})
            except OutputError:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(opened, range(8))) == 1

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            ("{", DamageError),
            ("[]", OutputError),
            ('{"format": "numina-output/99", "config": {}}', OutputError),
        ],
    )
    def test_an_unknown_run_file_is_refused(self, tmp_path: Path, content: str, error: type[Exception]) -> None:
        """A damaged run.json or one of a later format is an error with a remedy, not overwritten."""
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(error, match=r"run\.json"):
            Store(str(tmp_path)).open_run(self.CONFIG)
        assert (tmp_path / "run.json").read_text() == content


class TestFilesystems:
    def test_a_reader_needs_no_promise_and_adds_no_row(self) -> None:
        """Reports and exports read an output anywhere; none of them can commit by mistake."""
        root = f"memory://{key_of(7)}"
        writer = Store(root, single_writer=True)
        writer.open_run({})
        assert writer.commit(a_row(key_of(1), writer))
        reader = Store.reader(root)
        assert reader.rows()["key"].to_pylist() == [key_of(1)]
        with pytest.raises(AssertionError, match="reader"):
            reader.commit(a_row(key_of(2), writer))

    def test_one_without_the_promise_is_refused(self) -> None:
        """A filesystem that can't create-if-absent needs single_writer; then it works."""
        root = f"memory://{key_of(1)}"
        with pytest.raises(OutputError, match="single_writer"):
            Store(root)
        store = Store(root, single_writer=True)
        store.open_run({"steps": 50}, asked=2)
        assert store.commit(a_row(key_of(1), store))
        assert not store.commit(a_row(key_of(1), store))
        store.fail(key_of(2), {"error": "lost"})
        assert store.committed() == {key_of(1)} == set(store.rows()["key"].to_pylist())
        assert (status_of(store).done, status_of(store).failed) == (1, 1)

    def test_a_folder_without_hard_links_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where link isn't supported the error says so before any work; single_writer renames instead."""
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
        with pytest.raises(OutputError, match="hard links"):
            Store(str(tmp_path)).open_run({})
        store = Store(str(tmp_path), single_writer=True)
        store.open_run({})
        assert store.commit(a_row(key_of(1), store))
        assert not store.commit(a_row(key_of(1), store))

    def test_a_promise_broken_silently_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Storage that ignores the condition (some S3 servers do) is found out by trying, before any work."""

        def overwrite(self: PosixFiles, name: str, data: bytes) -> bool:
            self.replace(name, data)
            return True

        monkeypatch.setattr(PosixFiles, "create", overwrite)
        with pytest.raises(OutputError, match="two writers"):
            Store(str(tmp_path)).open_run({})

    def test_a_lost_answer_is_still_our_success(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """NFS may repeat a link and refuse the repeat: EEXIST on our own inode is success."""
        link = os.link

        def twice(source: str, target: str) -> None:
            link(source, target)
            link(source, target)

        monkeypatch.setattr(os, "link", twice)
        assert PosixFiles(str(tmp_path)).create("a", b"1")

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ESTALE])
    def test_lost_storage_stops_the_job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        """Full, read-only or broken storage is a StorageError, never a prompt's failure, and leaves no litter."""
        store = Store(str(tmp_path))
        row = a_row(key_of(1), store)
        before = leaves(tmp_path)
        monkeypatch.setattr(os, "fsync", failing(code))
        with pytest.raises(StorageError, match="resume"):
            store.commit(row)
        assert leaves(tmp_path) == before

    def test_a_root_that_is_a_file_is_lost_storage(self, tmp_path: Path) -> None:
        """No stack trace of a missing folder: one error of ours."""
        (tmp_path / "out").write_text("x")
        with pytest.raises(StorageError, match="out"):
            Store(str(tmp_path / "out")).put_video(key_of(1), b"")


def failing(code: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


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


def test_failures_are_kept_in_order(tmp_path: Path) -> None:
    """Every attempt has its own record, also when two drivers fail the same key at once, and more than nine."""
    store = Store(str(tmp_path))
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda n: Store(str(tmp_path)).fail(key_of(1), {"attempt": n}), range(12)))
    store.fail(key_of(1), {"attempt": 12, "error": "Ünfall"})
    records = store.failures()[key_of(1)]
    assert sorted(record["attempt"] for record in records) == list(range(13))
    assert records[-1]["error"] == "Ünfall"


def test_status_counts_what_is_done_failed_and_left(tmp_path: Path) -> None:
    """A key that failed and then succeeded is done; one that isn't given up yet is neither."""
    store = Store(str(tmp_path))
    assert (status_of(store).done, status_of(store).asked, status_of(store).left) == (0, None, None)
    store.open_run({}, asked=6)
    for number in range(3):
        store.commit(a_row(key_of(number), store))
        os.utime(tmp_path / f"commits/{key_of(number)[:2]}/{key_of(number)}.parquet", (0, 1000.0 + 60 * number))
    store.fail(key_of(0), {})
    store.fail(key_of(3), {})
    store.fail(key_of(4), {"final": False})
    status = status_of(store)
    assert (status.done, status.failed, status.asked, status.left) == (3, 1, 6, 2)
    assert status.rate_per_hour == pytest.approx(60.0)
    assert status.eta_seconds == pytest.approx(120.0)
    assert status.first_commit is not None
    assert status.first_commit.timestamp() == 1000.0


def test_evaluations_stay_outside_the_commits(tmp_path: Path) -> None:
    """Each judge has one verdict per key; the rows don't change."""
    store = Store(str(tmp_path))
    store.commit(a_row(key_of(1), store))
    before = store.rows()
    verdict = {"detected": [{"noun": "cats", "frames": [3, 3]}], "count_accuracy": 1.0, "mae": 0.0}
    assert store.put_evaluation("exact", key_of(1), verdict)
    assert not store.put_evaluation("exact", key_of(1), verdict | {"count_accuracy": 0.0})
    assert store.judges() == ["exact"]
    [kept] = store.evaluations("exact").to_pylist()
    assert {name: value for name, value in kept.items() if value is not None} == {
        "key": key_of(1),
        "judge": "exact",
        **verdict,
    }
    assert len(store.evaluations("other")) == 0
    assert store.rows().equals(before)
    with pytest.raises(ValueError, match="judge"):
        store.put_evaluation("../x", key_of(1), verdict)


def test_a_verdict_that_named_a_problem_gives_way_wherever_it_is(tmp_path: Path) -> None:
    """A verdict with a problem is in no segment; the one in its place is gathered, and seen by all readers. One without
    a problem stays, whatever is put after it, and however often it lies there."""
    store = Store(str(tmp_path))
    torn, good, other = (
        {"problem": "missing", "count_accuracy": 0.0},
        {"count_accuracy": 1.0},
        {"count_accuracy": 0.5},
    )
    assert store.put_evaluation("exact", key_of(1), torn)
    assert not store.put_evaluation("exact", key_of(1), torn)
    assert store.put_evaluation("exact", key_of(2), other)
    (first,) = store.compact_evaluations("exact", at_least=1)
    assert pq.read_table(tmp_path / first)["key"].to_pylist() == [key_of(2)]
    assert store.put_evaluation("exact", key_of(1), good)
    assert not store.put_evaluation("exact", key_of(1), torn)
    assert len(store.compact_evaluations("exact", at_least=1)) == 1
    (tmp_path / f"evaluations/exact/{key_of(1)}.parquet").unlink()  # as a clean-up does
    store.put_evaluation("exact", key_of(1), torn)  # by somebody who had looked before
    for reader in (store, Store(str(tmp_path))):
        assert reader.evaluations("exact", ["key", "count_accuracy"]).to_pylist() == sorted(
            ({"key": key_of(1)} | good, {"key": key_of(2)} | other), key=lambda verdict: str(verdict["key"])
        )
        streamed = pa.concat_tables(reader.verdict_tables("exact", ["key", "problem"])).to_pylist()
        assert sorted(verdict["key"] for verdict in streamed) == sorted(map(key_of, (1, 2)))
        assert {verdict["problem"] for verdict in streamed} == {None}
        assert reader.evaluation("exact", key_of(1))["count_accuracy"] == 1.0  # type: ignore[index]
    assert store.evaluation("exact", key_of(3)) is None


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


class Answering(MemoryFileSystem):  # type: ignore[misc,unused-ignore]
    """A bucket whose server answers each put with the next of these HTTP statuses."""

    protocol = "s3"
    statuses: ClassVar[list[int]] = []

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        status = self.statuses.pop(0)
        if status == 200:
            super().pipe_file(path, value)
            return
        cause = Exception()
        cause.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
        raise OSError(errno.EINVAL, "refused") from cause


@pytest.mark.parametrize("kind", ["posix", "memory"])
def test_keyed_files_are_listed_and_removed_together(tmp_path: Path, kind: str) -> None:
    """Files whose paths begin with a hex digit, in folders of two digits or in none; no others, and no dot-names."""
    root = str(tmp_path / "out") if kind == "posix" else f"memory://{tmp_path.name}"
    files = open_files(root, single_writer=True)
    keys = [f"{number:032x}"[::-1] for number in range(40)]
    for number, key in enumerate(keys):
        files.create(f"rows/{key[:2]}/{key}.parquet" if number % 2 else f"rows/{key}.parquet", b"x")
    for other in ("rows/segments/0123.parquet", "rows/summary.json", "rows/00/.numina-1", "rows/.hidden"):
        files.create(other, b"x")
    found = [name for part in files.keyed("rows") for name in part]
    assert sorted(found) == sorted(f"{key}.parquet" for key in keys)
    assert list(files.keyed("nothing")) in ([], [{}])
    files.remove_all([*(f"rows/{key[:2]}/{key}.parquet" for key in keys), "rows/gone"])
    assert len([name for part in files.keyed("rows") for name in part]) == 20


def test_what_s3_refuses_to_remove_is_an_error() -> None:
    """Its answer to a removal of many is 200 OK, whatever became of each."""
    answers: list[dict[str, Any]] = [{}, {"Errors": [{"Key": "out/b", "Code": "AccessDenied"}]}]
    bucket = Answering()
    bucket.call_s3 = lambda *_, **options: answers.pop(0)  # type: ignore[attr-defined]
    files = ObjectFiles(bucket, "bucket/out", exclusive=True)
    files.remove_all(["a"])
    with pytest.raises(StorageError, match=r"out/b: AccessDenied \(1 objects refused\)"):
        files.remove_all(["a", "b"])


@pytest.mark.parametrize(
    ("statuses", "made"), [([200], True), ([412], False), ([409, 200], True), ([409, 409, 412], False)]
)
def test_s3_answers_are_understood(statuses: list[int], made: bool) -> None:
    """412 is "it exists", also from servers that don't name the condition; 409 is "try again"."""
    Answering.statuses = list(statuses)
    assert ObjectFiles(Answering(), "bucket/out", exclusive=True).create("a", b"1") is made
    assert Answering.statuses == []


@pytest.mark.parametrize("statuses", [[503], [403], [409, 409, 409]])
def test_s3_refusals_are_lost_storage(statuses: list[int]) -> None:
    """No other answer is taken for a commit of somebody else."""
    Answering.statuses = list(statuses)
    with pytest.raises(StorageError):
        ObjectFiles(Answering(), "bucket/out", exclusive=True).create("a", b"1")
