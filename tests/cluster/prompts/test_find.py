"""Which files a path, a folder or a pattern names: all that was meant, and nothing else."""

import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from cluster.prompts.check import check_prompts, read_prompts
from cluster.prompts.find import find_files
from cluster.prompts.promptset import open_prompts
from numina.errors import PromptSetError


def a_file(path: Path, id: str, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"prompt": [f"three cats, take {id}"], "id": [id], **{name: [value] for name, value in columns.items()}}
    pq.write_table(pa.table(table), path)


def ids(path: object) -> list[str | None]:
    return [row.id for row in read_prompts(str(path), max_count=10)]


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/a-checkpoint.parquet",
        "_temporary/0/part-0.parquet",
        ".cache/huggingface/x.parquet",
        "deep/.git/lfs/x.parquet",
        "deep/_old/split=train/x.parquet",
        "_metadata.parquet",
        ".part-0.parquet",
        "deep/._part-0.parquet",
    ],
)
def test_names_that_begin_with_a_dot_or_underscore_are_not_read(tmp_path: Path, hidden: str) -> None:
    """At any depth below the given folder, by folder and by pattern; above it names may be as they like."""
    folder = tmp_path / "_mine" / ".sets" / "cats"
    a_file(folder / "deep" / "b.parquet", "b")
    a_file(folder / "a.parquet", "a")
    a_file(folder / hidden, "hidden")
    for path in (folder, f"{folder}/", f"file://{folder}", f"{folder}/**/*.parquet"):
        assert ids(path) == ["a", "b"], path
    assert ids(folder / hidden) == ["hidden"]
    with fsspec.open(f"memory://{tmp_path.name}/{hidden}", "wb") as sink:
        sink.write((folder / hidden).read_bytes())
    with fsspec.open(f"memory://{tmp_path.name}/a.parquet", "wb") as sink:
        sink.write((folder / "a.parquet").read_bytes())
    assert ids(f"memory://{tmp_path.name}") == ["a"]
    assert ids(f"memory://{tmp_path.name}/**/*.parquet") == ["a"]


def test_hidden_names_can_be_asked_for_by_a_pattern(tmp_path: Path) -> None:
    a_file(tmp_path / "_a.parquet", "a")
    a_file(tmp_path / "b.parquet", "b")
    assert ids(f"{tmp_path}/_*.parquet") == ["a"]
    assert ids(f"{tmp_path}/*.parquet") == ["b"]


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "Delta"),
        ("metadata/v1.metadata.json", "Iceberg"),
        ("metadata/00001-6c1b.metadata.json", "Iceberg"),
        (".hoodie/hoodie.properties", "Hudi"),
    ],
)
@pytest.mark.parametrize("where", ["", "inner/"])
def test_a_table_of_another_format_is_named(tmp_path: Path, mark: str, kind: str, where: str) -> None:
    """Its folder holds removed rows too: the error names the format and what to do, on any filesystem."""
    folder = tmp_path / "set"
    a_file(folder / where / "data" / "a.parquet", "a")
    (folder / where / mark).parent.mkdir(parents=True)
    (folder / where / mark).write_text("{}")
    remote = fsspec.filesystem("memory")
    remote.put(f"{folder}/", f"/{tmp_path.name}/", recursive=True)
    for path in (str(folder), f"memory://{tmp_path.name}"):
        with pytest.raises(PromptSetError, match=rf"is a table of {kind} .* write it as plain Parquet"):
            open_prompts(path)


def test_a_folder_of_that_name_alone_is_no_table(tmp_path: Path) -> None:
    a_file(tmp_path / "metadata" / "a.parquet", "a")
    assert ids(tmp_path) == ["a"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    """Folders and files behind links are read once; a link to a folder that it lies in ends the walk there."""
    folder, other = tmp_path / "set", tmp_path / "elsewhere"
    a_file(folder / "a.parquet", "a")
    a_file(other / "part" / "b.parquet", "b")
    a_file(tmp_path / "c-data", "c")
    (folder / "linked").symlink_to(other)
    (folder / "c.parquet").symlink_to("../c-data")
    for name, to in {"itself": ".", "above": "..", "top": "/"}.items():
        (folder / name).symlink_to(to)
    (other / "back").symlink_to(folder)
    (other / "part" / "round").symlink_to(other)
    for path in (folder, f"{folder}/**", f"{folder}/**/*.parquet"):
        assert sorted(map(str, ids(path))) == ["a", "b", "c"], path
    (tmp_path / "entry").symlink_to(folder)
    assert ids(tmp_path / "entry") == ["a", "c", "b"]  # by the names of the paths


def test_a_hub_cache_is_read_by_folder_and_by_pattern(tmp_path: Path) -> None:
    """Its snapshots are links to blobs without an ending."""
    a_file(tmp_path / "blobs" / "0123abcd", "a")
    snapshot = tmp_path / "snapshots" / "main" / "data"
    snapshot.mkdir(parents=True)
    (snapshot / "train-00000-of-00001.parquet").symlink_to("../../../blobs/0123abcd")
    for path in (snapshot, snapshot.parent, f"{snapshot}/*.parquet", f"{tmp_path}/snapshots/*/data/train-*"):
        assert ids(path) == ["a"]


def test_a_dead_link_is_a_problem_and_no_row_less(tmp_path: Path) -> None:
    """A blob that was never downloaded."""
    a_file(tmp_path / "a.parquet", "a")
    (tmp_path / "b.parquet").symlink_to("../blobs/gone")
    for path in (tmp_path, f"{tmp_path}/*.parquet"):
        _, problems = check_prompts(str(path), 10)
        assert len(problems) == 1
        assert "b.parquet: can't be read" in problems[0]


@pytest.mark.parametrize("name", ["set[1]", "what?", "all*", "[a-z]"])
def test_a_path_that_is_there_is_no_pattern(tmp_path: Path, name: str) -> None:
    """Of a folder, of a file, and of the folders before a pattern."""
    a_file(tmp_path / name / f"{name}.parquet", "a")
    a_file(tmp_path / "x" / "set1.parquet", "other")
    a_file(tmp_path / "set1" / "set1.parquet", "other")
    for path in (tmp_path / name, tmp_path / name / f"{name}.parquet", f"{tmp_path}/{name}/*.parquet"):
        assert ids(path) == ["a"], path
    assert ids(f"{tmp_path}/set[1]/set[1].parquet" if name != "set[1]" else f"{tmp_path}/x/set[1].parquet") == ["other"]
    data = (tmp_path / name / f"{name}.parquet").read_bytes()
    with fsspec.open(f"memory://{tmp_path.name}/{name}/{name}.parquet", "wb") as sink:
        sink.write(data)
    assert ids(f"memory://{tmp_path.name}/{name}") == ["a"]
    assert ids(f"memory://{tmp_path.name}/{name}/{name}.parquet") == ["a"]


def test_a_pattern_of_folders_reads_their_files(tmp_path: Path) -> None:
    a_file(tmp_path / "part-1" / "x.parquet", "b")
    a_file(tmp_path / "part-0" / "deep" / "x.parquet", "a")
    a_file(tmp_path / "other" / "x.parquet", "c")
    assert ids(f"{tmp_path}/part-*") == ["a", "b"]
    fsspec.filesystem("memory").put(f"{tmp_path}/", f"/{tmp_path.name}/", recursive=True)
    assert ids(f"memory://{tmp_path.name}/part-*") == ["a", "b"]


# --- partitions ---


PARTITIONED = {
    "split=train/lang=en/a.parquet": ("a", {"split": "train", "lang": "en"}),
    "split=train/lang=a%2Fb%20c/b.parquet": ("b", {"split": "train", "lang": "a/b c"}),
    "split=test/lang=__HIVE_DEFAULT_PARTITION__/c.parquet": ("c", {"split": "test", "lang": None}),
    "split=test/lang=/d.parquet": ("d", {"split": "test", "lang": ""}),
}


def test_partitions_are_columns(tmp_path: Path) -> None:
    """Percent-decoded, by folder and pattern, on any filesystem; a folder of the given path itself is none."""
    base = tmp_path / "day=1"
    for name, (id, _) in PARTITIONED.items():
        a_file(base / name, id)
    fsspec.filesystem("memory").put(f"{base}/", f"/{tmp_path.name}/", recursive=True)
    for path in (str(base), f"{base}/*/*/*.parquet", f"{base}/split=*", f"memory://{tmp_path.name}"):
        rows = {row.id: row.extra for row in read_prompts(path, max_count=10)}
        assert rows == dict(PARTITIONED.values()), path
    assert open_prompts(str(base)).extra_columns == pa.schema([("split", pa.string()), ("lang", pa.string())])


@pytest.mark.parametrize(
    "values",
    [
        ["1", "22", "-3"],
        ["01", "2"],
        ["1", "x"],
        ["2147483647"],
        ["2147483648"],
        ["1.5"],
        ["1", "__HIVE_DEFAULT_PARTITION__"],
        ["2026-01-02"],
        ["a%3Db", "%C3%A9", "100%25"],
        ["a=b", "+1"],
        ["true"],
        [" 1"],
    ],
)
def test_partitions_are_typed_as_arrow_types_them(tmp_path: Path, values: list[str]) -> None:
    for number, value in enumerate(values):
        a_file(tmp_path / f"day={value}" / "x.parquet", str(number))
    theirs = pyarrow.dataset.dataset(str(tmp_path), partitioning="hive").to_table().select(["id", "day"])
    ours = open_prompts(str(tmp_path))
    assert ours.extra_columns.field("day").type == theirs.schema.field("day").type
    found = {row.id: row.extra["day"] for row in ours.parse(10)}
    assert found == dict(zip(*theirs.to_pydict().values(), strict=True))


def test_a_partition_of_our_own_columns_means_what_it_says(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / f"seed={number}" / "negative_prompt=7"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"prompt": ["three cats"]}), folder / "a.parquet")
    rows = list(read_prompts(str(tmp_path), max_count=10))
    assert [(row.seed, row.negative_prompt, row.extra) for row in rows] == [(0, "7", {}), (1, "7", {})]


@pytest.mark.parametrize(
    ("folders", "columns", "said"),
    [
        ("lang=en", {"lang": "en"}, "folder lang=… gives it this column, and it has one of its own"),
        ("lang=en/lang=de", {}, "two of its folders give the column 'lang'"),
        ("width=7", {}, "the output has a column of this name; rename it, e.g. 'my_width' (the name of its folder"),
        ("lang=%ff", {}, "'lang=%ff' isn't UTF-8"),
        ("seed=x", {}, "column 'seed': has type string"),
    ],
)
def test_what_a_partition_can_not_be(tmp_path: Path, folders: str, columns: dict[str, Any], said: str) -> None:
    a_file(tmp_path / folders / "a.parquet", "a", **columns)
    _, problems = check_prompts(str(tmp_path), 10)
    assert len(problems) == 1
    assert said in problems[0]
    assert "a.parquet" in problems[0]


def test_ordinary_folders_keep_their_order(tmp_path: Path) -> None:
    """By the whole path, as text: a job that was begun before finds its rows where they were."""
    names = ["b.parquet", "a/z.parquet", "a-1/x.parquet", "a.parquet", "a/b/c.parquet", "10.parquet", "9.parquet"]
    for name in names:
        a_file(tmp_path / name, name.replace("/", "_"))
    whole = sorted(f"{tmp_path}/{name}" for name in names)
    assert [file.path for file in find_files(str(tmp_path))] == whole
    assert [file.path for file in find_files(f"{tmp_path}/**/*.parquet")] == whole


@pytest.mark.skipif(os.getuid() == 0, reason="root may list any folder")
def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path: Path) -> None:
    a_file(tmp_path / "closed" / "a.parquet", "a")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(PromptSetError, match="can't be listed"):
        open_prompts(str(tmp_path))
    (tmp_path / "closed").chmod(0o700)
