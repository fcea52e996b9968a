"""Numbers that no setting can have are refused when a job is loaded, with the key: all settings, by one rule."""

import re

import pytest

from cluster.job.config import JobConfig, load_job
from cluster.job.judge import judge_config
from cluster.job.settings import settings_of
from numina.errors import ConfigError
from pipelines.judges.base import JudgeConfig

NUMBERS = [setting for setting in settings_of(JobConfig) if "[]" not in setting.key]
FLOATS = [setting.key for setting in NUMBERS if setting.kind.startswith("float") and "|" not in setting.kind]
INTS = [setting.key for setting in NUMBERS if "int" in setting.kind.split(" or ")]


def test_all_sections_have_numbers() -> None:
    """Nothing below is empty by mistake."""
    assert {key.rpartition(".")[0] for key in FLOATS} == {
        *("verify", "generation", "cluster"),
        *(f"method.{stage}" for stage in ("identify", "refine", "guide")),
    }
    assert len(FLOATS) > 25
    assert len(INTS) > 30


@pytest.mark.parametrize("value", ["nan", ".nan", "inf", "-inf", ".inf", "1e39", "-1e300"])
def test_no_setting_is_infinite_or_no_number(value: str) -> None:
    """Every field of every section that is a float, however YAML spells it."""
    for key in FLOATS:
        with pytest.raises(ConfigError, match=re.escape(key)):
            load_job("demo", [f"{key}={value}"])


def test_no_whole_number_is_beyond_64_bits() -> None:
    """Every field that is an int."""
    for key in INTS:
        for value in (2**63, -(2**64), 10**30):
            with pytest.raises(ConfigError, match=re.escape(key)):
                load_job("demo", [f"{key}={value}"])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.loras=[{path: a},{path: b, scale: .inf}]", "model.loras[1].scale"),
        ("variants={strong: {guide: {add: .nan}}}", "variants.strong.guide.add"),
        ("variants={grid: {guide: {add: [1, .inf]}}}", "variants.grid.guide.add"),
    ],
)
def test_neither_are_lists_and_variants(override: str, key: str) -> None:
    """Numbers in lists, in mappings, and in the points of a grid."""
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)} is .*finite (decimal )?number"):
        load_job("demo", [override])


def test_neither_are_a_judges() -> None:
    """Judges are loaded by themselves."""
    for setting in settings_of(JudgeConfig):
        if setting.kind.startswith("float") and "|" not in setting.kind:
            with pytest.raises(ConfigError, match=rf"^judge\.{setting.key} is inf"):
                judge_config("counter", {setting.key: float("inf")})


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["generation.fps=1000000"], r"generation\.fps is 1000000; it must be 1 to 240"),
        (["generation.steps=100000"], r"generation\.steps is 100000.*1,000 at most"),
        (["generation.height=160000"], r"generation\.height is 160000.*8,192 at most"),
        (["generation.num_frames=1000001"], r"generation\.num_frames is 1000001.*use 10001"),
        (["generation.guidance_scale=-5"], r"generation\.guidance_scale is -5; it must be 0 or more"),
        (["generation.flow_shift=0"], r"generation\.flow_shift is 0; it must be above 0"),
        (["generation.sampler=ddim"], r"generation\.sampler is 'ddim'; choose from native, euler, renoise"),
        (["generation.sigmas=[1,0.5,0]"], r"sigmas is \[1, 0\.5, 0\]; each must be above 0 and at most 1: .* without"),
        (["generation.sigmas=[1000,750]"], r"sigmas is \[1000, 750\]; each must be .* timesteps / 1000"),
        (["generation.sigmas=[0.5,0.75]"], r"sigmas is \[0\.5, 0\.75\]; they must fall from step to step"),
        (["generation.sigmas=[1,0.5,0.5]"], r"they must fall .* give each once"),
        (["generation.sigmas=[1,0.5]", "generation.steps=4"], r"2 noise levels, but .*steps is 4; .* set steps to 2"),
        (
            ["generation.sigmas=[1,0.5]", "generation.steps=2", "generation.flow_shift=5"],
            r"flow_shift is 5, but generation\.sigmas gives .*; leave flow_shift null, or sigmas empty",
        ),
        (["cluster.start_timeout=1e300"], r"cluster\.start_timeout is 1e\+300"),
        (["cluster.step_timeout=1e12"], r"cluster\.step_timeout is 1e\+12 seconds"),
        (["cluster.metrics_port=70000"], r"cluster\.metrics_port is 70000"),
        (["search.seeds=1000000000"], r"search\.seeds is 1000000000; give 2 to 1000"),
        (["verify.attempts=1000000000"], r"verify\.attempts is 1000000000"),
        (["verify.retry=stronger", "verify.strengthen=1e30"], r"verify\.strengthen is 1e\+30 .* times as strong"),
        (["parallel.gangs=1000000000"], r"parallel\.gangs is 1000000000"),
        (["parallel.gangs_max=0"], r"parallel\.gangs_max is 0; it must be at least 1"),
        (["samples=1000000000"], r"samples is 1000000000"),
        (["max_count=0"], r"max_count is 0"),
        (["method.guide.anchor=1000000"], r"method\.guide\.anchor = 1000000, but it must be at most 1,000"),
        (["method.refine.disc_radius=1e30"], r"method\.refine\.disc_radius = 1e\+30, but it must be at most 1,000"),
    ],
)
def test_a_slip_of_the_hand_is_out_of_range(overrides: list[str], rule: str) -> None:
    """Finite, and still nothing that can be run: refused before anything is allocated, waited for or started."""
    with pytest.raises(ConfigError, match=rule):
        load_job("demo", overrides)


def test_a_guidance_that_is_only_too_large_is_loaded() -> None:
    """Its clips say what is wrong with it."""
    assert load_job("demo", ["generation.guidance_scale=1e30"]).generation.guidance_scale == 1e30
