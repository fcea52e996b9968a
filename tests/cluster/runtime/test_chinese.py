"""A Chinese prompt set end to end: a real model with a tokenizer of SentencePiece's kind, layouts, mp4s, report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.prompts.write import make_prompts
from cluster.report import build_report
from cluster.runtime.run import run_job
from numina.errors import PromptSetError

Job = Callable[..., JobConfig]
CATS = [{"noun": "猫", "count": 3}]
BOTH = [*CATS, {"noun": "狗", "count": 2}]
ROWS: list[dict[str, Any]] = [
    {"id": "given", "prompt": "三只猫和两只狗在草地上", "targets": BOTH},
    {"id": "read", "prompt": "三只猫和两只狗在海边"},
    {"id": "wide", "prompt": "３只猫，２只ｄｏｇｓ", "targets": [*CATS, {"noun": "ｄｏｇｓ", "count": 2}]},
    {"id": "start", "prompt": "猫和三只气球", "targets": [{"noun": "猫", "count": 1}, {"noun": "气球", "count": 3}]},
    {"id": "joined", "prompt": "猫狗在草地上", "targets": BOTH},
    {"id": "plain", "prompt": "草地在海边"},
]


@pytest.fixture
def chinese_job(joining_job: Job, twin: Callable[[str], Path], tmp_path: Path) -> Job:
    make_prompts(ROWS, str(tmp_path / "chinese.parquet"))
    given = [f"prompts={tmp_path}/chinese.parquet", f"model.path={twin('sentencepiece')}", "parallel.ulysses=1"]
    return lambda *overrides: joining_job(*given, *overrides)


def test_nouns_in_one_token_are_a_bad_row(chinese_job: Job) -> None:
    """Found before any work, by the tokenizer alone; a plain generation doesn't look at nouns."""
    with pytest.raises(PromptSetError, match=r"row 4: noun '猫' .*'猫狗', so that they can't be told apart"):
        prepare(chinese_job())
    assert prepare(chinese_job("strategies=[baseline]")).asked == len(ROWS)


def test_a_chinese_set_runs_end_to_end(chinese_job: Job, tmp_path: Path) -> None:
    """Targets given and read are identified noun by noun; counts, layouts and the report name them as the set does."""
    outcome = run_job(prepare(chinese_job("strategies=[baseline,numina]", "prompts_bad=skip")))
    assert (outcome.total, outcome.done, outcome.failed, outcome.skipped) == (10, 10, 0, 1)
    rows = {(row["id"], row["strategy"]): row for row in Store(str(tmp_path / "out")).rows().to_pylist()}
    assert rows["read", "numina"]["targets"] == BOTH
    for id in ("given", "read", "wide", "start"):
        row = rows[id, "numina"]
        assert [noun["noun"] for noun in row["identified"]] == [target["noun"] for target in row["targets"]]
        layout = np.load(tmp_path / "out" / row["layout_file"])
        assert layout["nouns"].tolist() == [target["noun"] for target in row["targets"]]
    assert rows["plain", "numina"]["targets"] == []
    assert rows["plain", "numina"]["identified"] is None
    assert not {key for key in rows if key[0] == "joined"}
    [rejected] = [json.loads(line) for line in (tmp_path / "out/REJECTED.jsonl").read_text().splitlines()]
    assert (rejected["row"], rejected["column"], rejected["value"]) == (4, "prompt", "猫狗在草地上")
    build_report(tmp_path / "out")
    chunks = "".join(path.read_text() for path in (tmp_path / "out/report").glob("chunk-*.js"))
    assert r'[["\u4e09\u53ea",null],["\u732b",0],["\u548c\u4e24\u53ea",null],["\u72d7",1],' in chunks
