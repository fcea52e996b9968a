"""A prompt set's own columns in exports: none is taken for a video, none is lost, and real readers read all of them."""

import datetime
import decimal
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.export.columns import RESERVED, renamed
from cluster.export.config import ExportConfig
from cluster.export.job import export
from cluster.export.selection import VERDICT
from cluster.rows import ROW_SCHEMA
from tests.cluster.export.exports import PROMPTS, a_row, a_verdict

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")

NAMES = [
    *("video", "videos", "image", "audio", "key_", "url", "json", "txt", "mp4", "__key__", "__url__", "__local_path__"),
    *("layout_file_name", "clip_file_name", "clip_file", "many_file_names", "file_names", "file"),
    *("judge", "set_judge", "set_judge_2", "accepted", "strategies", "detected", "set_video", "set_video_2"),
    *("label", "additional_feature", "split", "", "Video", "a b", "ü"),
]


def an_output(root: Path, columns: Mapping[str, Any]) -> Store:
    """Two clips with these columns of one value each."""
    store = Store(str(root), extra_columns=pa.schema([(name, value.type) for name, value in columns.items()]))
    store.open_run({"steps": 4}, asked=2, info={})
    for number, prompt in enumerate(PROMPTS[:2], start=1):
        row = a_row(store, number, prompt, 0, "baseline")
        store.commit(row | {"extra": {name: value[0] for name, value in columns.items()}})
        store.put_evaluation("counter", row["key"], a_verdict(row["targets"], True))
    return store


def hf_rows(folder: Path, cache: Path) -> list[dict[str, Any]]:
    dataset = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))
    assert dataset.features["video"] == datasets.Video()
    rows: list[dict[str, Any]] = dataset.cast_column("video", datasets.Video(decode=False)).to_list()
    return rows


def web_rows(folder: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    shards = sorted(map(str, folder.glob("*.tar")))
    samples = webdataset.WebDataset(shards, shardshuffle=False)
    return [json.loads(sample["json"], parse_constant=refuse) for sample in samples]


def test_every_reserved_name_is_renamed_by_one_rule_and_said(tmp_path: Path) -> None:
    """All values are there under the names that are told, by both libraries; the clips are the clips."""
    store = an_output(tmp_path / "out", {name: pa.array([f"own {name}"]) for name in NAMES})
    names = {name: name for name in NAMES} | renamed(NAMES, [*ROW_SCHEMA.names, *VERDICT.names])
    assert names["video"] == "set_video_3"
    assert names["judge"] == "set_judge_3"
    assert names["layout_file_name"] == "layout_file_2"
    assert names["clip_file_name"] == "clip_file_2"
    assert names["label"] == "label"
    read: dict[str, list[dict[str, Any]]] = {}
    for form in ("hf", "webdataset"):
        said = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--to", form, "-o", str(tmp_path / form)])
        assert said.exit_code == 0, said.output
        told = " ".join(said.output.split())
        for old, new in names.items():
            assert (f"column {old!r} is {new!r} in this export" in told) == (old != new), told
        read[form] = hf_rows(tmp_path / form, tmp_path / "cache") if form == "hf" else web_rows(tmp_path / form)
    card = (tmp_path / "hf" / "README.md").read_text()
    for rows in read.values():
        assert len(rows) == 2
        for row in rows:
            assert {name: row[new] for name, new in names.items()} == {name: f"own {name}" for name in NAMES}
            assert row["judge"] == "counter"
    for row in read["hf"]:
        assert store.row(row["key"])["file_name"] in row["video"]["path"]  # type: ignore[index]
    assert all(f"{old!r} is {new!r}" in card for old, new in names.items() if old != new)
    web = datasets.load_dataset(
        "webdataset",
        data_files={"train": [str(path) for path in (tmp_path / "webdataset").glob("*.tar")]},
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(web) == 2
    for form in ("countbench", "vbench"):
        assert export(store, str(tmp_path / form), ExportConfig(to=form)).clips == 2


def test_names_do_not_depend_on_the_order_of_columns() -> None:
    """And never meet: those of a set, of the output and of the verdicts."""
    taken = [*ROW_SCHEMA.names, *VERDICT.names]
    found = renamed(NAMES, taken)
    assert renamed(NAMES[::-1], taken) == found
    all_names = [found.get(name, name) for name in NAMES]
    assert len({*all_names, *taken}) == len(all_names) + len(taken)
    assert not {*all_names} & {*RESERVED}


VALUES: dict[str, tuple[pa.Array, Any]] = {  # and what JSON has
    "nan": (pa.array([float("nan")]), None),
    "infinite": (pa.array([float("-inf")]), None),
    "half": (pa.array([1.5], pa.float16()), 1.5),
    "nested nan": (pa.array([{"a": [1.0, float("nan")]}]), {"a": [1.0, None]}),
    "raw": (pa.array([b"caf\xe9\x00"]), "Y2Fm6QA="),
    "fixed": (pa.array([b"ab"], pa.binary(2)), "YWI="),
    "raws": (pa.array([[b"\xff"]]), ["/w=="]),
    "day": (pa.array([datetime.date(2026, 1, 2)]), "2026-01-02"),
    "when": (pa.array([datetime.datetime(2026, 1, 2, 3)]), "2026-01-02T03:00:00"),
    "ns": (pa.array([7], pa.timestamp("ns")), "1970-01-01 00:00:00.000000007"),
    "zone": (pa.array([7], pa.timestamp("ns", tz="UTC")), "1970-01-01 00:00:00.000000007Z"),
    "time": (pa.array([7], pa.time64("ns")), "00:00:00.000000007"),
    "list of ns": (
        pa.array([[{"a": 7}]], pa.list_(pa.struct([("a", pa.time64("ns"))]))),
        [{"a": "00:00:00.000000007"}],
    ),
    "long": (pa.array([datetime.timedelta(days=1, milliseconds=500)]), 86400.5),
    "price": (pa.array([decimal.Decimal("1.50")]), "1.50"),
    "small price": (pa.array([decimal.Decimal("1.50")], pa.decimal32(5, 2)), "1.50"),
    "pairs": (pa.array([[("a", 7)]], pa.map_(pa.string(), pa.timestamp("ns"))), None),
    "name": (pa.array([uuid.UUID(int=7).bytes], pa.uuid()), "AAAAAAAAAAAAAAAAAAAABw=="),
    "nothing": (pa.nulls(1), None),
    "big": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    "sure": (pa.array([True]), True),
    "words": (pa.ListArray.from_arrays([0, 2], pa.array(["a", "b"]).dictionary_encode()), ["a", "b"]),
    "pair": (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), [1, 2]),
}


def test_values_of_every_type_are_read_by_real_libraries(tmp_path: Path) -> None:
    """Strict JSON in tars, with nothing rounded; and a table that `datasets` knows all types of."""
    store = an_output(tmp_path / "out", {name: column for name, (column, _) in VALUES.items()})
    for form in ("hf", "webdataset", "countbench", "vbench"):
        assert export(store, str(tmp_path / form), ExportConfig(to=form)).clips == 2
    for row in web_rows(tmp_path / "webdataset"):
        wanted = {name: value for name, (_, value) in VALUES.items()}
        wanted["pairs"] = [{"key": "a", "value": "1970-01-01 00:00:00.000000007"}]
        assert {name: row[name] for name in wanted} == wanted
    for row in hf_rows(tmp_path / "hf", tmp_path / "cache"):
        assert row["raw"] == b"caf\xe9\x00"
        assert row["name"] == uuid.UUID(int=7).bytes
        assert row["small price"] == decimal.Decimal("1.50")
        assert row["pairs"][0]["key"] == "a"
        assert row["words"] == ["a", "b"]
        assert row["big"] == 2**64 - 1


def test_fields_that_would_be_read_as_files(tmp_path: Path) -> None:
    """`datasets` looks for files in nested fields too."""
    column = pa.array([{"file_name": "x.mov", "inner": [{"clip_file_name": "y.mov"}], "n": 1}])
    store = an_output(tmp_path / "out", {"meta": column})
    notes = export(store, str(tmp_path / "hf"), ExportConfig(to="hf")).notes
    assert len(notes) == 2
    assert "'file_name' of 'meta' is 'file'" in notes[0] + notes[1]
    for row in hf_rows(tmp_path / "hf", tmp_path / "cache"):
        assert row["meta"] == {"file": "x.mov", "inner": [{"clip_file": "y.mov"}], "n": 1}
    assert export(store, str(tmp_path / "web"), ExportConfig(to="webdataset")).notes == ()
    for row in web_rows(tmp_path / "web"):
        assert row["meta"] == column[0].as_py()
