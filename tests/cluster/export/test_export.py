"""Exports: what others read is what was committed, each clip once, and a second run copies nothing."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.export.config import ExportConfig
from cluster.export.job import export
from cluster.prompts.check import read_prompts
from cluster.prompts.importing import import_prompts
from numina.errors import InputError, OutputError
from pipelines.video.mp4 import decode_mp4
from tests.cluster.export.exports import FRAMES, PROMPTS, SIZE, an_output

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output that no test changes."""
    root = tmp_path_factory.mktemp("output") / "out"
    an_output(root)
    return root


def exported(output: Path, folder: Path, **settings: Any) -> Any:
    return export(Store(str(output), single_writer=True), str(folder), ExportConfig(**settings))


def files_of(folder: Path) -> dict[str, tuple[str, int]]:
    """By name each file's hash, and when it was written."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def loaded(folder: Path, cache: Path) -> Any:
    """What `load_dataset` makes of an export, with videos as they are stored."""
    dataset = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))
    assert dataset.features["video"] == datasets.Video()
    return dataset.cast_column("video", datasets.Video(decode=False))


def test_hugging_face_reads_videos_and_columns(output: Path, tmp_path: Path) -> None:
    """`load_dataset` of the folder gives every clip with its frames, targets, verdict and the set's own columns."""
    assert exported(output, tmp_path / "hf", to="hf").clips == 12
    dataset = loaded(tmp_path / "hf", tmp_path / "cache")
    assert len(dataset) == 12
    rows = {row["key"]: row for row in Store(str(output)).rows().to_pylist()}
    for row in dataset:
        own = rows[row["key"]]
        video = Path(row["video"]["path"]).read_bytes()
        assert hashlib.sha256(video).hexdigest() == own["video_sha256"]
        assert (row["prompt"], row["targets"], row["source"]) == (own["prompt"], own["targets"], "made")
        assert row["clip_file"] == own["clip_file_name"]  # else it would be read as a video
        assert row["strategies"] == [own["strategy"]]
        assert row["accepted"] is (own["strategy"] == "numina" or own["id"] == "001")
        assert row["judge"] == "counter"
        assert row["detected"][0]["noun"] == own["targets"][0]["noun"]
    assert decode_mp4(video).shape == (FRAMES, SIZE, SIZE, 3)


def test_the_card_says_what_was_measured(output: Path, tmp_path: Path) -> None:
    """Its metadata is YAML that the hub knows; accuracy stands there per strategy and judge."""
    exported(output, tmp_path / "hf", to="hf")
    text = (tmp_path / "hf" / "README.md").read_text()
    card = pytest.importorskip("huggingface_hub").DatasetCard(text)
    assert card.data.task_categories == ["text-to-video"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.license == "other"
    assert "| baseline | counter | 6 | 6 | 0.333 | 2 | 2.0 |" in text
    assert "| numina | counter | 6 | 6 | 1.000 | 6 | 2.0 |" in text
    assert f"| model_revision | {'r' * 40} |" in text
    assert "12 videos of 3 prompts" in text


def test_only_accepted_clips_of_one_strategy(output: Path, tmp_path: Path) -> None:
    """What a strategy keeps, and of it what the judge accepted."""
    settings = {"to": "hf", "strategy": "baseline", "only": "accepted"}
    assert exported(output, tmp_path / "hf", **settings).clips == 2
    dataset = loaded(tmp_path / "hf", tmp_path / "cache")
    assert {row["prompt"] for row in dataset} == {PROMPTS[0]}
    assert len(list((tmp_path / "hf" / "videos").rglob("*.mp4"))) == 2


@pytest.mark.parametrize("form", ["hf", "webdataset", "countbench", "vbench"])
def test_the_same_again_does_nothing_twice(form: str, output: Path, tmp_path: Path) -> None:
    """Videos and shards stay as they are; a broken or removed one is written again; bytes are the same every time."""
    settings = {"to": form, "strategy": "numina", "shard_clips": 4}
    folder, again = tmp_path / "one", tmp_path / "two"
    exported(output, folder, **settings)
    before = files_of(folder)
    exported(output, folder, **settings)
    after = files_of(folder)
    copied = [name for name in before if name.endswith((".mp4", ".tar"))]
    assert {name: before[name] for name in copied} == {name: after[name] for name in copied}
    exported(output, again, **settings)
    assert {name: own[0] for name, own in files_of(again).items()} == {name: own[0] for name, own in before.items()}
    (folder / copied[0]).write_bytes(b"half")
    (folder / copied[1]).unlink()
    exported(output, folder, **settings)
    assert {name: own[0] for name, own in files_of(folder).items()} == {name: own[0] for name, own in before.items()}


def test_webdataset_is_read_by_both_libraries(output: Path, tmp_path: Path) -> None:
    """Shards of at most so many clips, each a video and its row."""
    import webdataset

    assert exported(output, tmp_path / "tars", to="webdataset", shard_clips=5).clips == 12
    shards = sorted(map(str, (tmp_path / "tars").glob("shard-*.tar")))
    assert [Path(shard).name for shard in shards] == [f"shard-00000{number}.tar" for number in range(3)]
    rows = {row["key"]: row for row in Store(str(output)).rows().to_pylist()}
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert sorted(sample["__key__"] for sample in samples) == sorted(rows)
    for sample in samples:
        row, own = json.loads(sample["json"]), rows[sample["__key__"]]
        assert hashlib.sha256(sample["mp4"]).hexdigest() == own["video_sha256"]
        assert (row["targets"], row["seed"], row["accepted"]) == (
            own["targets"],
            own["seed"],
            row["count_accuracy"] == 1,
        )
    read = datasets.load_dataset(
        "webdataset", data_files={"train": shards}, split="train", cache_dir=str(tmp_path / "cache")
    )
    read = read.cast_column("mp4", datasets.Video(decode=False))
    assert {row["__key__"] for row in read} == set(rows)
    assert decode_mp4(read[0]["mp4"]["bytes"]).shape == (FRAMES, SIZE, SIZE, 3)


def test_countbench_names_and_the_way_back(output: Path, tmp_path: Path) -> None:
    """Videos begin with their prompt's number; prompts and counts import to the set that was asked for."""
    folder = tmp_path / "bench"
    result = exported(output, folder, to="countbench", strategy="numina")
    assert (result.clips, result.notes) == (6, ())
    names = ["001_Three_cats_chasing_two_dogs.mp4", "002_A_lone_fox_at_dusk.mp4", "003_Four_owls_seen_from_above.mp4"]
    assert sorted(path.name for path in folder.glob("*.mp4")) == names
    assert sorted(path.name for path in (folder / "sample-1").iterdir()) == names
    index = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    rows = {row["key"]: row for row in Store(str(output)).rows().to_pylist()}
    for own in index:
        video = (folder / own["file"]).read_bytes()
        assert hashlib.sha256(video).hexdigest() == rows[own["key"]]["video_sha256"]
        assert rows[own["key"]]["prompt"] == PROMPTS[own["number"] - 1]
    import_prompts(str(folder), str(tmp_path / "back.parquet"))
    back = list(read_prompts(str(tmp_path / "back.parquet"), max_count=20))
    assert [(row.id, row.prompt) for row in back] == [(f"{n:03d}", prompt) for n, prompt in enumerate(PROMPTS, 1)]
    asked = {row["prompt"]: [(target["noun"], target["count"]) for target in row["targets"]] for row in rows.values()}
    assert {row.prompt: [(target.noun, target.count) for target in row.targets] for row in back} == asked


def test_vbench_names(output: Path, tmp_path: Path) -> None:
    """The prompt itself and the sample's index; what no file can be called is in prompts.json."""
    folder = tmp_path / "vbench"
    assert exported(output, folder, to="vbench", strategy="baseline").notes
    prompts = json.loads((folder / "prompts.json").read_text())
    assert set(prompts) == {path.name for path in (folder / "videos").iterdir()}
    assert prompts["Three cats chasing two dogs.-1.mp4"] == PROMPTS[0]
    assert prompts["A lone fox _ at dusk.-0.mp4"] == PROMPTS[1]
    assert len(prompts) == 6


def test_what_takes_one_clip_wants_one_strategy(output: Path, tmp_path: Path) -> None:
    """The error names them; so do those for an unknown strategy and judge."""
    for form in ("countbench", "vbench"):
        with pytest.raises(OutputError, match="--strategy, one of baseline, numina"):
            exported(output, tmp_path / "x", to=form)
    with pytest.raises(OutputError, match=r"'best' isn't in output .* choose from baseline, numina"):
        exported(output, tmp_path / "x", to="hf", strategy="best")
    with pytest.raises(OutputError, match=r"'clip' gave no verdicts .* there are counter"):
        exported(output, tmp_path / "x", to="hf", judge="clip")
    with pytest.raises(InputError, match="'zip' isn't known; choose from hf, webdataset"):
        exported(output, tmp_path / "x", to="zip")
    assert not (tmp_path / "x").exists()


def test_outputs_without_rows_and_foreign_folders_are_refused(output: Path, tmp_path: Path) -> None:
    """Nothing is written over what is there."""
    Store(str(tmp_path / "new")).open_run({})
    for empty in ("new", "nowhere"):
        with pytest.raises(OutputError, match="holds no rows"):
            exported(tmp_path / empty, tmp_path / "x", to="hf")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is no export, but holds notes\.txt"):
        exported(output, tmp_path / "mine", to="hf")
    exported(output, tmp_path / "vbench", to="vbench", strategy="numina")
    with pytest.raises(OutputError, match="holds another export"):
        exported(output, tmp_path / "vbench", to="vbench", strategy="baseline")


@pytest.mark.parametrize("form", ["hf", "webdataset", "countbench", "vbench"])
def test_lost_videos_are_named_and_left_out(form: str, tmp_path: Path) -> None:
    """Status 1; rows and indices know only what is there; when they come back, the same command has all."""
    store = an_output(tmp_path / "out", samples=1)
    gone, broken = (
        row["file_name"] for row in store.rows().to_pylist() if row["strategy"] == "numina" and row["id"] != "002"
    )
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in (gone, broken)}
    (tmp_path / "out" / gone).unlink()
    (tmp_path / "out" / broken).write_bytes(b"half")
    command = ["export", str(tmp_path / "out"), "--to", form, "-o", str(tmp_path / "x"), "--strategy", "numina"]
    said = CliRunner().invoke(app, command, catch_exceptions=False)
    assert said.exit_code == 1
    assert f"{gone} is missing" in said.output
    assert f"{broken} is damaged" in said.output
    assert f"1 clip as {form}, 2 left out" in said.output
    if form == "hf":
        assert len(loaded(tmp_path / "x", tmp_path / "cache")) == 1
    for name, video in kept.items():
        (tmp_path / "out" / name).write_bytes(video)
    said = CliRunner().invoke(app, command, catch_exceptions=False)
    assert (said.exit_code, f"3 clips as {form}, 0 left out" in said.output) == (0, True)


def test_an_export_to_object_storage(output: Path, tmp_path: Path) -> None:
    """Any filesystem that fsspec knows is a place for one."""
    import fsspec

    for form in ("vbench", "webdataset"):
        export(
            Store(str(output), single_writer=True),
            f"memory://exports/{tmp_path.name}/{form}",
            ExportConfig(to=form, strategy="numina"),
        )
    fs = fsspec.filesystem("memory")
    names = [name.rsplit("/", 1)[-1] for name in fs.find(f"/exports/{tmp_path.name}")]
    assert "shard-000000.tar" in names
    assert "Three cats chasing two dogs.-0.mp4" in names
