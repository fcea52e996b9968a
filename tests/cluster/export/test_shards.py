"""Exports that grow: shards are closed once, hold each clip once and are read by the real libraries."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.dataset.leases import Leases
from cluster.dataset.store import Store
from cluster.evaluation.outcomes import outcomes
from cluster.export.config import ExportConfig
from cluster.export.job import export
from cluster.job.strategy import ACCEPTED, BEST, Strategy, strategy_record
from numina.errors import InputError, OutputError
from numina.prompts.targets import parse_targets
from pipelines.video.mp4 import decode_mp4
from tests.cluster.export.exports import FRAMES, SIZE, a_row, a_verdict, an_output
from tests.cluster.export.shards import check_shards, keys_in, manifest

datasets = pytest.importorskip("datasets")
FORMS = pytest.mark.parametrize("form", ["webdataset", "parquet"])
VERIFIED = Strategy(name="numina+verified", base="numina", strengths=(1.0, 1.0, 1.0), select=ACCEPTED)
SEARCHED = Strategy(name="baseline+seed_search", base="baseline", strengths=(1.0, 1.0), select=BEST)
PROMPT = "Three cats chasing two dogs."


def grown(store: Store, folder: Path | str, **settings: Any) -> Any:
    return export(Store.reader(store.place), str(folder), ExportConfig(**{"to": "webdataset", **settings}))


class Output:
    """An output whose clips are committed and judged one by one."""

    def __init__(self, root: Path, asked: int, *strategies: Strategy) -> None:
        self.store, self.root = Store(str(root)), root
        info: dict[str, Any] = {"strategies": [*map(strategy_record, strategies)]}
        if VERIFIED in strategies:
            info["verify"] = {"judge": "counter", "accept": 0.9}
        self.store.open_run({"steps": 4}, asked=asked, info=info)
        self.judged = dict[str, dict[str, Any]]()

    def make(self, sample: int, attempt: int, right: bool | None, strategy: str = "numina", **columns: Any) -> str:
        """A clip, judged right or wrong, or not judged; its key."""
        row = a_row(self.store, 1, PROMPT, 100 * sample + attempt, strategy)
        row |= {"sample": sample, "attempt": attempt, "chain": f"{sample:030x}{'ab' if strategy == 'numina' else 'cd'}"}
        self.store.commit(row | columns)
        if right is not None:
            self.judge(row, right)
        return str(row["key"])

    def judge(self, row: dict[str, Any], right: bool) -> None:
        own = {name: row[name] for name in ("chain", "attempt", "strength")}
        self.judged[row["key"]] = a_verdict(parse_targets(PROMPT), right) | own
        self.store.put_evaluation("counter", row["key"], self.judged[row["key"]])


# --- what is in them ---


@FORMS
def test_shards_hold_each_clip_once_and_are_listed(form: str, tmp_path: Path) -> None:
    """Equally many clips in each but the last; manifest and index say what is in them."""
    store = an_output(tmp_path / "out")
    result = grown(store, tmp_path / "x", to=form, shard_clips=5)
    assert (result.clips, result.lost) == (12, {})
    assert [shard["clips"] for shard in manifest(tmp_path / "x")] == [5, 5, 2]
    assert sorted(check_shards(tmp_path / "x", store)) == sorted(store.committed())


@FORMS
def test_later_clips_come_in_new_shards(form: str, tmp_path: Path) -> None:
    """Closed shards stay as they are, to the byte and the time; no clip comes twice."""
    output = Output(tmp_path / "out", 7, Strategy(name="numina", base="numina"))
    for sample in range(3):
        output.make(sample, 0, True)
    grown(output.store, tmp_path / "x", to=form, shard_clips=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").glob("shard-*")}
    for sample in range(3, 7):
        output.make(sample, 0, True)
    assert grown(output.store, tmp_path / "x", to=form, shard_clips=2).clips == 7
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [shard["clips"] for shard in manifest(tmp_path / "x")] == [2, 1, 2, 2]
    assert sorted(check_shards(tmp_path / "x", output.store)) == sorted(output.store.committed())


def test_trainers_take_shards_of_their_own(tmp_path: Path) -> None:
    """`shards[rank::world]` of the manifest: together all, none twice."""
    store = an_output(tmp_path / "out")
    grown(store, tmp_path / "x", shard_clips=2)
    names = [shard["name"] for shard in manifest(tmp_path / "x")]
    taken = [names[rank::4] for rank in range(4)]
    assert sorted(name for own in taken for name in own) == names
    keys = [key for own in taken for name in own for key in keys_in(tmp_path / "x" / name)]
    assert sorted(keys) == sorted(store.committed())


def test_the_index_leads_to_the_bytes(tmp_path: Path) -> None:
    """`offset` and `bytes` cut a video out of its tar."""
    store = an_output(tmp_path / "out", samples=1)
    grown(store, tmp_path / "x", shard_clips=4)
    rows = {row["key"]: row for row in store.rows().to_pylist()}
    index = pq.read_table(tmp_path / "x" / "index").to_pylist()
    assert len(index) == 6
    for own in index:
        shard = (tmp_path / "x" / own["shard"]).read_bytes()
        video = shard[own["offset"] : own["offset"] + own["bytes"]]
        assert hashlib.sha256(video).hexdigest() == rows[own["key"]]["video_sha256"]


# --- while the job runs ---


def following(output: Output, folder: Path, steps: list[Callable[[], object]], **settings: Any) -> list[list[str]]:
    """Follow; after each look that left the job at work the next step happens. The keys that were exported by then."""
    driver = Leases(output.store.files, "0" * 31 + "1")  # of a job that is at work
    driver.lease(["1" * 32])
    seen, left = list[list[str]](), iter(steps)

    def sleep(seconds: float) -> None:
        seen.append(exported_keys(folder))
        step = next(left, None)
        if step is None:
            driver.release()
        else:
            step()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cluster.export.growing.sleep", sleep)
        grown(output.store, folder, follow=True, **settings)
    return [*seen, exported_keys(folder)]


def exported_keys(folder: Path) -> list[str]:
    found = manifest(folder) if (folder / "MANIFEST.json").exists() else []
    return [key for shard in found for key in keys_in(folder / shard["name"])]


def test_a_clip_waits_until_its_sample_is_settled(tmp_path: Path) -> None:
    """Not while it may be judged or made again; then what the strategy keeps, and that alone. The last, short shard is
    closed when the job has ended."""
    output, made = Output(tmp_path / "out", 3, VERIFIED), dict[str, str]()

    def make(name: str, *clip: Any) -> Callable[[], object]:
        return lambda: made.update({name: output.make(*clip)})

    steps = [
        make("a0", 0, 0, False),  # another attempt follows
        make("a1", 0, 1, None),  # not judged yet
        lambda: output.judge({**output.store.row(made["a1"])}, True),  # type: ignore[dict-item]
        make("b0", 1, 0, True),
        make("c0", 2, 0, False),
        make("c1", 2, 1, False),
        make("c2", 2, 2, False),  # no attempt is left: rejected
    ]
    seen = following(output, tmp_path / "x", steps, shard_clips=1, only="all")
    kept = [[], [], [], ["a1"], ["a1", "b0"], ["a1", "b0"], ["a1", "b0"], ["a1", "b0", "c0"], ["a1", "b0", "c0"]]
    assert seen == [[made[name] for name in names] for names in kept]
    rows = check_shards(tmp_path / "x", output.store)
    assert [rows[made[name]]["accepted"] for name in ("a1", "b0", "c0")] == [True, True, False]


def test_only_accepted_clips_are_exported(tmp_path: Path) -> None:
    """Those of a rejected sample never are, also when the job has ended."""
    output = Output(tmp_path / "out", 2, VERIFIED)
    good = output.make(0, 0, True)
    for attempt in range(3):
        output.make(1, attempt, False)
    assert following(output, tmp_path / "x", [], shard_clips=10, only="accepted") == [[], [good]]


def test_a_clip_of_two_strategies_is_exported_once(tmp_path: Path) -> None:
    """`numina` keeps the first attempt whatever the judge says, `numina+verified` the accepted one: both are exported
    when the sample is settled, and each says whose it is."""
    output = Output(tmp_path / "out", 1, Strategy(name="numina", base="numina"), VERIFIED)
    first = output.make(0, 0, False)
    grown(output.store, tmp_path / "early", only="all")  # no job is at work: all is taken as it is
    assert check_shards(tmp_path / "early", output.store)[first]["strategies"] == ["numina", "numina+verified"]
    seen = following(output, tmp_path / "x", [lambda: output.make(0, 1, True)])
    assert (seen[0], len(seen[-1])) == ([], 2)
    rows = check_shards(tmp_path / "x", output.store)
    assert {tuple(row["strategies"]) for row in rows.values()} == {("numina",), ("numina+verified",)}
    # What `numina+verified` keeps of the sample was exported: a later clip doesn't take its place.
    grown(output.store, tmp_path / "early", only="all")
    assert list(check_shards(tmp_path / "early", output.store)) == [first]


def test_a_seed_search_waits_for_all_its_clips(tmp_path: Path) -> None:
    """And for its judge."""
    output = Output(tmp_path / "out", 2, SEARCHED)
    output.make(0, 0, False, "baseline")
    steps = [lambda: output.make(0, 1, None, "baseline")]
    steps += [lambda: [output.judge(row, True) for row in output.store.rows().to_pylist() if row["attempt"] == 1]]
    seen = following(output, tmp_path / "x", steps, shard_clips=1)
    assert [len(keys) for keys in seen] == [0, 0, 1, 1]
    assert output.store.row(seen[-1][0])["attempt"] == 1  # type: ignore[index]


def test_a_verdict_that_changes_changes_no_export(tmp_path: Path) -> None:
    """A video came back and its first attempt is judged anew: the sample is exported already. The judge and the score
    from which it accepts are those with which the export began."""
    output = Output(tmp_path / "out", 1, VERIFIED)
    first, second = output.make(0, 0, False), output.make(0, 1, True)
    grown(output.store, tmp_path / "x", only="accepted")
    output.store.files.remove(f"evaluations/counter/{first}.parquet")
    output.store.put_evaluation("counter", first, output.judged[second] | {"attempt": 0})
    output.store.put_evaluation("owlv2", first, output.judged[second])
    changed = {row["key"]: row for row in output.store.evaluations("counter").to_pylist()}
    assert outcomes(VERIFIED, output.store.rows().to_pylist(), changed)[0].kept["key"] == first
    assert grown(output.store, tmp_path / "x", only="accepted").clips == 1
    assert list(check_shards(tmp_path / "x", output.store)) == [second]
    record = json.loads((tmp_path / "x" / "export.json").read_text())
    assert record["fixed"] == {"judge": "counter", "accept": 0.9}


def test_a_following_export_ends_with_the_job(tmp_path: Path) -> None:
    """It waits for the clips of a job that was killed, until they are made by another start."""
    output = Output(tmp_path / "out", 2, Strategy(name="numina", base="numina"))
    output.make(0, 0, None)
    waits = list[float]()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            output.make(1, 0, None)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cluster.export.growing.sleep", sleep)
        assert grown(output.store, tmp_path / "x", follow=True).clips == 2
    assert len(waits) == 3
    assert min(waits) >= 2


# --- what goes wrong ---


@FORMS
def test_what_a_killed_export_left_counts_for_nothing(form: str, tmp_path: Path) -> None:
    """A shard without its line in the manifest is written again, half a file goes."""
    store, folder = an_output(tmp_path / "out"), tmp_path / "x"
    grown(store, folder, to=form, shard_clips=5)
    whole = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    lines = (folder / "MANIFEST.json").read_text().splitlines()
    (folder / "MANIFEST.json").write_text("\n".join([*lines[:2], lines[2].rstrip(","), "]}"]))  # without the last one
    (folder / max(whole)).write_bytes(b"another's")
    (folder / ".numina-killed").write_bytes(b"half")
    (folder / "leases" / f"{'0' * 32}.json").write_text("{}")
    os.utime(folder / "leases" / f"{'0' * 32}.json", (0, 0))
    assert grown(store, folder, to=form, shard_clips=5).clips == 12
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == whole
    check_shards(folder, store)
    assert not list(folder.glob(".numina-*"))
    assert not list((folder / "leases").iterdir())


@FORMS
def test_a_damaged_shard_is_written_again(form: str, tmp_path: Path) -> None:
    """From the same clips, in the same order, to the same bytes."""
    store, folder = an_output(tmp_path / "out"), tmp_path / "x"
    grown(store, folder, to=form, shard_clips=5)
    whole = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    first, second, _ = sorted(whole)
    (folder / first).unlink()
    (folder / second).write_bytes(b"half")
    assert grown(store, folder, to=form, shard_clips=5).clips == 12
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == whole
    check_shards(folder, store)


def test_a_lost_video_leaves_no_gap(tmp_path: Path) -> None:
    """The next clip takes its place; when it comes back it is exported."""
    store, folder = an_output(tmp_path / "out"), tmp_path / "x"
    name = store.rows()["file_name"][3].as_py()
    video = (tmp_path / "out" / name).read_bytes()
    (tmp_path / "out" / name).unlink()
    result = grown(store, folder, shard_clips=5)
    assert (result.clips, result.lost) == (11, {name: "missing"})
    assert [shard["clips"] for shard in manifest(folder)] == [5, 5, 1]
    (tmp_path / "out" / name).write_bytes(video)
    assert grown(store, folder, shard_clips=5).clips == 12
    assert sorted(check_shards(folder, store)) == sorted(store.committed())


def test_one_export_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    """The second one is refused while the first one lives."""
    output, folder = Output(tmp_path / "out", 1, VERIFIED), tmp_path / "x"
    refused = list[str]()

    def second() -> None:
        with pytest.raises(OutputError, match="one export at a time"):
            grown(output.store, folder, follow=True)
        refused.append("second")

    thread_safe = [lambda: second(), lambda: output.make(0, 0, True)]
    following(output, folder, thread_safe)  # type: ignore[arg-type]
    assert refused
    assert threading.active_count() < 20


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    """Forms without shards have nothing to follow with."""
    with pytest.raises(InputError, match="--to hf has none; choose from webdataset, parquet"):
        ExportConfig(to="hf", follow=True)
    output = Output(tmp_path / "out", 1, Strategy(name="numina", base="numina"))
    output.make(0, 0, None)
    with pytest.raises(OutputError, match="--only accepted needs a judge"):
        grown(output.store, tmp_path / "x", only="accepted")
    assert not (tmp_path / "x").exists()


def test_a_folder_of_an_earlier_version_is_left_as_it_is(tmp_path: Path) -> None:
    """Its record names no rule; its tars are not overwritten."""
    store, folder = an_output(tmp_path / "out"), tmp_path / "x"
    grown(store, folder)
    record = json.loads((folder / "export.json").read_text())
    del record["fixed"]
    (folder / "export.json").write_text(json.dumps(record))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="earlier version, whose shards don't grow: give another folder"):
        grown(store, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# --- read back ---


def with_layout(output: Output) -> str:
    """A clip with a refined layout; its key."""
    labels = np.zeros((2, 2, 4, 4), np.int16)
    labels[0, :, 1:3, 0] = 1
    arrays = {"nouns": np.array(["cats", "dogs"]), "labels": labels * 0, "refined": labels}
    arrays["regions"] = labels.astype(np.int8)
    name = output.store.put_layout("0" * 32, arrays)
    return output.make(0, 0, True, layout_file=name)


def annotated(own: dict[str, Any]) -> None:
    """The annotations of that clip."""
    assert own["layout"] == "refined"
    assert [category["name"] for category in own["categories"]] == ["cats", "dogs"]
    assert own["categories"][0]["detected"] == [3] * FRAMES
    assert [box["bbox"] for box in own["annotations"]] == [[0, SIZE / 4, SIZE / 4, SIZE / 2]] * 2
    assert [(own["first_frame"], own["last_frame"]) for own in own["images"]] == [(0, 0), (1, 4)]


def test_datasets_reads_parquet(tmp_path: Path) -> None:
    """The folder as it is gives videos as its Video feature, and every column."""
    output = Output(tmp_path / "out", 2, VERIFIED)
    key, plain = with_layout(output), output.make(1, 0, True)
    grown(output.store, tmp_path / "x", to="parquet", shard_clips=1)
    dataset = datasets.load_dataset(str(tmp_path / "x"), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.features["video"] == datasets.Video()
    rows = {row["key"]: row for row in dataset.cast_column("video", datasets.Video(decode=False))}
    assert rows.keys() == {key, plain}
    annotated(rows[key]["annotations"])
    assert rows[plain]["annotations"] is None
    assert decode_mp4(rows[key]["video"]["bytes"]).shape == (FRAMES, SIZE, SIZE, 3)
    assert (rows[key]["accepted"], rows[key]["strategies"]) == (True, ["numina+verified"])


def test_both_libraries_read_tars(tmp_path: Path) -> None:
    """`webdataset` by the manifest's names, `datasets` the folder as it is."""
    import webdataset

    output = Output(tmp_path / "out", 2, VERIFIED)
    key, plain = with_layout(output), output.make(1, 0, True)
    grown(output.store, tmp_path / "x", shard_clips=1)
    names = [str(tmp_path / "x" / shard["name"]) for shard in manifest(tmp_path / "x")]
    samples = {own["__key__"]: own for own in webdataset.WebDataset(names, shardshuffle=False)}
    assert samples.keys() == {key, plain}
    annotated(json.loads(samples[key]["json"])["annotations"])
    dataset = datasets.load_dataset(str(tmp_path / "x"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = {row["__key__"]: row for row in dataset.cast_column("mp4", datasets.Video(decode=False))}
    annotated(rows[key]["json"]["annotations"])
    assert decode_mp4(rows[plain]["mp4"]["bytes"]).shape == (FRAMES, SIZE, SIZE, 3)


def test_hugging_face_folders_have_annotations_beside(tmp_path: Path) -> None:
    """A line for each clip that has a layout; `load_dataset` reads the folder as before."""
    output = Output(tmp_path / "out", 2, VERIFIED)
    key, _ = with_layout(output), output.make(1, 0, True)
    grown(output.store, tmp_path / "x", to="hf")
    (line,) = (tmp_path / "x" / "annotations.jsonl").read_text().splitlines()
    made = json.loads(line)
    annotated(made)
    assert (made["key"], made["caption"]) == (key, PROMPT)
    assert "boxes and masks of 1 clips" in (tmp_path / "x" / "README.md").read_text()
    dataset = datasets.load_dataset(str(tmp_path / "x"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == 2
