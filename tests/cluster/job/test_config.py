"""Job files: composed in a fixed order, mistakes named with their remedy."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job.config import JobConfig, config_folder, config_hash, load_job
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
    assert paper.guide.overwrite == "head"
    assert paper.identify.source == "clusters"
    with pytest.raises(ConfigError, match="closed, paper, released"):
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
        ("strategies=[magic]", "'magic' isn't known; join parts of baseline, numina"),
        ("model.dtype=int4", r"expected one of \['auto', 'float32'"),
        ("parallel.engine=magic", r"expected one of \['auto', 'single'"),
        ("limit=0", "at least 1"),
        ("parallel.batch=0", "at least 1"),
        ("cluster.step_timeout=0", "more than 0"),
        ("cluster.encoders=0", "at least 1"),
        ("cluster.encoder_gpus=2", "share of a GPU"),
        ("memory.text_encoder=cpu", r"expected one of \['gang', 'apart'\]"),
        ("strategies=[]", "at most once"),
        ("strategies=[numina,numina]", "at most once"),
        ("method.guide=4", "not a subclass of GuideConfig"),
        ("method.guide.overwrite=true", "overwrite"),
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
        load_job("demo", ["parallel.cfg=2", "parallel.compile=true", "memory.text_encoder=apart"]),
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


class TestVariants:
    """More strategies of one job: the job's method with changes."""

    def test_a_variant_changes_the_jobs_own_method(self) -> None:
        """What a variant doesn't say is the job's, not the default's."""
        job = load_job("demo", ["method.guide.keep=0.5", "variants.strong.guide.add=9"])
        assert job.methods == {
            "baseline": None,
            "numina": job.method,
            "strong": replace(job.method, guide=replace(job.method.guide, add=9.0)),
        }
        assert [own.name for own in job.all_strategies] == ["baseline", "numina", "strong"]

    def test_a_job_file_may_hold_them(self, tmp_path: Path) -> None:
        """Variants are YAML like `method`, and the command line adds to them."""
        file = tmp_path / "job.yaml"
        file.write_text("variants:\n  early: {identify: {step: 0.2}}\n  paper: {preset: paper}\n")
        job = load_job(file, ["variants.early.guide.add=3"])
        assert [own.name for own in job.all_strategies] == ["numina", "early", "paper"]
        assert (job.methods["early"].identify.step, job.methods["early"].guide.add) == (0.2, 3.0)

    def test_a_preset_inside_is_the_base(self) -> None:
        """A variant's preset replaces the job's; what the job and the variant say about `method` holds on top."""
        overrides = ["method.guide.keep=0.5", "variants.paper={preset: paper, guide: {add: 2}}"]
        job = load_job("demo", overrides)
        paper = load_job("demo", ["method.preset=paper"]).method
        assert job.methods["paper"] == replace(paper, guide=replace(paper.guide, keep=0.5, add=2.0))
        assert job.method.preset == "closed"

    def test_lists_are_a_grid(self) -> None:
        """Every combination is a variant, named by its values; a single value isn't part of the name."""
        given = "variants.grid={identify: {step: 0.2}, guide: {add: [4, 8], tokens: [noun, phrase]}}"
        job = load_job("demo", ["strategies=[]", given])
        assert {
            name: (method.identify.step, method.guide.add, method.guide.tokens)
            for name, method in job.methods.items()
            if method
        } == {f"grid:add={add},tokens={tokens}": (0.2, add, tokens) for add in (4, 8) for tokens in ("noun", "phrase")}

    def test_they_are_enough(self) -> None:
        """A job may have variants and no strategy of its own."""
        job = load_job("demo", ["strategies=[]", "variants.only={}"])
        assert job.methods == {"only": job.method}

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("variants.a.guide.ad=4", r"'method\.guide\.ad'; did you mean 'method\.guide\.add'"),
            ("variants.a={giude: {add: 4}}", r"did you mean 'method\.guide'"),
            ("variants.a.generation.steps=4", r"unknown configuration key 'method\.generation'"),
            ("variants.a.guide.add=lots", r"method\.guide\.add: Value 'lots'"),
            ("variants.a.guide.add=[4,lots]", r"method\.guide\.add: Value 'lots'"),
            ("variants.a.guide.add=-1", r"method\.guide\.add = -1\.0, but it must be"),
            ("variants.a.guide.add=[]", r"method\.guide\.add of a variant is an empty list"),
            ("variants.a.guide=4", "not a subclass of GuideConfig"),
            ("variants.a.preset=papr", "closed, paper, released"),
            ("variants.a=4", r"variants\.a is 4; give a mapping"),
            ("variants=4", "variants is 4; give a mapping"),
            ("variants=[a]", "give a mapping"),
            ("variants.numina.guide.add=4", r"variants\.numina must be .* none of baseline, numina"),
            ("variants.baseline={}", r"variants\.baseline must be a mapping"),
        ],
    )
    def test_a_mistake_is_named_with_its_remedy(self, override: str, message: str) -> None:
        """Inside a variant keys are `method`'s, with its suggestions, types and ranges; the names are their own."""
        with pytest.raises(ConfigError, match=message):
            load_job("demo", [override])

    def test_what_is_the_same_has_the_same_key(self) -> None:
        """A variant's settings enter its rows' keys, its name doesn't: with numina's settings it is numina."""
        variants = "variants={same: {guide: {add: 6}}, named: {preset: closed}, other: {guide: {add: 5}}}"
        job = load_job("demo", ["method.guide.add=6", variants])
        configs = {name: job.row_config(name, "float32") for name in job.methods}
        assert configs["same"] == configs["named"] == configs["numina"]
        assert configs["other"] == load_job("demo", ["method.guide.add=5"]).row_config("numina", "float32")
        assert len({config_hash(config) for config in configs.values()}) == 3

    def test_they_may_be_added_to_an_output_later(self) -> None:
        """An output belongs to its generation and method: neither strategies, variants nor batch are part of that."""
        job = load_job("demo")
        later = load_job("demo", ["strategies=[numina]", "variants.strong.guide.add=9", "parallel.batch=4"])
        assert later.identity("float32") == job.identity("float32")
        assert later.identity("bfloat16") != job.identity("float32")
        assert load_job("demo", ["method.guide.add=9"]).identity("float32") != job.identity("float32")


@pytest.mark.parametrize("override", ["strategies={", "limit='x", "limit=@x", "foo", "=3"])
def test_a_malformed_override_is_one_sentence(override: str) -> None:
    """It names the override, what is wrong with it, and what to give."""
    with pytest.raises(ConfigError, match=f"override {re.escape(repr(override))} .*; .* example"):
        load_job("demo", [override])


@pytest.mark.parametrize("shard", ["3/3", "1", "-1/3", "a/b", "0/0"])
def test_a_shard_is_an_index_and_a_count(shard: str) -> None:
    """An index outside the count would make a job of nothing."""
    with pytest.raises(ConfigError, match=f"shard is '{shard}'; give INDEX/COUNT"):
        load_job("demo", [f"shard={shard}"])
    assert load_job("demo", ["shard=2/3"]).part == (2, 3)


def test_variants_of_one_name_are_refused() -> None:
    """Two settings whose last parts and values are alike would name two points of a grid the same."""
    with pytest.raises(ConfigError, match=r"variants has 'grid:add=5' twice"):
        load_job("demo", ["variants.grid.guide.add=[5,5]"])
