"""Made sets: balanced, without a prompt twice, and every prompt asks, when it is read, for its own targets."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.prompts.check import check_prompts
from cluster.prompts.digits import PromptDigits
from cluster.prompts.make import Recipe, made_prompts
from cluster.prompts.testbed import unseen_prompts
from cluster.prompts.words import FILLINGS, TEMPLATES
from numina.errors import InputError, PromptSetError
from numina.prompts.nouns import singular
from numina.prompts.targets import Target, parse_targets
from pipelines.testbed import scenes
from pipelines.testbed.world import MAX_OBJECTS, heldout_prompts

SLOTS = 6  # places of nouns in prompts with one, two and three of them


def rows(recipe: Recipe, number: int, **block: int) -> list[dict[str, Any]]:
    return [row for batch in made_prompts(recipe, number, **block) for row in batch.to_pylist()]


def numina(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["prompts", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    return rows(Recipe(seed=3), 4000)


def test_prompts_ask_for_their_targets(made: list[dict[str, Any]]) -> None:
    """Read anew, a prompt has just the targets of its row, in their order, by the words that stand in it."""
    for row in made:
        assert parse_targets(row["prompt"]) == tuple(Target(**target) for target in row["targets"]), row["prompt"]
        assert len(row["targets"]) == row["nouns"]


def test_sets_are_balanced(made: list[dict[str, Any]]) -> None:
    """At any length; each number of nouns by one at most, all else by one in each place where it may stand."""
    for number in (100, 777, 4000):
        some = made[:number]
        nouns = Counter(singular(target["noun"]) for row in some for target in row["targets"])
        counts = Counter(target["count"] for row in some for target in row["targets"])
        assert (len(nouns), sorted(counts)) == (80, list(range(1, 9)))
        assert max(nouns.values()) - min(nouns.values()) <= SLOTS
        assert max(counts.values()) - min(counts.values()) <= SLOTS
        templates = Counter(row["template"] for row in some)
        assert max(templates.values()) - min(templates.values()) <= 3
        assert set(templates) == set(TEMPLATES)
        assert max(Counter(row["nouns"] for row in some).values()) - number // 3 <= 1
    pairs = {tuple(target["count"] for target in row["targets"]) for row in made if row["nouns"] == 2}
    assert len(pairs) == 64
    assert len({tuple(target["noun"] for target in row["targets"]) for row in made if row["nouns"] == 2}) > 1000


def test_grammar(made: list[dict[str, Any]]) -> None:
    """Articles, plurals and the word before the last noun, as people write them."""
    text = " ".join(row["prompt"] for row in made)
    for words in (
        "an owl",
        "a unicorn",
        "one fox",
        "three foxes",
        "two sheep",
        "and a ",
        "wolves",
        "women",
        "knights,",
    ):
        assert (words in text) == (words != "a unicorn"), words
    assert all(row["prompt"][0].isupper() and row["prompt"].endswith(".") for row in made)
    assert not any(f" a {vowel}" in text for vowel in "aeio")


def test_a_row_depends_on_its_number_alone() -> None:
    """A longer set begins with the shorter one's rows; blocks don't matter; another seed makes another set."""
    nouns = ("cat", "fox", "owl", "bus", "chair", "sheep", "lamp")
    recipe = Recipe(seed=1, nouns=nouns)
    whole = rows(recipe, 600)
    assert rows(recipe, 250, block=37) == whole[:250]
    assert rows(recipe, 600, block=100_000) == whole
    assert rows(Recipe(seed=2, nouns=nouns), 600) != whole


def test_all_prompts_are_made_once_and_then_it_says_so() -> None:
    """Every combination comes, none twice; one more is an error that says how many there are."""
    recipe = Recipe(nouns=("cat", "dog", "owl"), counts=(1, 2), per_prompt=(2,), templates=("a video of {targets}",))
    every = rows(recipe, recipe.most)
    assert recipe.most == 3 * 2 * 2 * 2
    assert len({row["prompt"] for row in every}) == recipe.most
    with pytest.raises(PromptSetError, match="only 24 differ with 3 nouns, 2 counts, 1 templates and 2 nouns"):
        rows(recipe, recipe.most + 1)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(3, 40),
    cyclic=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    nouns=st.integers(1, 3),
    seed=st.integers(0, 5),
    rows=st.integers(1, 3000),
)
def test_digits_differ_and_balance(size: int, cyclic: list[int], nouns: int, seed: int, rows: int) -> None:
    """Whatever the sizes: no row twice, nouns of a row differ, no value more than once more often than another."""
    import numpy as np

    digits = PromptDigits(size=size, cyclic=tuple(cyclic), nouns=nouns, seed=seed)
    rows = min(rows, digits.total)
    which, counts, other = digits.of(np.arange(rows))
    assert len({tuple(row) for row in np.concatenate([which, counts, other], 1).tolist()}) == rows
    assert all(len(set(row)) == nouns for row in which.tolist())
    columns = [(column, size) for column in which.T] + [(column, cyclic[0]) for column in counts.T]
    for column, values in columns + list(zip(other.T, cyclic[1:], strict=True)):
        times = np.bincount(column, minlength=values)
        assert len(times) == values
        assert times.max() - times.min() <= 1


def test_what_makes_no_set_is_told_at_once() -> None:
    """All that is wrong with nouns, counts and templates, in one error."""
    with pytest.raises(PromptSetError) as error:
        Recipe(
            nouns=("cat", "cats"), counts=(0, 3), per_prompt=(3,), templates=("hello", "{targets} {place}", "{targets")
        )
    for words in ("'cat' and 'cats' are counted as one", "2 nouns don't make prompts with 3", "counts are 0, 3",
                  "template 'hello' must hold {targets} once", "template '{targets'", "others haven't"):  # fmt: skip
        assert words in str(error.value)
    with pytest.raises(PromptSetError, match=r"two dogs.*is read as"):
        rows(Recipe(templates=("{targets} and two dogs",)), 3)
    with pytest.raises(PromptSetError, match=r"noun 'running': .* is read as nothing"):
        rows(Recipe(nouns=("cat", "dog", "running")), 3)


def test_own_words(tmp_path: Path) -> None:
    """Nouns of a list or a file, in any form; templates of a file; numbers as ranges."""
    (tmp_path / "nouns.txt").write_text("# vehicles\nfire trucks\nbus\n\n")
    (tmp_path / "templates.txt").write_text("A painting of {targets} {place}\n")
    place = str(tmp_path / "own.parquet")
    options = ["--nouns", str(tmp_path / "nouns.txt"), "--templates", str(tmp_path / "templates.txt")]
    assert "40 prompts" in numina("make", place, "-n", "40", "--world", "captions", *options, "--counts", "2-3,5",
                                  "--per-prompt", "1,2")  # fmt: skip
    table = pq.read_table(place).to_pylist()
    assert {target["noun"] for row in table for target in row["targets"]} == {"trucks", "buses"}
    assert {target["count"] for row in table for target in row["targets"]} == {2, 3, 5}
    assert all(row["prompt"].startswith("A painting of ") for row in table)
    assert any(place in row["prompt"] for row in table for place in FILLINGS["place"])
    assert check_prompts(place, 20) == (40, [])


def test_making_again_is_fine_and_another_set_is_refused(tmp_path: Path) -> None:
    """The same command twice; other rows need --force; wrong numbers are told."""
    place = str(tmp_path / "set.parquet")
    for _ in range(2):
        numina("make", place, "-n", "20", "--world", "captions")
    with pytest.raises(InputError, match=r"exists already, with other rows.*--force"):
        numina("make", place, "-n", "21", "--world", "captions")
    numina("make", place, "-n", "21", "--world", "captions", "--force")
    assert pq.read_metadata(place).num_rows == 21
    with pytest.raises(InputError, match=r"--counts '3\.\.5' isn't a list of numbers"):
        numina("make", place, "--counts", "3..5")


def test_the_embedded_models_prompts_are_as_before(tmp_path: Path) -> None:
    """Held-out combinations in the order of `heldout_prompts`, without another column."""
    place = str(tmp_path / "testbed.parquet")
    numina("make", place, "-n", "30", "--world", "testbed", "--seed", "5")
    table = pq.read_table(place)
    assert table.column_names == ["id", "prompt", "targets"]
    assert table["prompt"].to_pylist() == [prompt.text for prompt in heldout_prompts(30, 5)]
    assert table["id"].to_pylist() == [f"{row:05d}" for row in range(30)]


def test_prompts_of_the_harder_world(tmp_path: Path) -> None:
    """One to three nouns, counts 1 to 8, in the order of its `heldout_prompts`; targets are read back from the text."""
    place = str(tmp_path / "scenes.parquet")
    numina("make", place, "-n", "30", "--world", "scenes", "--seed", "5")
    rows = pq.read_table(place).to_pylist()
    assert [row["prompt"] for row in rows] == [prompt.text for prompt in scenes.heldout_prompts(30, 5)]
    assert all(parse_targets(row["prompt"]) == tuple(Target(**t) for t in row["targets"]) for row in rows)
    rows = unseen_prompts(30, 0, model="scenes", counts=(1, 5, 8)).to_pylist()
    assert [len(row["targets"]) for row in rows] == [1, 2, 3] * 10
    assert all(sum(target["count"] for target in row["targets"]) <= scenes.MAX_OBJECTS for row in rows)
    assert len(unseen_prompts(4, 0, model="scenes", counts=(4, 8), per_prompt=(1, 2))) == 4
    with pytest.raises(PromptSetError, match="10 objects at most"):
        unseen_prompts(4, 0, model="scenes", counts=(4, 8))


def test_the_embedded_models_prompts_with_other_counts() -> None:
    """Counts 4 to 6 alone: a six has no place beside four others, so it comes alone."""
    table = unseen_prompts(60, 0, counts=(4, 5, 6)).to_pylist()
    counts = [[target["count"] for target in row["targets"]] for row in table]
    assert {count for own in counts for count in own} == {4, 5, 6}
    assert all(sum(own) <= MAX_OBJECTS for own in counts)
    assert [len(own) for own in counts] == [1, 2] * 30
    assert Counter(own[0] for own in counts if len(own) == 1) == {4: 10, 5: 10, 6: 10}
    assert all(parse_targets(row["prompt"]) == tuple(Target(**t) for t in row["targets"]) for row in table)
    with pytest.raises(PromptSetError, match="9 objects at most"):
        unseen_prompts(4, 0, counts=(6,))
    with pytest.raises(PromptSetError, match="1 to 6"):
        unseen_prompts(4, 0, counts=(7,))
    assert all(first != second for first, second in pairwise(row["id"] for row in table))
