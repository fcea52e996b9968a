"""Full disks, lost storage and torn files: one clear error, nothing torn, nothing silently missing, and a resume."""

import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.dataset.garbage import collect_garbage
from cluster.dataset.store import Store
from cluster.observability.status import status_of
from cluster.storage.open import open_files
from cluster.storage.protocol import without_secrets
from numina.errors import DamageError, OutputError, StorageError
from tests.cluster.dataset.outputs import a_row, key_of, leaves

NOBODY = 65534


def in_a_process(target: Callable[..., None], *arguments: Any) -> None:
    """Run it where it may change its limits and its user; its assertions are ours."""
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0


# --- full ---


def fill(store: Store, first: int) -> int:
    """Commit clips until the storage is full; the number of the one that had no room."""
    numbers = iter(range(first, first + 1000))

    def commit_all() -> None:
        for number in numbers:
            store.commit(a_row(key_of(number), store, video=os.urandom(20_000)))

    with pytest.raises(StorageError, match=r"No space left(.|\n)*resume"):
        commit_all()
    return next(numbers) - 1


def test_a_full_disk_stops_the_job_and_tears_nothing(small_disk: Path) -> None:
    """What was committed is whole, no half-written file is left; with room again the same work goes on. A clean-up
    works on the full disk, and makes the first room itself."""
    store = Store(str(small_disk / "out"))
    store.open_run({}, asked=1000)
    stopped = fill(store, 0)
    rows = store.rows().to_pylist()
    assert [row["key"] for row in rows] == sorted(map(key_of, range(stopped)))
    assert all(len(store.read(row["file_name"])) == 20_000 for row in rows)
    assert not [name for name in leaves(small_disk) if ".numina-" in name]

    (small_disk / "out/videos/.numina-of-a-killed-writer").write_bytes(bytes(50))
    assert collect_garbage(store).files["commits"] == stopped
    assert store.rows().to_pylist() == rows
    assert fill(store, stopped) > stopped

    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    store = Store(str(small_disk / "out"))
    store.open_run({}, asked=1000)
    first = len(store.rows())
    assert fill(store, first) > first + 50
    assert {row["key"]: row for row in store.rows().to_pylist()}.items() >= {row["key"]: row for row in rows}.items()


def test_a_file_that_has_no_room_is_not_begun(small_disk: Path, tmp_path: Path) -> None:
    """Of a verb that writes a file: a sentence, and the one that was there before stays."""
    store, place, filler = Store(str(tmp_path / "rows")), small_disk / "trace.json", small_disk / "filler"
    store.open_run({}, asked=1)
    span = {"stage": "decode", "place": "gang-0", "began": 1_790_000_000.0, "seconds": 1.0}
    store.commit(a_row(key_of(0), store, video=b"video") | {"spans": [span]})
    place.write_bytes(b"before")
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2**21))
    command = [sys.executable, "-m", "cluster.cli", "trace", store.root, "--output", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: can't write '{place}': [Errno 28] No space left on device; free some space")
    assert place.read_bytes() == b"before"
    assert sorted(small_disk.iterdir()) == [filler, place]


def limited(root: str) -> None:
    store = Store(root)
    store.commit(a_row(key_of(1), store))
    row = a_row(key_of(2), store)
    before = leaves(Path(root))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    for write in (
        lambda: store.put_video(key_of(3), bytes(5000)),
        lambda: store.commit(row),
        lambda: store.lease([key_of(number) for number in range(200)]),
        lambda: store.compact(at_least=1),
    ):
        with pytest.raises(StorageError, match="resume"):
            write()
    assert leaves(Path(root)) == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.commit(row)
    assert len(store.rows()) == 2


def test_a_limit_on_file_sizes_stops_the_job_and_tears_nothing(tmp_path: Path) -> None:
    """A write that ends early (a quota, a limit) leaves neither a file nor a temporary one, whoever writes."""
    in_a_process(limited, str(tmp_path))


# --- lost ---


@pytest.mark.parametrize("emptied", [False, True])
def test_a_lost_folder_is_not_begun_anew(tmp_path: Path, emptied: bool) -> None:
    """When the output is removed, or unmounted so that an empty folder shows, writers and readers stop; none makes a
    second output in its place."""
    root = tmp_path / "out"
    store = Store(str(root))
    store.open_run({})
    row = a_row(key_of(1), store)
    store.commit(row)
    shutil.move(root, tmp_path / "away")
    if emptied:
        root.mkdir()
    for use in (lambda: store.put_video(key_of(2), b"2"), lambda: store.commit(row), store.rows, store.committed_index):
        with pytest.raises(StorageError, match="removed, emptied or unmounted"):
            use()
    with pytest.raises(StorageError, match="resume"):
        store.lease([key_of(2)])
    assert leaves(root) == set()
    if emptied:
        root.rmdir()
    shutil.move(tmp_path / "away", root)
    assert not store.commit(row)
    assert len(store.rows()) == 1


def uses_of(root: Path) -> tuple[Store, dict[str, Any], list[Callable[[], Any]], list[Callable[[], Any]]]:
    """A store with a video and no row, that row, and all that writes to the store and that reads it."""
    store = Store(str(root))
    store.open_run({})
    row = a_row(key_of(1), store)
    writes = [lambda: store.commit(row), lambda: store.put_video(key_of(2), b""), lambda: store.lease([])]
    reads = [store.rows, store.committed_index, lambda: status_of(store), lambda: store.is_committed(key_of(1))]
    return store, row, writes, reads


def without_permission(base: str) -> None:
    _, _, writes, reads = uses_of(Path(base) / "own")
    for use in (*writes, *reads):  # another user may not see the code that is imported late
        use()
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    root = Path(base) / "out"
    store, row, writes, reads = uses_of(root)
    store.lease([])
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    for write in writes:
        with pytest.raises(StorageError, match="Permission denied"):
            write()
    for folder in reversed(folders):
        folder.chmod(0o000)
    for read in reads:
        with pytest.raises(StorageError, match="Permission denied"):
            read()
    for folder in folders:
        folder.chmod(0o700)
    assert store.commit(row)
    assert len(store.rows()) == 1


def test_lost_permissions_stop_the_job() -> None:
    """Neither writing nor reading takes a folder that it may not see for an empty one."""
    with tempfile.TemporaryDirectory() as base:  # tmp_path is closed to the user that the process becomes
        os.chmod(base, 0o777)
        in_a_process(without_permission, base)


# --- torn ---


def torn_output(root: Path, folder: str, cut: int | None) -> tuple[Store, str]:
    """Four rows, two of them in a segment; and one file of the folder cut by so many bytes, or emptied."""
    store = Store(str(root))
    store.open_run({}, asked=4)
    for number in range(4):
        store.commit(a_row(key_of(number), store, task_digest=key_of(100 + number)))
    (segment,) = store.compact([key_of(0), key_of(1)])
    name = segment if folder == "segments" else f"commits/{key_of(3)[:2]}/{key_of(3)}.parquet"
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[:-cut] if cut else b"")
    return store, name


@pytest.mark.parametrize("folder", ["commits", "segments"])
@pytest.mark.parametrize("cut", [None, 1, 9, 2000])
def test_a_torn_row_is_never_silently_missing(tmp_path: Path, folder: str, cut: int | None) -> None:
    """Whoever needs the file says its name and what to do; done that, the rows that were torn are made again."""
    store, name = torn_output(tmp_path, folder, cut)
    readers: list[Callable[[], Any]] = [
        store.rows,
        store.committed_index,
        store.compact,
        lambda: collect_garbage(store),
    ]
    for read in readers:
        with pytest.raises(DamageError, match=rf"{tmp_path}/{name} is torn(.|\n)*remove it"):
            read()
    (tmp_path / name).unlink()
    assert len(store.committed()) == (3 if folder == "commits" else 4)
    if folder == "commits":
        assert store.commit(a_row(key_of(3), store))
    assert len(store.rows()) == 4


def test_a_torn_commit_does_not_stop_the_compaction_of_others(tmp_path: Path) -> None:
    """They are gathered first, and then the error names every torn one."""
    store, torn = torn_output(tmp_path, "commits", 9)
    with pytest.raises(DamageError, match=torn):
        store.compact(map(key_of, range(4)))
    assert store.row_files.loose() == [key_of(3)]


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    """Pages carry checksums: a file of the right length with wrong content is torn too."""
    store = Store(str(tmp_path))
    store.commit(a_row(key_of(1), store))
    commit = tmp_path / f"commits/{key_of(1)[:2]}/{key_of(1)}.parquet"
    flipped = commit.read_bytes().replace(b"three cats", b"three bats")
    assert flipped != commit.read_bytes()
    commit.write_bytes(flipped)
    with pytest.raises(DamageError, match=f"{commit.name} is torn"):
        store.rows()


@pytest.mark.parametrize("name", ["failures/{key}/1.json", "runs/2026.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"a'])
def test_torn_records_are_named(tmp_path: Path, name: str, content: str) -> None:
    """A failure or a start that can't be read is an error with the remedy, in everything that reads it."""
    store = Store(str(tmp_path))
    path = tmp_path / name.format(key=key_of(1))
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DamageError, match=rf"{path}(.|\n)*remove it"):
        status_of(store)
    path.unlink()
    assert status_of(store).failed == 0


def test_other_names_among_the_failures_are_passed_over(tmp_path: Path) -> None:
    """What a person left there is neither a key nor an attempt."""
    store = Store(str(tmp_path))
    store.fail(key_of(1), {"error": "lost"})
    (tmp_path / f"failures/{key_of(1)}/notes.json").write_text("{")
    (tmp_path / "failures/notes").mkdir()
    assert status_of(store).failed == 1
    assert [len(records) for records in store.failures().values()] == [1]
    assert store.fail(key_of(1), {}) == f"failures/{key_of(1)}/2.json"


# --- secrets ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SECRET@bucket/out", "s3://bucket/out"),
        ("s3://KEY:SEC/RET+a=@bucket/out", "s3://bucket/out"),
        ("s3://KEY@bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
        ("can't open 'ftp://me:word@host:21/out'", "can't open 'ftp://host:21/out'"),
        ("hdfs://host:8020/a@b", "hdfs://host:8020/a@b"),
        ("/data/a@b", "/data/a@b"),
    ],
)
def test_users_and_secrets_are_taken_out_of_urls(text: str, shown: str) -> None:
    """Names and passwords go, also S3's secrets with a slash; hosts, ports and paths stay."""
    assert without_secrets(text) == shown


@pytest.mark.parametrize("root", ["nonsense://me:word@host/out", "memory://me:word@host/out"])
def test_errors_show_no_secret(root: str) -> None:
    """Neither of a URL that can't be opened nor of one that can't keep the promise."""
    with pytest.raises(OutputError) as refused:
        open_files(root)
    assert "word" not in str(refused.value)
