"""Job files: composed in a fixed order, mistakes named with their remedy."""

import re
from dataclasses import replace
from math import atan, cos, sin
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.job.config import JobConfig, config_folder, config_hash, load_job, settings_given
from cluster.job.judge import judge_config
from numina.errors import ConfigError
from numina.schedule import noise_levels
from pipelines.checkpoints.lora import LoraConfig
from pipelines.judges.base import JudgeConfig


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
    with pytest.raises(ConfigError, match="closed, few-step, fused, paper, quick, released"):
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
        ("model.dtype=int4", "choose from auto, float32"),
        ("generation.vae_dtype=float16", r"vae_dtype is 'float16'; choose from auto, float32, bfloat16"),
        ("parallel.engine=magic", "choose from auto, single"),
        ("limit=0", "at least 1"),
        ("parallel.batch=0", "at least 1"),
        ("parallel.gangs=many", "give a whole number of decimal digits, for example 8, or auto"),
        ("parallel.gangs=null", "or auto"),
        ("cluster.step_timeout=0", "more than 0"),
        ("cluster.encoders=0", "at least 1"),
        ("cluster.encoder_gpus=2", "share of a GPU"),
        ("memory.text_encoder=cpu", "choose from gang, apart"),
        ("strategies=[]", "at most once"),
        ("strategies=[numina,numina]", "at most once"),
        ("method.guide=4", r"it is a section: give its keys, for example method\.guide\.remove="),
        ("method.guide.overwrite=true", "overwrite"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(override: str, message: str) -> None:
    """Unknown keys suggest the right one; values out of range say the rule."""
    with pytest.raises(ConfigError, match=message):
        load_job("demo", [override])


def test_gangs_are_a_number_or_auto(tmp_path: Path) -> None:
    """In a file and on a command line. A limit is for `auto`."""
    (tmp_path / "job.yaml").write_text("parallel: {gangs: 3}")
    assert [load_job("demo").parallel.gangs, load_job(tmp_path / "job.yaml").parallel.gangs] == ["auto", 3]
    again = load_job(tmp_path / "job.yaml", ["parallel.gangs=auto", "parallel.gangs_max=4"]).parallel
    assert (again.gangs, again.gangs_max, again.gangs_at_least) == ("auto", 4, 1)
    with pytest.raises(ConfigError, match=r"gangs_max is 4, but parallel\.gangs is 3; a limit is for"):
        load_job(tmp_path / "job.yaml", ["parallel.gangs_max=4"])


def test_a_missing_file_lists_the_shipped_ones() -> None:
    """A config is a path or a shipped name."""
    with pytest.raises(ConfigError, match="demo"):
        load_job("dmeo")


def test_a_mandatory_value_is_asked_for(tmp_path: Path) -> None:
    """A file with ??? says which key is missing."""
    (tmp_path / "job.yaml").write_text("model:\n  path: ???\n")
    with pytest.raises(ConfigError, match=r"model\.path"):
        load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("wan1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("wan14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        ("wan2.2-5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
        ("cogvideox-5b", "zai-org/CogVideoX-5b"),
    ],
)
def test_a_models_config_names_its_checkpoint(name: str, repository: str) -> None:
    """Prompts and an output are enough beside it."""
    assert (load_job(name).model.path, load_job(name).model.revision) == (repository, None)


def test_recipes_have_their_noise_levels() -> None:
    """As published, shift included, and one branch; a checkpoint that must be converted is asked for."""
    published = {
        "lightx2v-14b": ("euler", [1, 0.9375, 0.83333, 0.625]),
        "fastwan-5b": ("renoise", [1, 0.757, 0.522]),
        "rcm-1.3b": ("renoise", [sin(t) / (sin(t) + cos(t)) for t in (atan(80), 1.5, 1.4, 1.0)]),
        "causvid-14b": ("native", None),
    }
    assert set(published) == {file.stem for file in (config_folder() / "recipes").glob("*.yaml")}
    for name, (sampler, sigmas) in published.items():
        job = load_job(f"recipes/{name}", ["model.path=somewhere"] if name == "rcm-1.3b" else [])
        clip = job.generation
        assert (clip.guidance_scale, clip.sampler, job.parallel.cfg) == (1, sampler, 1)
        if sigmas:
            assert (clip.sigmas or noise_levels(clip.steps, clip.flow_shift)) == pytest.approx(sigmas, abs=1e-5)
    with pytest.raises(ConfigError, match=r"needs model\.path"):
        load_job("recipes/rcm-1.3b")


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
        load_job("demo", ["parallel.gangs_max=5"]),
        replace(job, method=replace(job.method, preset="another label")),
    ]
    assert {config_hash(other.row_config("numina", "float32")) for other in same} == {base}
    different = [
        load_job("demo", ["generation.steps=24"]).row_config("numina", "float32"),
        load_job("demo", ["method.guide.add=5"]).row_config("numina", "float32"),
        load_job("demo", ["generation.vae_dtype=bfloat16"]).row_config("numina", "float32"),
        job.row_config("baseline", "float32"),
        job.row_config("numina", "bfloat16"),
    ]
    assert len({config_hash(config) for config in different} | {base}) == 6
    assert "vae_dtype" not in job.generation.named()
    few = ["generation.steps=2", "generation.sigmas=[1,0.5]"]
    sampled = [[], ["generation.sampler=euler"], few, [*few, "generation.sampler=renoise"]]
    hashes = {config_hash(load_job("demo", overrides).row_config("numina", "float32")) for overrides in sampled}
    assert base in hashes
    assert len(hashes) == 4
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
            ("variants.a.guide.add=lots", r"variants\.a\.guide\.add is 'lots'; give a finite decimal number"),
            ("variants.a.guide.add=[4,lots]", r"variants\.a\.guide\.add\[1\] is 'lots'; give a finite decimal number"),
            ("variants.a.guide.add=-1", r"method\.guide\.add = -1\.0, but it must be"),
            ("variants.a.guide.add=[]", r"method\.guide\.add of a variant is an empty list"),
            ("variants.a.guide=4", "it is a section"),
            ("variants.a.preset=papr", "closed, few-step, fused, paper, quick, released"),
            ("variants.a=4", r"variants\.a is '4'; it is a section"),
            ("variants=4", r"variants is '4'; it is a section: give its keys, for example variants\.NAME="),
            ("variants=[a]", "variants is a list; it is a section"),
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


@pytest.mark.parametrize("override", ["strategies={", "foo", "=3", "a..b=3", ".a=3", "strategies[0]=numina"])
def test_a_malformed_override_is_one_sentence(override: str) -> None:
    """It names the override, what is wrong with it, and what to give."""
    with pytest.raises(ConfigError, match=f"override {re.escape(repr(override))} .*; .* example"):
        load_job("demo", [override])


def test_sections_of_a_file_nest_and_may_be_empty(tmp_path: Path) -> None:
    """One whose keys are all comments leaves them as they are; a key with dots is shown as it has to be written."""
    file = tmp_path / "job.yaml"
    file.write_text("limit: 3\ngeneration:\n  # steps: 5\n")
    assert load_job(file) == load_job(overrides=["limit=3"])
    file.write_text("generation.steps: 5\n")
    with pytest.raises(ConfigError, match=r"'generation.steps' is no key of a file.*write generation: {steps: …}"):
        load_job(file)
    with pytest.raises(ConfigError, match="generation is 'null'; it is a section"):
        load_job(overrides=["generation=null"])


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


TEXTS = [
    "20261128_120000",
    "runs #1",
    "007",
    "1e3",
    "12:30:00",
    "no",
    "on",
    "~",
    "null",
    "&a",
    "*a",
    "*.parquet",
    "!x",
    "@x",
    "%x",
    "`x",
    "{x",
    "[x]",
    "[x",
    "'x",
    '"x"',
    "'x'",
    "- a",
    "? a",
    "a: b",
    "x ",
    " x",
    "#x",
    ">",
    "|",
    "0x10",
    "1_000",
    "2026-11-28",
    ".inf",
    "ñ ü/漢字",
    "1234567890123456789012345678901234567890",
    "${HOME}/x",
    "\\${x}",
    "a\\b\\\\${x}\\\\\\${y}\\",
    "a\nb",
]


class TestValues:
    """The type of a setting decides how its value is read."""

    @pytest.mark.parametrize("text", TEXTS)
    def test_text_is_what_was_typed(self, text: str) -> None:
        """Of a setting that is text: all that follows the =, none of it YAML."""
        job = load_job("demo", [f"output={text}", f"model.revision={text}", f"judge.path={text}"])
        optional = None if text == "null" else text
        assert (job.output, job.model.revision, job.judge["path"]) == (text, optional, optional)

    @settings(max_examples=max(25, settings().max_examples // 4))  # each loads a job; the fuzz tests have more
    @given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
    def test_any_text_is_what_was_typed(self, text: str) -> None:
        """Also what nobody thought of."""
        assume(text != "???")
        assert load_job("demo", [f"generation.negative_prompt={text}"]).generation.negative_prompt == text

    @pytest.mark.parametrize(
        "text", ["20261128_120000", "007", "1e3", "12:30:00", "no", "0x10", "2026-11-28", ".inf", "1_0"]
    )
    def test_text_in_a_file_is_its_own(self, tmp_path: Path, text: str) -> None:
        """A scalar that YAML takes for a number, a date or a truth value, where text is asked for."""
        file = tmp_path / "job.yaml"
        file.write_text(
            f"output: {text}\njudge: {{path: {text}}}\nmodel: {{revision: {text}}}\nvariants: {{{text}: {{}}}}\n"
        )
        job = load_job(file)
        assert (job.output, job.judge, job.model.revision, [*job.variants]) == (text, {"path": text}, text, [text])

    def test_null_in_a_file(self, tmp_path: Path) -> None:
        """No value where that is one; refused where text is asked for; text in quotes."""
        file = tmp_path / "job.yaml"
        file.write_text('model: {revision: null}\noutput: "null"\nlimit: ~\n')
        job = load_job(file)
        assert (job.model.revision, job.output, job.limit) == (None, "null", None)
        file.write_text("generation: {negative_prompt: null}\n")
        with pytest.raises(ConfigError, match=r"job\.yaml: generation\.negative_prompt is 'null'; give text"):
            load_job(file)

    def test_a_file_may_refer_to_its_own_keys(self, tmp_path: Path) -> None:
        """OmegaConf's ${KEY}, and YAML's anchors and merges, in files; not on the command line."""
        file = tmp_path / "job.yaml"
        file.write_text(
            "prompts: 007\noutput: out/${prompts}\nlimit: &n 010\nsamples: *n\n"
            "variants:\n  one: &one {guide: {add: 2}}\n  two: {<<: *one, identify: {step: 0.2}}\n"
        )
        job = load_job(file)
        assert (job.output, job.limit, job.samples) == ("out/007", 10, 10)
        assert (job.variants["two"].guide.add, job.variants["two"].identify.step) == (2.0, 0.2)

    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("limit=010", 10),
            ("limit=08", 8),
            ("limit= 8 ", 8),
            ("limit=null", None),
            ("seed=9223372036854775807", 2**63 - 1),
            ("generation.guidance_scale=010.50", 10.5),
            ("generation.guidance_scale=5", 5.0),
            ("generation.guidance_scale=1e1", 10.0),
            ("generation.flow_shift=null", None),
            ("method.guide.anchor=02", 2),
            ("latents=true", True),
            ("latents=False", False),
            ("strategies=[numina, baseline]", ["numina", "baseline"]),
            ("model.loras=[{path: 007, scale: 010, file: no}]", [LoraConfig(path="007", scale=10.0, file="no")]),
            ('judge={path: "a # b", every: 010}', {"path": "a # b", "every": 10}),
        ],
    )
    def test_numbers_are_decimal(self, override: str, value: object) -> None:
        """Leading zeros say nothing; lists and mappings are YAML whose parts are read alike."""
        read: object = load_job("demo", [override])
        for name in override.partition("=")[0].split("."):
            read = getattr(read, name)
        assert read == value

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("limit=1e3", "limit is '1e3'; give a whole number .*, or null"),
            ("limit=8.0", "whole number"),
            ("limit=1_000", "whole number"),
            ("limit=0x10", "whole number"),
            ("limit=1:30", "whole number"),
            ("limit=٣", "whole number"),
            ("limit=~", "or null"),
            ("limit=", "whole number"),
            ("samples=null", "samples is 'null'; give a whole number"),
            (f"limit={'9' * 5000}", r"limit is '9{60}…'; give a whole number of at most 64 bits"),
            ("seed=9223372036854775808", "at most 64 bits"),
            ("seed=-1", "from 0 to"),
            ("generation.guidance_scale=nan", "finite decimal number"),
            ("generation.guidance_scale=.inf", "finite decimal number"),
            ("generation.guidance_scale=1e999", "finite decimal number"),
            ("latents=yes", "latents is 'yes'; give true or false"),
            ("latents=1", "true or false"),
            ("method.guide.tokens=nouns", "method.guide.tokens is 'nouns'; choose from noun, phrase, first"),
            ("strategies=numina", r"strategies is 'numina'; give a list, for example \[a,b\]"),
            ("strategies.0=numina", r"strategies has no keys of its own; give the whole list"),
            ("seed.x=3", "'seed.x' is no key: seed has no keys of its own; set seed itself"),
            ("method=paper", r"it is a section: give its keys, for example method\.preset="),
            ("model.loras=[{path: a, scale: b}]", r"model\.loras\[0\]\.scale is 'b'; give a finite"),
            ("output=", "output is ''; give a path"),
            ("model.path=", "model.path is ''; give a folder"),
            ("output=???", "stands for a value that is still to be given"),
            ("output=\udcff", "isn't UTF-8"),
        ],
    )
    def test_what_is_no_value_is_refused(self, override: str, message: str) -> None:
        """By key, value, rule and remedy."""
        with pytest.raises(ConfigError, match=message):
            load_job("demo", [override])

    def test_a_judges_settings_are_read_alike(self) -> None:
        """Those that `numina evaluate` is given."""
        assert settings_given(["path=007 #1", "every=010", "revision=null"], JudgeConfig) == {
            "path": "007 #1",
            "every": 10,
            "revision": None,
        }
        config = judge_config("owlv2", {"path": "${x}", "revision": "007"})
        assert (config.path, config.revision) == ("${x}", "007")
