"""Prompts that are too long for the text encoder: told before anything starts, refused where a noun is lost."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.dataset.store import Committed
from cluster.job.config import JobConfig
from cluster.job.long_prompts import SHOWN
from cluster.job.prepared import FIRST_ROWS, prepare
from cluster.job.worklist import open_worklist
from cluster.prompts.write import make_prompts
from numina.errors import PromptSetError

Job = Callable[..., JobConfig]
NOTHING = Committed(keys=frozenset(), tasks=frozenset())
LONG = " ".join(["red"] * 22) + " circle"  # 24 tokens with the end: just what the tiny checkpoint takes
TARGET = [{"noun": "circle", "count": 1}]
LOST = {"id": "lost", "prompt": f"{'red ' * 30}circle", "targets": TARGET}


@pytest.fixture
def rows(tiny_job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """Prepares a job over such rows and finds what is left to do; the warnings."""

    def look(given: list[dict[str, object]], *overrides: str) -> list[str]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        make_prompts(given, str(path))
        prepared = prepare(tiny_job(f"prompts={path}", *overrides))
        assert caplog.messages == []
        with caplog.at_level(logging.WARNING):
            open_worklist(prepared, NOTHING, NOTHING)
        return caplog.messages

    return look


def test_what_is_cut_is_said_once_for_each_prompt(rows: Callable[..., list[str]]) -> None:
    """Whatever the number of its rows, samples and strategies; of negative prompts, too, where one is used."""
    given = [
        {"id": "fits", "prompt": LONG, "targets": TARGET},
        {"id": "cut", "prompt": f"{LONG} moving", "targets": TARGET},
        {"id": "again", "prompt": f"{LONG} moving", "targets": TARGET},
        {"id": "negative", "prompt": "one circle", "targets": TARGET, "negative_prompt": f"{LONG} blurred"},
    ]
    prompt, negative = rows(given, "samples=3", "strategies=[baseline,numina]")
    assert prompt.startswith("the prompt 'red red")
    assert prompt.endswith("24 tokens; it is generated without 'moving'")
    assert negative.startswith("the negative prompt")
    assert negative.endswith("'blurred'")


def test_many_are_counted(rows: Callable[..., list[str]]) -> None:
    """The first are shown, the others only counted."""
    given = [{"id": str(n), "prompt": f"{LONG} moving {n}", "targets": TARGET} for n in range(SHOWN + 5)]
    *shown, last = rows(given)
    assert len(shown) == SHOWN
    assert last.startswith("5 more prompts are longer")


@pytest.mark.parametrize("strategies", ["numina", "baseline,numina", "numina+seed_search"])
def test_a_lost_noun_is_refused_before_anything_starts(rows: Callable[..., list[str]], strategies: str) -> None:
    """Already by `prepare`, as `plan` calls it, with the row and the remedy."""
    with pytest.raises(PromptSetError, match=r"row 1: noun 'circle' .*is cut off.*shorten the prompt"):
        rows([{"prompt": "one circle"}, LOST], f"strategies=[{strategies}]")


def test_a_plain_strategy_only_warns(rows: Callable[..., list[str]]) -> None:
    """Nothing is counted in its attention; what is lost is said."""
    [warning] = rows([LOST], "strategies=[baseline]")
    assert warning.endswith("circle'")


def test_a_lost_noun_in_a_later_row_is_refused_too(rows: Callable[..., list[str]]) -> None:
    """Rows that `prepare` doesn't look at are checked with all others, before a gang starts."""
    given = [{"id": str(n), "prompt": "one circle"} for n in range(FIRST_ROWS)]
    with pytest.raises(PromptSetError, match=rf"row {FIRST_ROWS}, column 'prompt'.*is cut off"):
        rows([*given, LOST])


def test_a_rewritten_prompt_is_looked_at_as_it_is_generated(rows: Callable[..., list[str]]) -> None:
    """A prompt that fits, and its enhanced form that doesn't."""
    given = [{"prompt": "one circle", "targets": TARGET, "enhanced_prompt": LOST["prompt"]}]
    assert rows(given, "strategies=[numina]") == []
    with pytest.raises(PromptSetError, match="is cut off"):
        rows(given, "strategies=[numina+prompt_enhancement]")
