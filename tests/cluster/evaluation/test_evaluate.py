"""Evaluation: verdicts beside the rows, a missing video scores 0 and is named, nothing is judged twice."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.tables import shown_count
from cluster.dataset.store import Store
from cluster.evaluation.accepted import accepted_share
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.summary import compare_outputs, summarize, write_summary
from cluster.job.config import load_job
from cluster.job.judge import judge_config
from numina.errors import ConfigError, InputError, OutputError
from numina.prompts.targets import Target
from pipelines.judges import JudgeConfig
from pipelines.testbed.world import clips
from pipelines.video.mp4 import encode_mp4
from tests.cluster.tasks import row_key

COUNTER = judge_config("counter")
STRATEGIES = ("right", "wrong", "gone", "torn")


def put(store: Store, index: int, strategy: str, *, more: int = 0) -> dict[str, Any]:
    """A row of the world's own video number `index`; with `more` objects asked than it shows."""
    prompts, videos = clips(len(STRATEGIES), 0)
    prompt, video = prompts[index], videos[index]
    targets = [Target(target.noun, target.count + more) for target in prompt.targets]
    key = row_key(
        prompt=prompt.text,
        negative_prompt=None,
        targets=targets,
        seed=index,
        config={"strategy": strategy},
        model_revision="",
        algorithm_version=1,
    )
    name, digest = store.put_video(key, encode_mp4(video, fps=8, crf=18))
    row = {
        "key": key,
        "file_name": name,
        "video_sha256": digest,
        "prompt": prompt.text,
        "targets": targets,
        "strategy": strategy,
        "seed": index,
        "sample": 0,
    }
    store.commit(row)
    return row


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    """Rows of the world's own videos: as asked, one object too many asked, a video that is gone, and a torn one."""
    store = Store(str(tmp_path / "out"))
    store.open_run({})
    for index, strategy in enumerate(STRATEGIES):
        row = put(store, index, strategy, more=index == 1)
        file = tmp_path / "out" / row["file_name"]
        if strategy == "gone":
            file.unlink()
        elif strategy == "torn":
            file.write_bytes(file.read_bytes()[:100])
    return store


def verdicts_of(store: Store, config: JudgeConfig, **where: Any) -> dict[str, dict[str, Any]]:
    """All verdicts by key, after an evaluation."""
    problems = evaluate(store, config, **where)
    verdicts = {verdict["key"]: verdict for verdict in store.evaluations(config.name).to_pylist()}
    assert problems == {key: own["problem"] for key, own in verdicts.items() if own["problem"]}
    return verdicts


def by_strategy(store: Store, config: JudgeConfig) -> dict[str, dict[str, Any]]:
    verdicts = verdicts_of(store, config)
    return {row["strategy"]: verdicts[row["key"]] for row in store.rows().to_pylist()}


def test_verdicts_are_true_and_kept(dataset: Store) -> None:
    """The committed mp4 counts as its scene does; what can't be judged scores 0 and says why."""
    verdicts = by_strategy(dataset, COUNTER)
    assert {name: own["count_accuracy"] for name, own in verdicts.items()} == {
        "right": 1.0,
        "wrong": 0.0,
        "gone": 0.0,
        "torn": 0.0,
    }
    right = verdicts["right"]
    asked = clips(1, 0)[0][0].targets
    assert right["detected"] == [{"noun": target.noun, "frames": [target.count] * 17} for target in asked]
    assert right["problem"] is None
    assert verdicts["gone"]["problem"] == "missing"
    assert verdicts["torn"]["problem"].startswith("unreadable: the video can't be decoded")
    assert verdicts["gone"]["detected"] is None


def test_nothing_is_judged_twice_but_what_could_not_be(dataset: Store) -> None:
    """A second evaluation looks at no video that has a verdict; one that came back is judged anew."""
    first = by_strategy(dataset, COUNTER)
    put(dataset, 2, "gone")  # the same bytes under the same name
    asked: list[str] = []

    def read(name: str) -> bytes:
        asked.append(name)
        return Store.read(dataset, name)

    with patch.object(dataset, "read", read):
        again = by_strategy(dataset, COUNTER)
    assert len(asked) == 2
    assert again["gone"]["count_accuracy"] == 1.0
    assert by_strategy(dataset, COUNTER)["gone"]["problem"] is None
    assert again["right"]["seconds"] == first["right"]["seconds"]


def test_settings_dont_mix_under_one_name(dataset: Store) -> None:
    """Verdicts of every frame and of every fourth one aren't the same judge's."""
    evaluate(dataset, COUNTER)
    with pytest.raises(OutputError, match="or another name with name="):
        evaluate(dataset, judge_config("counter", {"every": 4}))
    verdicts = by_strategy(dataset, judge_config("counter", {"every": 4, "name": "quick"}))
    assert len(verdicts["right"]["detected"][0]["frames"]) == 5
    assert dataset.judges() == ["counter", "quick"]
    assert summarize(dataset).agreement == {"counter, quick": 1.0}


def test_several_judges_say_what_one_says(dataset: Store, tmp_path: Path) -> None:
    """As Ray actors, with their verdicts kept in the output."""
    config = judge_config("counter", {"name": "two"})
    with patch("cluster.evaluation.evaluate.CLIPS_AT_ONCE", 1):
        parallel = verdicts_of(dataset, config, workers=2)
    alone = verdicts_of(dataset, COUNTER)
    names = ("count_accuracy", "detected", "problem")
    assert {key: [own[name] for name in names] for key, own in parallel.items()} == {
        key: [own[name] for name in names] for key, own in alone.items()
    }
    assert len(list((tmp_path / "out/evaluations/two").glob("*.parquet"))) == len(STRATEGIES)
    whole = Store(str(tmp_path / "whole"))
    whole.open_run({})
    put(whole, 0, "numina")
    judged = verdicts_of(whole, COUNTER)
    with patch("ray.init", side_effect=AssertionError("nothing is left to judge")):
        assert verdicts_of(whole, COUNTER, workers=2) == judged


def test_a_noun_that_the_judge_cant_know_is_named(tmp_path: Path) -> None:
    """Cats aren't counted as shapes."""
    store = Store(str(tmp_path))
    store.open_run({})
    row = put(store, 0, "numina")
    cats = {"key": "a" * 32, "prompt": "three cats", "targets": [Target("cats", 3)]}
    store.commit({**row, **cats})
    with pytest.raises(InputError, match="use a detector as the judge"):
        evaluate(store, COUNTER)


def test_an_empty_dataset_is_an_error(tmp_path: Path) -> None:
    """Not a table of nothing."""
    with pytest.raises(OutputError, match="holds no rows to judge"):
        evaluate(Store(str(tmp_path)), COUNTER)
    with pytest.raises(OutputError, match="holds no rows"):
        summarize(Store(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("conter", {}, "clip, counter, grounding-dino, owlv2, published"),
        ("published", {}, "needs weights: give judge.path=FOLDER"),
        ("published", {"path": "/nowhere"}, None),
        ("counter", {"thresold": 1}, "thresold"),
        ("counter", {"every": 0}, "at least 1"),
    ],
)
def test_a_judge_that_cant_be_is_refused(name: str, changes: dict[str, Any], message: str | None) -> None:
    """By name, by setting; weights are looked for when they are loaded."""
    if message is None:
        assert judge_config(name, changes).path == "/nowhere"
        return
    with pytest.raises(ConfigError, match=message):
        judge_config(name, changes)


def test_a_judge_may_be_a_file(tmp_path: Path) -> None:
    """Of the form of those shipped."""
    file = tmp_path / "mine.yaml"
    file.write_text("kind: counter\nname: mine\nevery: 2\n")
    assert judge_config(str(file), {"batch": 3}) == JudgeConfig(kind="counter", name="mine", every=2, batch=3)


class TestSummary:
    """What verdicts come to."""

    def test_it_holds_every_figure(self, dataset: Store, tmp_path: Path) -> None:
        """Per strategy, in all and per noun, count and model; the problems by file; JSON and Parquet say the same."""
        evaluate(dataset, COUNTER)
        summary = summarize(dataset)
        [judge] = summary.judges
        own = {found.strategy: found for found in judge.strategies}
        assert own["right"].whole.measures["count_accuracy"].mean == 1.0
        assert own["wrong"].whole.measures["within_one_accuracy"].mean == 1.0
        assert own["wrong"].whole.measures["signed_bias"].mean == -1.0
        assert (own["gone"].missing, own["gone"].accepted, own["gone"].cost_per_accepted) == (1, 0, None)
        assert {group.by for group in own["right"].groups} == {"all", "noun", "count", "nouns", "model"}
        assert {name.split("-")[0].split("/")[0] for name, _ in judge.problems} == {"videos"}
        assert len(judge.problems) == 2

        write_summary(dataset, summary)
        told = json.loads((tmp_path / "out/evaluations/summary.json").read_text())
        table = pq.read_table(tmp_path / "out/evaluations/summary.parquet").to_pylist()
        [line] = [
            line
            for line in table
            if (line["strategy"], line["by"], line["measure"]) == ("right", "all", "count_accuracy")
        ]
        assert line["mean"] == 1.0
        assert told["judges"][0]["strategies"][0]["groups"][0]["measures"]["count_accuracy"]["mean"] == 0.0
        assert dataset.judges() == ["counter"], "a summary is no judge"

    def test_samples_of_a_prompt_are_one_unit(self, tmp_path: Path) -> None:
        """Ten clips of one prompt say less of prompts than ten prompts do."""
        store = Store(str(tmp_path))
        store.open_run({})
        row = put(store, 0, "numina")
        for sample in range(1, 4):
            store.commit({**row, "key": f"{sample}" * 32, "sample": sample})
        evaluate(store, COUNTER)
        whole = summarize(store).judges[0].strategies[0].whole
        assert (whole.prompts, whole.clips) == (1, 4)

    def test_clip_scores_of_another_judge_stand_beside(self, dataset: Store) -> None:
        """TC and CLIP are of whichever judge measured them."""
        evaluate(dataset, COUNTER)
        key = next(row["key"] for row in dataset.rows().to_pylist() if row["strategy"] == "right")
        dataset.put_evaluation("clip", key, {"clip_score": 31.5, "temporal_consistency": 0.97})
        [judge] = summarize(dataset).judges
        measures = next(own for own in judge.strategies if own.strategy == "right").whole.measures
        assert (measures["clip_score"].mean, measures["temporal_consistency"].mean) == (31.5, 0.97)

    def test_two_outputs_are_compared_prompt_by_prompt(self, tmp_path: Path) -> None:
        """Only on prompts that both have; outputs of other prompts aren't compared at all."""
        stores = [Store(str(tmp_path / name)) for name in ("one", "other", "foreign")]
        for store, index in zip(stores, (0, 0, 1), strict=True):
            store.open_run({})
            put(store, index, "numina")
        put(stores[0], 2, "numina")
        for store in stores:
            evaluate(store, COUNTER)
        [(name, note, prompts, difference)] = compare_outputs(stores[0], stores[1], "counter")
        assert (name, note, prompts, difference.mean) == ("numina", "1 prompts are in only one output", 1, 0.0)
        with pytest.raises(InputError, match="no prompt in common"):
            compare_outputs(stores[1], stores[2], "counter")
        with pytest.raises(InputError, match="has no verdicts of 'owlv2'"):
            compare_outputs(stores[1], stores[2], "owlv2")


def test_the_verb_prints_counts_sums_and_what_scores_0(dataset: Store) -> None:
    """Settings of the judge are overrides; the summary is written."""
    done = CliRunner().invoke(app, ["evaluate", dataset.root, "every=4"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "judged by counter" in done.output
    assert "missing" in done.output
    assert "summary.json" in done.output


def test_shown_counts_say_when_frames_disagree() -> None:
    """One number where all frames agree, else the commonest and its share."""
    assert shown_count([3, 3, 3]) == "3"
    assert shown_count([3, 2, 3]) == "3 (2/3)"


def test_older_verdicts_are_read(dataset: Store, tmp_path: Path) -> None:
    """Those without the newer columns count as before."""
    key = next(row["key"] for row in dataset.rows().to_pylist() if row["strategy"] == "right")
    old = pa.table({"key": [key], "judge": ["counter"], "count_accuracy": [0.25]})
    folder = tmp_path / "out/evaluations/counter"
    folder.mkdir(parents=True)
    pq.write_table(old, folder / f"{key}.parquet")
    assert by_strategy(dataset, COUNTER)["right"]["count_accuracy"] == 0.25


def test_how_often_a_judge_accepted_is_counted(dataset: Store, tmp_path: Path) -> None:
    """Of the judged attempts of verified strategies: here of two variants' one clip each, of which one is as asked."""
    words = [f"output={dataset.root}", "verify.judge=counter", "variants={right: {}, wrong: {}, gone: {}}"]
    verified = load_job(None, [*words, "strategies=[right+verified,wrong+verified,gone]"])
    assert accepted_share(verified) is None
    evaluate(dataset, COUNTER)
    assert accepted_share(verified) == 0.5
    assert accepted_share(load_job(None, [*words, "strategies=[wrong+verified,right,gone]"])) is None
    assert accepted_share(load_job(None, [*words[1:], f"output={tmp_path}/new", "strategies=[right+verified]"])) is None
