"""The race as a pure function of recorded outcomes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.calibration.intervals import mean_interval
from cluster.calibration.race import (
    FIRST_LOOK,
    PLAIN,
    Race,
    after_rung,
    choice,
    most_rungs,
    next_rung,
    start,
    verdict,
)

Table = dict[str, list[float]]


def raced(values: Mapping[str, Sequence[float]], budget: int, prompts: int | None = None) -> Race:
    """The end of a race over a table of outcomes; no rung exceeds the budget."""
    race = start(list(values))
    while True:
        race, rung = next_rung(race, budget, prompts or len(values[PLAIN]))
        if rung is None:
            return race
        assert rung.prompts > race.prompts
        assert set(rung.candidates) == set(race.left)
        race = after_rung(race, rung, values)
        assert sum(race.made.values()) <= budget


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """CountAcc of a few candidates on a few prompts."""
    prompts = draw(st.integers(1, 40))
    names = [PLAIN, *(f"m{number}" for number in range(draw(st.integers(1, 7))))]
    value = st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan")])
    return {name: draw(st.lists(value, min_size=prompts, max_size=prompts)) for name in names}


@settings(deadline=None, max_examples=40)
@given(tables(), st.integers(1, 200))
def test_the_budget_is_never_exceeded(values: Table, budget: int) -> None:
    """Whatever comes out; a method is chosen, and plain clips are never set aside."""
    race = raced(values, budget)
    assert sum(race.made.values()) <= budget
    assert PLAIN in race.left or race.out[PLAIN].why == "worse"
    if race.prompts:
        assert choice(race, values) != PLAIN


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.8]), min_size=1, max_size=6, unique=True),
    st.integers(0, 10_000),
    st.integers(20, 300),
)
def test_the_best_is_never_dropped_without_noise(means: list[float], seed: int, budget: int) -> None:
    """Prompts differ, and each candidate is better than the others by the same on all of them."""
    hard = np.random.default_rng(seed).uniform(0, 0.2, 60)
    values = {PLAIN: list(hard)} | {f"m{place}": list(mean + hard) for place, mean in enumerate(means)}
    race = raced(values, budget)
    best = f"m{int(np.argmax(means))}"
    assert best in race.left
    assert choice(race, values) == best


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 8), st.integers(0, 10_000), st.integers(10, 3000))
def test_equals_are_never_called_worse(number: int, seed: int, budget: int) -> None:
    """The budget may set them aside; the first of them stays."""
    one = np.random.default_rng(seed).choice([0.0, 0.5, 1.0], 100).tolist()
    values = dict.fromkeys([PLAIN, *(f"m{place}" for place in range(number))], one)
    race = raced(values, budget)
    assert all(own.why == "set aside" for own in race.out.values())
    assert {PLAIN, "m0"} <= {*race.left}
    if race.prompts:
        assert choice(race, values) == "m0"
        assert verdict(race, values, "m0") == ("no better" if race.prompts >= FIRST_LOOK else "not shown")


def test_a_large_budget_drops_by_intervals_alone() -> None:
    """A clearly worse candidate is dropped early, and what it would have cost is saved; near ones stay to the end."""
    random = np.random.default_rng(0)
    hard = random.uniform(0, 1, 400)
    values = {
        PLAIN: (hard < 0.4).astype(float).tolist(),
        "bad": (hard < 0.3).astype(float).tolist(),
        "good": (hard < 0.9).astype(float).tolist(),
        "alike": (hard < 0.89).astype(float).tolist(),
    }
    race = raced(values, 4000)
    assert (race.out["bad"].why, race.out[PLAIN].why) == ("worse", "worse")
    assert race.out["bad"].prompts <= 40
    assert "good" in race.left
    assert race.prompts == 400


def test_wrong_drops_are_as_rare_as_promised() -> None:
    """The best of five noisy candidates is called worse in at most 5 % of races, though they look again and again."""
    wrong = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        names = [PLAIN, "a", "b", "c", "d"]
        values = {name: random.integers(0, 2, 80).astype(float).tolist() for name in names}
        race, looked = start(names), set[str]()
        while True:
            race, rung = next_rung(race, 5000, 80)
            if rung is None:
                break
            race = after_rung(race, rung, values)
            looked |= {name for name, own in race.out.items() if own.why == "worse"}
        wrong += "a" in looked
    assert wrong <= 3


def test_what_a_verdict_says() -> None:
    """Better, no better, or not shown."""
    clear = {PLAIN: [0.0] * 30, "m": [1.0] * 30}
    assert verdict(raced(clear, 60), clear, "m") == "better"
    same = {PLAIN: [1.0] * 30, "m": [1.0] * 29 + [0.0]}
    assert verdict(raced(same, 60), same, "m") == "no better"
    for few in ({PLAIN: [0.0, 1.0, 1.0], "m": [1.0, 1.0, 1.0]}, {PLAIN: [1.0] * 5, "m": [1.0] * 5}):
        assert verdict(raced(few, 6), few, "m") == "not shown"


def test_all_methods_worse_than_plain() -> None:
    """The race ends, and the best of them is named."""
    values = {PLAIN: [1.0] * 60, "m": [0.0] * 60, "n": [0.1] * 60}
    race = raced(values, 1000)
    assert race.left == (PLAIN,)
    assert race.prompts < 60
    assert choice(race, values) == "n"
    assert verdict(race, values, "n") == "no better"


def test_a_larger_budget_pays_only_for_new_clips() -> None:
    """Clips that an earlier race made are there already, and count."""
    values = {name: [0.5] * 60 for name in (PLAIN, "a", "b", "c", "d")}
    made = raced(values, 40).made
    race, total = start(list(values)), dict(made)
    while True:
        race, rung = next_rung(race, 80, 60, made=total)
        if rung is None:
            break
        race = after_rung(race, rung, values)
        total = {name: max(total[name], race.made[name]) for name in total}
    assert sum(made.values()) <= 40 < sum(total.values()) <= 80


def test_unequal_costs() -> None:
    """A budget in hours pays each candidate's own cost."""
    values = {name: [0.5] * 60 for name in (PLAIN, "cheap", "dear")}
    costs = {PLAIN: 1.0, "cheap": 1.0, "dear": 8.0}
    race = start(list(values))
    while True:
        race, rung = next_rung(race, 100, 60, costs)
        if rung is None:
            break
        race = after_rung(race, rung, values)
    assert 90 <= sum(costs[name] * number for name, number in race.made.items()) <= 100


def test_rungs_are_foretold() -> None:
    """As many as a race without drops has."""
    assert most_rungs(9, 60) == 3
    assert most_rungs(2, 10) == 1
    assert most_rungs(9, 8) == 0


@pytest.mark.parametrize("mean", [0.05, 0.5, 0.97])
def test_an_interval_holds_the_mean_at_all_looks(mean: float) -> None:
    """In at least 95 % of sequences, though each is looked at often; more values make it narrower."""
    held = 0
    for seed in range(40):
        values = (np.random.default_rng(seed).uniform(0, 1, 60) < mean).astype(float)
        found = [mean_interval(values[:number], 0.05) for number in range(1, 61, 6)]
        held += all(own.low <= mean <= own.high for own in found)
        assert found[0].high - found[0].low > found[-1].high - found[-1].low
    assert held >= 38


def test_an_interval_of_differences() -> None:
    """Of values from -1 to 1; without any, it is everything."""
    nothing = mean_interval([], 0.05, -1.0, 1.0)
    assert (nothing.mean, nothing.low, nothing.high) == (0.0, -1.0, 1.0)
    found = mean_interval([-0.5] * 40, 0.05, -1.0, 1.0)
    assert found.mean == pytest.approx(-0.5)
    assert found.low <= -0.5 <= found.high < 0
