"""What names a row: keys and seeds depend on content alone, and on all of it that decides the pixels."""

import json
import os
import subprocess
import sys
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.keys import canonical_json, sample_seed
from numina.prompts.targets import Target
from tests.cluster.tasks import row_key

CATS = (Target(noun="cats", count=3),)


class TestRowKey:
    CONTENT: ClassVar[dict[str, Any]] = {
        "prompt": "three cats",
        "negative_prompt": None,
        "targets": CATS,
        "seed": 7,
        "config": {"generation": {"steps": 50, "shift": 5.0}, "method": {"name": "closed"}},
        "model_revision": "abc",
        "algorithm_version": 1,
    }

    def test_it_is_the_same_in_another_process(self) -> None:
        """The key doesn't depend on the process, its hash seed or the order of a mapping."""
        turned = {**self.CONTENT, "config": {"method": {"name": "closed"}, "generation": {"shift": 5, "steps": 50}}}
        names = "from tests.cluster.tasks import row_key; from numina.prompts.targets import Target"
        code = f"{names}; print(row_key(**{turned!r}))"
        environment = {**os.environ, "PYTHONHASHSEED": "99"}
        command = [sys.executable, "-c", code]
        printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.strip()
        assert printed == row_key(**self.CONTENT)
        assert len(row_key(**self.CONTENT)) == 32

    @pytest.mark.parametrize(
        ("name", "other"),
        [
            ("prompt", "three cats "),
            ("negative_prompt", ""),
            ("targets", (Target(noun="cats", count=4),)),
            ("seed", 8),
            ("config", {"generation": {"steps": 25, "shift": 5.0}, "method": {"name": "closed"}}),
            ("model_revision", "abd"),
            ("algorithm_version", 2),
        ],
    )
    def test_every_part_of_the_content_counts(self, name: str, other: Any) -> None:
        """Whatever decides the pixels changes the key."""
        assert row_key(**{**self.CONTENT, name: other}) != row_key(**self.CONTENT)

    def test_a_not_finite_number_is_refused(self) -> None:
        """NaN isn't equal to itself, so it can't enter a key."""
        with pytest.raises(ValueError, match="nan has no canonical form"):
            row_key(**{**self.CONTENT, "config": {"scale": float("nan")}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_survives_a_round_trip(value: Any) -> None:
    """Reading the canonical text and writing it again gives it again: a config from run.json gives the same keys."""
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), JSON, max_size=6), st.randoms())
def test_canonical_json_ignores_order_and_number_type(value: dict[str, Any], random: Any) -> None:
    """Mappings in another order, tuples for lists, and 5.0 for 5 have the same text."""
    names = list(value)
    random.shuffle(names)

    def other(item: Any) -> Any:
        if isinstance(item, list):
            return tuple(map(other, item))
        if isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**53:
            return float(item)
        return item

    assert canonical_json({name: other(value[name]) for name in names}) == canonical_json(value)


@given(JSON, JSON)
def test_canonical_json_tells_different_values_apart(a: Any, b: Any) -> None:
    """Two values have the same text only if they are equal as JSON."""
    if canonical_json(a) == canonical_json(b):
        assert json.loads(json.dumps(a)) == json.loads(json.dumps(b))


class TestSampleSeed:
    def test_a_given_seed_counts_up(self) -> None:
        """The sample's seed is the row's own plus the sample's index, kept in 63 bits."""
        assert [sample_seed(5, "a", "p", index, 0) for index in range(3)] == [5, 6, 7]
        assert sample_seed(2**63 - 1, None, "p", 1, 0) == 0

    def test_a_derived_seed_depends_on_id_index_and_job(self) -> None:
        """With an id the prompt doesn't matter; without one it does; index and job seed always do."""
        seeds = {
            sample_seed(None, "a", "p", 0, 0),
            sample_seed(None, "b", "p", 0, 0),
            sample_seed(None, "a", "p", 1, 0),
            sample_seed(None, "a", "p", 0, 1),
            sample_seed(None, None, "p", 0, 0),
            sample_seed(None, None, "a", 0, 0),
        }
        assert len(seeds) == 6
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert sample_seed(None, "a", "p", 0, 0) == sample_seed(None, "a", "q", 0, 0)
