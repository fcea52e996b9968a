"""Clips that look alike: found among clips of the same targets, left out on demand, told in the card."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.dataset.store import Store
from cluster.evaluation.evaluate import evaluate
from cluster.export.similar import compared
from cluster.job.judge import judge_config
from numina.errors import InputError, OutputError
from pipelines.judges.thumbnail import thumbnail
from tests.cluster.report.conftest import judge, put_clip

NOUN = "circles"


def test_the_first_of_near_vectors_is_kept() -> None:
    """Within a group alone; a chain of neighbours doesn't pull in what is far from all that are kept."""
    angles = np.radians([0, 10, 20, 90, 0, 5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    vectors = np.concatenate([vectors, [[np.nan, np.nan]]])
    groups = np.array([0, 0, 0, 0, 1, 2, 0])
    nearest, first = compared(vectors, groups, np.cos(np.radians(12)))
    assert first.tolist() == [-1, 0, -1, -1, -1, -1, -1]  # 20° is near to 10°, which isn't kept
    assert nearest[:4] == pytest.approx(np.cos(np.radians([10, 10, 10, 70])), abs=1e-4)
    assert np.isnan(nearest[4:]).all()
    assert compared(vectors, groups, None)[1].max() == -1


def test_a_thumbnail_shows_where_things_are() -> None:
    """The same clip brighter is alike; the same disc elsewhere isn't."""
    clip = np.full((9, 64, 64, 3), 50, np.uint8)
    clip[:, :20, :20] = 200
    other = clip[:, ::-1]
    one = thumbnail(clip)
    assert one.shape == (144,)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert one @ thumbnail(clip + 20) == pytest.approx(1, abs=1e-3)
    assert one @ thumbnail(other) < 0.5
    assert np.isfinite(thumbnail(np.zeros((1, 64, 64, 3), np.uint8))).all()


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Real clips: three of two circles, of which two look the same, and one of three circles that looks like them."""
    store = Store(str(tmp_path / "out"))
    store.open_run({"steps": 2})
    made = (("a", "two red circles", 2), ("b", "two red circles on black", 2), ("c", "two red circles on white", 5))
    for id, prompt, shown in made:
        put_clip(store, prompt, {NOUN: 2}, {NOUN: shown}, id=id)
    put_clip(store, "three red circles", {NOUN: 3}, {NOUN: 2}, id="d")
    return store


def exported(store: Store, folder: Path, *options: str) -> list[dict[str, object]]:
    arguments = ["export", store.root, "--to", "hf", "-o", str(folder), *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows: list[dict[str, object]] = pq.read_table(folder / "metadata.parquet").to_pylist()
    return rows


def test_clips_that_look_alike_are_left_out_on_demand(output: Store, tmp_path: Path) -> None:
    """By the thumbnails that every judge keeps; the card says how many, and how much the others differ."""
    with pytest.raises(OutputError, match="no verdict with an embedding"):
        exported(output, tmp_path / "none", "--distinct", "0.95")
    evaluate(output, judge_config("counter", {}))
    rows = exported(output, tmp_path / "all")
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[0]["nearest_similarity"] == rows[1]["nearest_similarity"] == pytest.approx(1, abs=1e-3)
    assert rows[2]["nearest_similarity"] < 0.95
    assert rows[3]["nearest_similarity"] is None, "no other clip asks for three"
    rows = exported(output, tmp_path / "distinct", "--distinct", "0.95")
    assert [row["id"] for row in rows] == ["a", "c", "d"]
    assert rows[0]["nearest_similarity"] == rows[1]["nearest_similarity"] < 0.95
    card = (tmp_path / "distinct/README.md").read_text()
    assert "| too similar to another clip of the same targets | 1 |" in card
    assert "| circles | 3 | 100.0 % |" in card
    assert "| 2 | 2 | 66.7 % |" in card
    assert json.loads((tmp_path / "distinct/export.json").read_text())["distinct"] == 0.95
    assert "distinct" not in json.loads((tmp_path / "all/export.json").read_text())


def test_clip_comes_before_thumbnails(output: Store, tmp_path: Path) -> None:
    """A judge that doesn't count embeds what a clip shows; by its embeddings all of these differ."""
    keys = sorted(output.committed())
    for place, key in enumerate(keys):
        judge(output, "counter", key, {NOUN: 2}, {NOUN: 2})
        embedding = list(np.eye(4, dtype=np.float16)[place])
        output.put_evaluation("clip", key, {"clip_score": 30.0, "temporal_consistency": 0.9, "embedding": embedding})
    rows = exported(output, tmp_path / "clip", "--distinct", "0.95", "--judge", "counter")
    assert len(rows) == 4
    assert "by the embeddings of the judge clip" in (tmp_path / "clip/README.md").read_text()


def test_a_cosine_is_asked_for(output: Store, tmp_path: Path) -> None:
    """In (0, 1]."""
    with pytest.raises(InputError, match="--distinct is 95"):
        exported(output, tmp_path / "none", "--distinct", "95")
