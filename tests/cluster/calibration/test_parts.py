"""What a calibration draws, reads and writes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.calibration.calibrate import Budget, Result, Standing
from cluster.calibration.page import page
from cluster.calibration.reading import Agreement, agreements, reads_of
from cluster.calibration.sample import draw_sample
from cluster.calibration.written import method_file, reading_warning, verdict_text
from cluster.cli.app import app
from cluster.job.config import JobConfig, load_job
from cluster.prompts.promptset import open_prompts
from cluster.prompts.write import make_prompts
from numina.errors import ConfigError, PromptSetError
from numina.metrics import Interval

WORDS = ("two", "three", "four", "five", "six", "seven")
COUNTED = [{"id": f"p{n}", "prompt": f"{word} cats", "group": n} for n, word in enumerate(WORDS * 5)]


def a_result(job: JobConfig, **changes: object) -> Result:
    """What a race of two candidates may have found."""
    accuracy, gain = Interval(mean=0.9, low=0.8, high=0.95), Interval(mean=0.4, low=0.1, high=0.6)
    standings = [
        Standing(name="m", accuracy=accuracy, prompts=20, gain=gain, state="chosen", cost=3.5, reading=0.9),
        Standing(
            name="baseline", accuracy=accuracy, prompts=20, gain=None, state="not told apart", cost=2.0, reading=None
        ),
        Standing(name="<i>", accuracy=accuracy, prompts=0, gain=gain, state="set aside", cost=None, reading=None),
    ]
    found: dict[str, object] = {
        "chosen": "m",
        "method": job.method,
        "verdict": "better",
        "standings": standings,
        "agreement": [Agreement(of="all nouns", nouns=30, share=0.9), Agreement(of="cats", nouns=30, share=0.9)],
        "budget": Budget(clips=60),
        "clips": 40,
        "seconds": 110.0,
        "prompts": "set.parquet",
        "judge": "counter",
        "model": "testbed",
        "revision": "abc",
        "stopped": False,
        "failed": 0,
    }
    return Result(**(found | changes))  # type: ignore[arg-type]


def test_a_sample_is_fair_and_always_the_same(tmp_path: Path) -> None:
    """Rows that ask for no count aren't in it; its order isn't the set's, and stays when the set grows; all columns are
    kept."""
    rows = [*COUNTED, {"id": "plain", "prompt": "a storm over the sea", "targets": []}]
    make_prompts(rows, str(tmp_path / "set.parquet"))
    job = load_job("demo", [f"prompts={tmp_path}/set.parquet"])
    sample = draw_sample(job, 12, str(tmp_path / "sample.parquet"))
    assert len(sample) == len(set(sample)) == 12
    assert all(targets for _, _, targets in sample)
    drawn = list(open_prompts(str(tmp_path / "sample.parquet")).parse(20))
    assert [(row.id, row.prompt) for row in drawn] == [(id, prompt) for id, prompt, _ in sample]
    assert [f"p{row.extra['group']}" for row in drawn] == [row.id for row in drawn]
    assert [row.id for row in drawn] != sorted(str(row.id) for row in drawn)
    assert draw_sample(job, 12, str(tmp_path / "again.parquet")) == sample
    make_prompts([*rows, {"id": "new", "prompt": "nine cats"}], str(tmp_path / "more.parquet"))
    more = draw_sample(load_job("demo", [f"prompts={tmp_path}/more.parquet"]), 31, str(tmp_path / "grown.parquet"))
    assert [own for own in more if own[0] != "new"][:12] == sample
    seeded = load_job("demo", [f"prompts={tmp_path}/set.parquet", "seed=1"])
    assert draw_sample(seeded, 12, str(tmp_path / "other.parquet")) != sample


def test_a_set_without_counts_is_refused(tmp_path: Path) -> None:
    """There is nothing to calibrate on."""
    make_prompts([{"prompt": "a storm over the sea", "targets": []}], str(tmp_path / "set.parquet"))
    with pytest.raises(PromptSetError, match="no row that was looked at asks for a count"):
        draw_sample(load_job("demo", [f"prompts={tmp_path}/set.parquet"]), 5, str(tmp_path / "sample.parquet"))


@pytest.mark.parametrize(("text", "amount", "shown"), [("60", 60, "60 clips"), ("1.5h", 5400, "1.5 rank-hours")])
def test_a_budget(text: str, amount: float, shown: str) -> None:
    """Clips, or hours."""
    budget = Budget.parse(text)
    assert (budget.amount, str(budget)) == (amount, shown)


@pytest.mark.parametrize("text", ["", "0", "0h", "-3", "3 days", "1e9", "nan"])
def test_no_budget(text: str) -> None:
    """What is neither is said."""
    with pytest.raises(ConfigError, match=r"budget is .*; give a number of clips such as 60, or GPU-hours such as 8h"):
        Budget.parse(text)


def test_the_verb_asks_for_a_budget() -> None:
    """Before anything else."""
    with pytest.raises(ConfigError, match="budget isn't given; give a number of clips such as budget=60"):
        CliRunner().invoke(app, ["calibrate", "--config", "demo"], catch_exceptions=False)


def test_agreement_of_reading_and_judge() -> None:
    """Of all nouns, by the asked count, by the noun; a clip that isn't judged says nothing."""
    row = {
        "targets": [{"noun": "cats", "count": 2}, {"noun": "dogs", "count": 3}],
        "identified": [{"noun": "cats", "count": 2}, {"noun": "dogs", "count": 4}],
    }
    verdict = {"detected": [{"noun": "cats", "frames": [2, 2, 5]}, {"noun": "dogs", "frames": [3, 3, 4]}]}
    reads = reads_of(row, verdict)
    assert [(read.noun, read.agrees) for read in reads] == [("cats", True), ("dogs", False)]
    assert [(own.of, own.nouns, own.share) for own in agreements(reads)] == [
        ("all nouns", 2, 0.5),
        ("asked for 2", 1, 1.0),
        ("asked for 3", 1, 0.0),
        ("cats", 1, 1.0),
        ("dogs", 1, 0.0),
    ]
    assert reads_of(row, None) == reads_of(row, {"detected": None}) == agreements([]) == []


def test_the_method_file_is_used_by_its_path(tmp_path: Path) -> None:
    """It has every value of the method, however it is named; overrides go on top; keys depend on values alone."""
    chosen = load_job("demo", ["method.guide.strength=3", "method.identify.step=0.5"])
    path = tmp_path / "calibrated.yaml"
    path.write_text(method_file(a_result(chosen)))
    for given in (f"method={path}", f"method.preset={path}"):
        job = load_job("demo", [given])
        assert job.method.named() == chosen.method.named()
        assert job.row_config("numina", "float32") == chosen.row_config("numina", "float32")
    assert load_job("demo", [f"method={path}", "method.guide.add=7"]).method.guide.add == 7
    assert load_job("demo", [f"variants.own.preset={path}"]).variants["own"].named() == chosen.method.named()
    with pytest.raises(ConfigError, match="is neither a file"):
        load_job("demo", [f"method={tmp_path}/none.yaml"])


@pytest.mark.parametrize(
    ("verdict", "gain", "text"),
    [
        (
            "better",
            (0.4, 0.1, 0.6),
            r"better than plain: m has \+0.400 \(\+0.100 to \+0.600\) CountAcc more than plain",
        ),
        ("no better", (0.0, -0.1, 0.1), r"no better than plain: .* Correction isn't worth its cost here"),
        ("not shown", (0.2, -0.1, 0.5), r"not shown to be better than plain: .* a larger budget tells"),
    ],
)
def test_the_verdict_in_words(verdict: str, gain: tuple[float, float, float], text: str) -> None:
    """In the file and on the page."""
    job, (mean, low, high) = load_job("demo"), gain
    shown = [replace(own, gain=Interval(mean=mean, low=low, high=high)) for own in a_result(job).standings]
    result = a_result(job, verdict=verdict, standings=shown)
    assert re.match(text, verdict_text(result))
    assert verdict_text(result) in method_file(result)


def test_the_page() -> None:
    """Every candidate, the plot, the reading; names are text, and nothing is loaded from elsewhere."""
    text = page(a_result(load_job("demo")))
    assert "&lt;i&gt;" in text
    assert "<i>" not in text
    assert "set aside" in text
    assert "better than plain" in text
    assert "<svg" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text


def test_a_bad_reading_is_warned_of() -> None:
    """Below half of the nouns."""
    job = load_job("demo")
    bad = [Agreement(of="all nouns", nouns=30, share=0.4)]
    assert reading_warning(a_result(job)) is None
    warning = reading_warning(a_result(job, agreement=bad))
    assert warning is not None
    assert "agrees with counter on 40% of 30 nouns" in warning
    assert warning in method_file(a_result(job, agreement=bad))
    assert "Warning" in page(a_result(job, agreement=bad))
