"""Job files: composed in a fixed order, mistakes named with their remedy."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job import JobConfig, config_folder, config_hash, load_job
from numina.errors import ConfigError


def test_overrides_win_over_the_job_over_the_preset() -> None:
    """Dataclass defaults < method preset < YAML < dotlist."""
    job = load_job("demo", ["generation.steps=7", "method.guide.keep=0.5"])
    assert job.generation.steps == 7
    assert job.generation.height == 128  # the YAML's
    assert job.method.guide.keep == 0.5
    assert job.method.guide.tokens == "phrase"  # the preset closed's


def test_the_preset_can_be_chosen() -> None:
    """`method.preset` names a file of configs/method."""
    paper = load_job("demo", ["method.preset=paper"]).method
    assert paper.preset == "paper"
    assert paper.guide.overwrite
    assert paper.identify.source == "clusters"
    with pytest.raises(ConfigError, match="closed, paper"):
        load_job("demo", ["method.preset=papper"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.hieght=64", "did you mean 'generation.height'"),
        ("paralell.ulysses=2", "did you mean 'parallel'"),
        ("ulysses=2", "did you mean 'parallel.ulysses'"),
        ("generation.num_frames=16", r"4k \+ 1: use 17"),
        ("generation.num_frames=many", "generation.num_frames"),
        ("generation.height=100", "multiple of 16"),
        ("strategies=[magic]", "choose from baseline, numina"),
        ("model.dtype=float8", "choose from auto"),
        ("parallel.engine=magic", "choose one of"),
        ("limit=0", "at least 1"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(override: str, message: str) -> None:
    """Unknown keys suggest the right one; values out of range say the rule."""
    with pytest.raises(ConfigError, match=message):
        load_job("demo", [override])


def test_a_missing_file_lists_the_shipped_ones() -> None:
    """A config is a path or a shipped name."""
    with pytest.raises(ConfigError, match="demo"):
        load_job("dmeo")


def test_a_mandatory_value_is_asked_for() -> None:
    """wan14b has no default model folder, and says which key is missing."""
    with pytest.raises(ConfigError, match=r"model\.path"):
        load_job("wan14b")


@pytest.mark.parametrize("file", sorted(config_folder().glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_job_loads(file: Path) -> None:
    """All YAML files in configs/ are jobs that load."""
    assert isinstance(load_job(file, ["model.path=somewhere"]), JobConfig)


def test_only_what_decides_pixels_enters_the_key() -> None:
    """Degrees, places and patience don't; steps, strengths, strategy and dtype do."""
    job = load_job("demo")
    base = config_hash(job.row_config("numina", "float32"))
    same = [
        replace(job, output="elsewhere"),
        load_job("demo", ["parallel.ulysses=1", "parallel.gangs=3", "cluster.attempts=9", "seed=5", "samples=2"]),
        replace(job, method=replace(job.method, preset="another label")),
    ]
    assert {config_hash(other.row_config("numina", "float32")) for other in same} == {base}
    different = [
        load_job("demo", ["generation.steps=24"]).row_config("numina", "float32"),
        load_job("demo", ["method.guide.add=5"]).row_config("numina", "float32"),
        job.row_config("baseline", "float32"),
        job.row_config("numina", "bfloat16"),
    ]
    assert len({config_hash(config) for config in different} | {base}) == 5
    method_matters_not = load_job("demo", ["method.guide.add=5"]).row_config("baseline", "float32")
    assert config_hash(method_matters_not) == config_hash(job.row_config("baseline", "float32"))
