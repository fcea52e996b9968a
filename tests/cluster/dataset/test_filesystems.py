"""What an output asks of the storage below it: disks, memory, S3's answers."""

import errno
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster.dataset.store import Store
from cluster.observability.status import status_of
from cluster.storage.object_store import ObjectFiles
from cluster.storage.open import open_files
from cluster.storage.posix import PosixFiles
from numina.errors import OutputError, StorageError
from tests.cluster.dataset.outputs import a_row, key_of, leaves


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
