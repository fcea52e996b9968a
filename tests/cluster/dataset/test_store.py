"""What an output promises: exactly one visible row per key, whole files, keys that depend on content alone."""

import hashlib
import io
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from cluster.dataset.store import Store
from cluster.observability.status import status_of
from cluster.rows import ROW_SCHEMA
from cluster.storage.posix import PosixFiles
from numina.errors import DamageError, OutputError
from tests.cluster.dataset.outputs import a_row, key_of, leaves


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


def test_a_copy_of_an_output_keeps_its_times(tmp_path: Path) -> None:
    """Files that are younger than their rows tell when they were copied, as `cp -r` and uploads make them."""
    store = Store(str(tmp_path))
    for number in range(3):
        store.commit(a_row(key_of(number), store) | {"committed_at": datetime.fromtimestamp(1000.0 + 60 * number, UTC)})
    status = status_of(store)
    assert status.rate_per_hour == pytest.approx(60.0)
    assert status.first_commit is not None
    assert status.last_commit is not None
    assert (status.first_commit.timestamp(), status.last_commit.timestamp()) == (1000.0, 1120.0)


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
