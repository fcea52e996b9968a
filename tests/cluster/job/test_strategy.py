"""Strategies: names are read by their parts, clips in common are asked for once, attempts follow from the sample."""

from dataclasses import replace

import pytest

from cluster.job.config import load_job
from cluster.job.strategy import (
    SearchConfig,
    Strategy,
    Trial,
    VerifyConfig,
    attempt_digest,
    attempt_seed,
    parse_strategy,
    strategy_of,
    strategy_record,
    stronger,
    trials,
)
from numina.config import MethodConfig
from numina.errors import ConfigError

SEARCH, VERIFY = SearchConfig(seeds=3), VerifyConfig(attempts=3)


def parsed(name: str, verify: VerifyConfig = VERIFY) -> Strategy:
    return parse_strategy(name, ["baseline", "numina", "strong"], SEARCH, verify)


@pytest.mark.parametrize(
    ("name", "base", "attempts", "select"),
    [
        ("baseline", "baseline", 1, "only"),
        ("numina", "numina", 1, "only"),
        ("seed_search", "baseline", 3, "best"),
        ("numina+seed_search", "numina", 3, "best"),
        ("prompt_enhancement", "prompt_enhancement", 1, "only"),
        ("numina+prompt_enhancement", "numina+prompt_enhancement", 1, "only"),
        ("prompt_enhancement+numina", "numina+prompt_enhancement", 1, "only"),
        ("verified", "numina", 3, "accepted"),
        ("baseline+verified", "baseline", 3, "accepted"),
        ("strong+verified", "strong", 3, "accepted"),
        ("prompt_enhancement+seed_search", "prompt_enhancement", 3, "best"),
    ],
)
def test_a_name_is_what_generates_and_what_selects(name: str, base: str, attempts: int, select: str) -> None:
    """In any order; `verified` alone verifies NUMINA, `seed_search` alone searches among plain clips."""
    strategy = parsed(name)
    assert (strategy.base, len(strategy.strengths), strategy.select) == (base, attempts, select)
    assert strategy_of(strategy_record(strategy)) == strategy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "'magic' isn't known; join parts of baseline, numina, strong"),
        ("numina+baseline", "at most one generator"),
        ("seed_search+verified", "one selector"),
        ("numina+numina", "at most one generator"),
        ("", "'' isn't known"),
    ],
)
def test_a_name_that_makes_no_sense_is_refused(name: str, message: str) -> None:
    """With what is known."""
    with pytest.raises(ConfigError, match=message):
        parsed(name)


def test_plain_clips_cant_be_guided_more() -> None:
    """`stronger` needs a guidance."""
    with pytest.raises(ConfigError, match=r"baseline has no guidance; give verify\.retry=next_seed"):
        parsed("baseline+verified", VerifyConfig(retry="stronger"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accept": 0.0}, "verify.accept is 0.0; give a CountAcc above 0"),
        ({"accept": 1.1}, "1 at most"),
        ({"retry": "luck"}, "choose from next_seed, stronger"),
        ({"strengthen": 1.0}, "a factor above 1"),
        ({"attempts": 0}, "at least 1"),
        ({"gpus": 2.0}, "share of a GPU"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, object], message: str) -> None:
    """With its value and its range."""
    with pytest.raises(ConfigError, match=message):
        VerifyConfig(**settings)  # type: ignore[arg-type]


def test_clips_in_common_are_asked_for_once() -> None:
    """A seed search's first clip is the baseline's; a verified sample asks for its first attempt alone."""
    asked = trials([parsed(name) for name in ("baseline", "seed_search", "numina", "numina+verified")])
    assert asked == [
        Trial("baseline", 0, 1.0),
        Trial("baseline", 1, 1.0),
        Trial("baseline", 2, 1.0),
        Trial("numina", 0, 1.0, verified=True),
    ]


def test_a_variant_of_the_same_settings_is_the_same_trial() -> None:
    """Under whichever name; and it stays verified."""
    job = load_job("demo", ["strategies=[numina,same+verified]", "variants.same={}"])
    assert [(trial.attempt, trial.verified) for trial in job.trials("float32")] == [(0, True)]


def test_attempts_have_seeds_and_digests_of_their_own() -> None:
    """The first keeps the sample's; a stronger one keeps the seed, and is told apart by its strength."""
    seeds = [attempt_seed(7, attempt, 1.0) for attempt in range(50)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert attempt_seed(7, 2, 2.25) == 7
    chain = bytes(16)
    digests = [attempt_digest(chain, 0, 1.0), attempt_digest(chain, 1, 1.0), attempt_digest(chain, 1, 1.5)]
    assert digests[0] == chain
    assert len(set(digests)) == 3


def test_stronger_scales_every_bias() -> None:
    """And nothing else; a factor of 1 is the method itself."""
    method = load_job("demo").method
    assert stronger(method, 1.0) is method
    twice, guide = stronger(method, 2.0), method.guide
    biases = ("remove", "add", "keep", "elsewhere", "other")
    assert all(getattr(twice.guide, name) == 2 * getattr(guide, name) for name in biases)
    assert replace(twice.guide, **{name: getattr(guide, name) for name in biases}) == guide
    assert isinstance(twice, MethodConfig)
