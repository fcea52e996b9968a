"""A clean-up removes what no row needs, and nothing else."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.dataset.garbage import KINDS, Collected, collect_garbage
from cluster.dataset.leases import LEASE_SECONDS
from cluster.dataset.segments import SEGMENT_ROWS
from cluster.dataset.store import Store
from cluster.observability.status import status_of
from numina.errors import DamageError, OutputError, StorageError
from tests.cluster.dataset.outputs import a_row, key_of, leaves

CLEAN = dict.fromkeys(KINDS, 0)


def littered(root: Path) -> Store:
    """Ten rows in commits, some in two segments too; and one or more of everything that a clean-up removes."""
    store = Store(str(root))
    store.open_run({"steps": 50}, asked=12)
    for number in range(10):
        layout_file = store.put_layout(key_of(number), {"labels": np.arange(number)})
        row = a_row(key_of(number), store, video=bytes([number]) * 5000, layout_file=layout_file)
        if number % 2:
            row["latents_file"] = store.put_latents(key_of(number), np.full((1, 1, 2, 2), number, np.float32), "a@1")
        store.commit(row | {"task_digest": key_of(100 + number)})
    store.compact(map(key_of, range(4)))
    store.compact(map(key_of, range(2, 7)))
    store.put_video(key_of(0), b"made a second time")
    store.put_video(key_of(50), b"of a driver that died before its commit")
    store.put_layout(key_of(50), {"labels": np.arange(3)})
    store.put_latents(key_of(50), np.zeros((1, 1, 2, 2), np.float32), "a@1")
    store.fail(key_of(1), {"error": "out of memory", "final": False})
    store.fail(key_of(11), {"error": "out of memory"})
    for number in range(9):
        store.put_evaluation("exact", key_of(number), {"count_accuracy": number / 8})
    store.put_evaluation("exact", key_of(9), {"problem": "missing", "count_accuracy": 0.0})
    store.compact_evaluations("exact", map(key_of, range(3)))
    store.compact_evaluations("exact", map(key_of, range(2, 7)))
    (root / "videos" / key_of(3)[:2] / ".numina-0123").write_bytes(b"half a video")
    dead = Store(str(root))
    dead.lease([key_of(50)])
    lease = root / f"leases/{dead.owner}.json"
    lease.write_text(lease.read_text().replace('"machine": "', '"machine": "another '))
    os.utime(lease, (1000.0, 1000.0))
    return store


def needed(store: Store) -> Counter[str]:
    """What an output is about: its rows, its verdicts, its failures, and how often each named file is there."""
    rows = store.rows().to_pylist()
    for row in rows:
        assert len(store.read(row["file_name"])) == 5000
        store.read(row["layout_file"])
        if row["latents_file"]:
            store.read(row["latents_file"])
    verdicts = store.evaluations("exact").to_pylist()
    failed = [key for key in store.failures() if not store.is_committed(key) and key not in store.committed()]
    return Counter([*map(str, rows), *map(str, verdicts), *failed])


def test_what_no_row_needs_is_removed(tmp_path: Path) -> None:
    """Rows, their files, verdicts and real failures stay; the count by kind is what was there; a resume knows all keys
    and tasks from segments alone."""
    store = littered(tmp_path)
    before, index, config = needed(store), store.committed_index(), store.run_config()
    collected = collect_garbage(store)
    assert collected.files == {
        "temporaries": 1,
        "videos": 2,
        "layouts": 1,
        "latents": 1,
        "failures": 1,
        "leases": 1,
        "commits": 10,
        "verdicts": 9,  # and the one that may be given anew stays as it is
        "gathered layouts": 10,
        "segments": 6,  # two of rows, and the one of the commits that were in neither; the same of verdicts
    }
    assert collected.bytes["videos"] == len(b"made a second time") + len(b"of a driver that died before its commit")
    assert collected.segments_written == 5
    assert needed(store) == before
    assert store.committed_index() == index
    assert store.run_config() == config
    assert (status_of(store).done, status_of(store).failed, status_of(store).asked) == (10, 1, 12)
    folders = Counter(name.split("/")[0] for name in leaves(tmp_path))
    assert folders == {
        "run.json": 1,
        "runs": 1,
        "videos": 10,
        "layouts": 1,
        "latents": 5,
        "segments": 1,
        "failures": 1,
        "evaluations": 2,
    }
    assert not (tmp_path / "failures" / key_of(1)).exists()


def test_a_second_clean_up_finds_nothing(tmp_path: Path) -> None:
    """It leaves every file as it is; new rows after it are gathered and merged by the next."""
    store = littered(tmp_path)
    collect_garbage(store)
    before = leaves(tmp_path)
    assert collect_garbage(store) == Collected(files=CLEAN, bytes=CLEAN)
    assert leaves(tmp_path) == before
    layout_file = store.put_layout(key_of(20), {"labels": np.arange(20)})
    store.commit(a_row(key_of(20), store, video=bytes(5000), layout_file=layout_file))
    assert store.put_evaluation("exact", key_of(9), {"count_accuracy": 0.5})  # its video came back
    expected = needed(store)
    collected = collect_garbage(store)
    assert [collected.files[kind] for kind in ("commits", "verdicts", "gathered layouts", "segments")] == [1, 1, 1, 6]
    assert needed(store) == needed(Store(str(tmp_path))) == expected
    assert len(store.rows()) == 11
    assert store.evaluation("exact", key_of(9))["count_accuracy"] == 0.5  # type: ignore[index]


def test_what_was_gathered_is_read_and_judged_as_before(tmp_path: Path) -> None:
    """Single layouts, rows and verdicts are found in segments, by their own names; what isn't there is nowhere."""
    store = littered(tmp_path)
    names = store.rows()["layout_file"].to_pylist()
    layouts = {name: store.read(name) for name in names}
    before = [(store.row(key_of(number)), store.evaluation("exact", key_of(number))) for number in range(11)]
    collect_garbage(store)
    again = Store(str(tmp_path))
    assert {name: again.read(name) for name in reversed(names)} == layouts
    assert [(again.row(key_of(n)), again.evaluation("exact", key_of(n))) for n in range(11)] == before
    for name in (f"layouts/{key_of(3)[:2]}/{key_of(3)}-{'0' * 16}.npz", f"layouts/{names[0]}", "layouts/x.npz"):
        with pytest.raises(FileNotFoundError):
            again.read(name)


def test_a_layout_that_is_torn_stays_as_it_is(tmp_path: Path) -> None:
    """It isn't the one that its name was made of: whoever shows it says so."""
    store = littered(tmp_path)
    torn = store.rows()["layout_file"][4].as_py()
    (tmp_path / torn).write_bytes(b"PK torn")
    assert collect_garbage(store).files["gathered layouts"] == 9
    assert Store(str(tmp_path)).read(torn) == b"PK torn"
    assert collect_garbage(store) == Collected(files=CLEAN, bytes=CLEAN)


@pytest.mark.parametrize("folder", ["layouts/segments", "evaluations/exact/segments"])
def test_a_torn_segment_is_named(tmp_path: Path, folder: str) -> None:
    """With the remedy; and it is no reason to remove what it should hold."""
    store = littered(tmp_path)
    named = [*store.rows()["layout_file"].to_pylist(), f"evaluations/exact/{key_of(1)}.parquet"]
    single = {name: (tmp_path / name).read_bytes() for name in named}
    collect_garbage(store)
    (segment,) = (tmp_path / folder).iterdir()
    content = bytearray(segment.read_bytes())
    content[100] ^= 1  # in the first page
    segment.write_bytes(content)
    for name, data in single.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DamageError, match=rf"{folder}/{segment.name} is torn(.|\n)*: remove it"):
        collect_garbage(store)
    assert {name for name in single if name.startswith(folder.split("/")[0])} <= set(leaves(tmp_path))
    segment.unlink()
    collect_garbage(store)
    assert needed(Store(str(tmp_path)))


def test_large_layouts_fill_a_segment_and_are_found_in_parts_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment ends before its limit, and reading one layout reads a sixteenth of it, no matter how many are read."""
    store = Store(str(tmp_path))
    store.open_run({})
    for module in ("layouts", "row_files"):
        monkeypatch.setattr(f"cluster.dataset.{module}.SEGMENT_BYTES", 3_000_000)
    chance, names = np.random.default_rng(0), dict[str, np.ndarray]()
    for number in range(100):
        labels = chance.integers(0, 2**60, 8000)  # 64 kB that don't compress
        names[store.put_layout(key_of(number), {"labels": labels})] = labels
        store.commit(a_row(key_of(number), store, layout_file=[*names][-1]))
    collect_garbage(store)
    sizes = [path.stat().st_size for path in (tmp_path / "layouts/segments").iterdir()]
    assert sum(size > 2_000_000 for size in sizes) >= 2
    assert max(sizes) < 3_000_000
    fresh, opened = Store(str(tmp_path)), list[str]()
    open_parts = fresh.files.open_parts

    def counted(name: str, size: int) -> object:
        opened.append(name)
        return open_parts(name, size)

    monkeypatch.setattr(fresh.files, "open_parts", counted)
    for name, labels in sorted(names.items()):
        with np.load(BytesIO(fresh.read(name))) as arrays:
            assert (arrays["labels"] == labels).all()
    assert len(opened) <= 2 * len(sizes) + 100 / 16  # a segment's last bytes and row groups, each once


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    """It counts what a clean-up would remove; segments as they lie before commits are gathered."""
    store = littered(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in leaves(tmp_path)}
    collected = collect_garbage(store, dry_run=True)
    assert {name: (tmp_path / name).read_bytes() for name in leaves(tmp_path)} == before
    real = collect_garbage(store)
    assert collected.files | {"segments": 6, "verdicts": 9} == real.files
    assert collected.bytes | {"segments": 0, "verdicts": 0} == real.bytes | {"segments": 0, "verdicts": 0}
    assert (collected.files["verdicts"], collected.files["segments"]) == (10, 4)
    assert collected.segments_written == 0


def test_a_living_driver_is_in_the_way(tmp_path: Path) -> None:
    """It is named, with the remedy, and nothing is removed; one that runs here is alive however old its lease is."""
    store, driver = littered(tmp_path), Store(str(tmp_path))
    driver.lease([key_of(70)])
    before = leaves(tmp_path)
    for seconds_ago in (0.0, LEASE_SECONDS * 10):
        lease = tmp_path / f"leases/{driver.owner}.json"
        made = lease.stat().st_mtime - seconds_ago
        os.utime(lease, (made, made))
        with pytest.raises(OutputError, match=rf"in use(.|\n)*process {os.getpid()}, since 20(.|\n)*stop it"):
            collect_garbage(store)
        with pytest.raises(OutputError, match="in use"):
            collect_garbage(store, dry_run=True)
    assert leaves(tmp_path) == before
    driver.release()
    assert collect_garbage(store).files["videos"] == 2


def test_clean_ups_at_once_do_no_harm(tmp_path: Path) -> None:
    """They stop for each other, or take each other's temporary files for a killed writer's and stop for that; rows and
    files are as after one."""
    store = littered(tmp_path)
    before = needed(store)

    def attempt(_: int) -> None:
        with suppress(OutputError, StorageError):
            collect_garbage(Store(str(tmp_path)))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(attempt, range(4)))
    assert needed(store) == before
    collect_garbage(store)
    assert needed(store) == before
    assert collect_garbage(store) == Collected(files=CLEAN, bytes=CLEAN)


@pytest.mark.parametrize("folder", ["commits", "segments"])
def test_a_torn_row_stops_it_before_anything_is_removed(tmp_path: Path, folder: str) -> None:
    """Which files that row needs can't be known: the error names the file and the remedy."""
    store = littered(tmp_path)
    (torn,) = [name for name in leaves(tmp_path) if name.startswith(folder)][:1]
    if folder == "commits":
        torn = f"commits/{key_of(9)[:2]}/{key_of(9)}.parquet"  # in no segment
    (tmp_path / torn).write_bytes((tmp_path / torn).read_bytes()[:-50])
    before = leaves(tmp_path)
    with pytest.raises(DamageError, match=rf"{torn} is torn(.|\n)*remove it"):
        collect_garbage(store)
    assert leaves(tmp_path) == before


def test_a_row_committed_meanwhile_keeps_its_files(tmp_path: Path) -> None:
    """Also of a writer that leases nothing: the commit is looked for once more before a video goes."""
    store, late = littered(tmp_path), Store(str(tmp_path))
    names = store.row_files.tables

    def commit_after_reading(columns: list[str]) -> list[object]:
        tables: list[object] = names(columns)
        store.row_files.tables = names  # type: ignore[method-assign]
        late.commit(a_row(key_of(60), late, video=b"6" * 5000, layout_file=late.put_layout(key_of(60), {})))
        return tables

    store.row_files.tables = commit_after_reading  # type: ignore[assignment,method-assign]
    collect_garbage(store)
    assert len(store.rows()) == 11
    assert needed(store)


def test_segments_are_merged_up_to_a_size(tmp_path: Path) -> None:
    """Small ones are put together up to SEGMENT_ROWS rows, large ones are left; every row is there once."""
    store = Store(str(tmp_path))
    store.open_run({})
    store.commit(a_row(key_of(0), store))
    (row,) = store.row_files.tables()
    sizes, start = [SEGMENT_ROWS, 6000, 3000, 2500, 400], 0
    for size in sizes:
        keys = [key_of(number) for number in range(start, start + size)]
        many = row.take([0] * size)
        store.row_files.write_segment([many.set_column(0, row.schema.field("key"), [keys])])
        start += size
    collected = collect_garbage(store)
    assert (collected.files["commits"], collected.segments_written) == (1, 1)
    rows = sorted(pq.read_metadata(path).num_rows for path in (tmp_path / "segments").iterdir())
    assert rows == [5900, 6000, SEGMENT_ROWS]
    assert len(store.committed()) == sum(sizes)


def test_a_folder_that_is_no_output_is_left_alone(tmp_path: Path) -> None:
    """Where no run.json is, nothing is looked for."""
    (tmp_path / ".numina-mine").write_text("x")
    with pytest.raises(OutputError, match=r"no run\.json"):
        collect_garbage(Store(str(tmp_path)))
    assert leaves(tmp_path) == {".numina-mine"}
