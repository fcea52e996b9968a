"""A job: one YAML file plus dotlist overrides, checked and frozen before anything starts.

`load_job` composes, in this order: defaults of the dataclasses, the method preset named by `method.preset`, the job's
YAML, the overrides. An unknown key is an error that suggests the right one. Values are read by their settings' types
(`cluster.job.values`).
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from cluster.job.numbers import check_numbers
from cluster.job.settings import settings_of
from cluster.job.strategy import (
    ACCEPTED,
    ENHANCEMENT,
    GENERATORS,
    PARTS,
    SearchConfig,
    Strategy,
    Trial,
    VerifyConfig,
    generator_of,
    parse_strategy,
    stronger,
    trials,
)
from cluster.job.values import HOLDS, Grid, kind_at, read_node, read_text
from cluster.keys import SEEDS, canonical_json
from numina.choices import check_choices
from numina.config import MethodConfig
from numina.errors import ConfigError
from pipelines.base import GenerationConfig
from pipelines.checkpoints.lora import LoraConfig
from pipelines.judges.base import JudgeConfig
from pipelines.parallel.config import MemoryConfig, ParallelConfig

ALGORITHM_VERSION = 3  # raised when the same configuration would give other pixels; part of every row's key
DEFAULT_PRESET = "fused"
MOST = 10_000  # processes, cores, clips of a prompt: more is a slip of the hand
LONGEST = 100_000_000  # seconds that anything may wait: beyond it, timers overflow


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The checkpoint, and the numbers and device that it runs on."""

    # a folder in diffusers' layout, a hub id OWNER/NAME, or an embedded counting model: testbed (flat shapes) or scenes
    path: str = "testbed"
    # the commit of a hub id, 40 hex digits; null: the newest one when the job starts, which its output keeps
    revision: str | None = None
    # LoRAs that are fused into the transformer's weights when the model is loaded
    loras: list[LoraConfig] = field(default_factory=list)
    # of weights and activations: auto (bfloat16 on GPUs, float32 on CPUs), float32, bfloat16, float16, or float8 (the
    # blocks' linear layers, by torchao, and on one Hopper GPU self-attention: pipelines/README.md)
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float8"] = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"  # auto (a GPU if there is one), cuda or cpu

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ConfigError(f"model.path is {self.path!r}; give a folder, a hub id OWNER/NAME, or testbed")
        check_choices("model", self)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The Ray cluster that a job runs on, its time limits and its helper processes."""

    # the Ray cluster: local (started and stopped with the job), auto (the running one) or HOST:PORT
    address: str = "local"
    cpus_per_rank: int = 1  # [CPU cores] reserved for one rank
    clips_in_flight: int = 2  # [batches] that a gang holds at once: it denoises one while another's layout is computed
    attempts: int = 3  # [attempts] at one clip before it is recorded as failed
    clip_timeout: float = 3600.0  # [s] that one phase of a batch may take; after that its gang is replaced
    grace: float = 600.0  # [s] to finish the clips in progress after SIGTERM, SIGINT or SIGUSR2
    log_format: Literal["text", "json"] = "text"  # text, or json: one object per line, with the gang and the clip's key
    # [s] for a gang to find its place and, from then on, to load and compile the model
    start_timeout: float = 600.0
    # [s] that a rank may be silent, or keep the other ranks waiting, before its gang counts as lost
    step_timeout: float = 120.0
    # one small clip of few steps on one gang before the others start: auto (on GPUs, once per code, model and machine),
    # always (at every start, on CPUs too) or never
    preflight: Literal["auto", "always", "never"] = "auto"
    end_timeout: float = 10.0  # [s] to wait for a lost gang's processes to end and free their GPU memory
    metrics_port: int = 0  # port on which a local Ray serves Prometheus metrics; 0: a free port, given in the log
    encoders: int = 1  # [processes] that encode prompts, if memory.text_encoder=apart
    encoder_cpus: int = 1  # [CPU cores] reserved for one encoder; UMT5-XXL on CPUs needs many
    encoder_gpus: float = 0.0  # [share of a GPU, 0 to 1] reserved for one encoder; 0: it runs on CPUs

    def __post_init__(self) -> None:
        for name in ("cpus_per_rank", "clips_in_flight", "attempts", "encoders", "encoder_cpus"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ConfigError(
                    f"cluster.{name} is {getattr(self, name)}; it must be at least 1, and {MOST:,} at most"
                )
        check_choices("cluster", self)
        for name in ("start_timeout", "step_timeout", "end_timeout", "clip_timeout", "grace"):
            if not 0 < getattr(self, name) <= LONGEST:
                raise ConfigError(
                    f"cluster.{name} is {getattr(self, name):g} seconds; it must be more than 0, and {LONGEST:,} (three"
                    " years) at most"
                )
        if not 0 <= self.metrics_port <= 65535:
            raise ConfigError(f"cluster.metrics_port is {self.metrics_port}; give a port from 1 to 65535, or 0")
        if not 0 <= self.encoder_gpus <= 1:
            raise ConfigError(f"cluster.encoder_gpus is {self.encoder_gpus}; give a share of a GPU, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Everything that `numina run` needs to know."""

    # the prompt set: a Parquet file, a folder or a glob, local or on any fsspec filesystem; testbed:demo and
    # scenes:demo are shipped
    prompts: str = "testbed:demo"
    output: str = "out/dataset"  # the dataset: a folder or a URL such as s3://bucket/folder
    # how clips are made and selected: a generator plus an optional selector, joined by + (cluster/README.md)
    strategies: list[str] = field(default_factory=lambda: ["numina"])
    # more generators: a name and its changes of method; a list of values spans a grid
    variants: dict[str, Any] = field(
        default_factory=dict, metadata={HOLDS: GenericAlias(dict, (str, Grid(MethodConfig)))}
    )
    search: SearchConfig = field(default_factory=SearchConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    # changes of the judge's settings, e.g. {path: /models/dino}
    judge: dict[str, Any] = field(default_factory=dict, metadata={HOLDS: JudgeConfig})
    samples: int = 1  # [clips] per prompt and strategy
    seed: int = 0  # used with a row's id or prompt to derive the seed of a row that has none
    limit: int | None = None  # [rows] use only the first rows of the prompt set; null: all
    # INDEX/COUNT: use every COUNT-th row, starting at row INDEX; for array jobs, doesn't change keys
    shard: str = "0/1"
    # rows of the prompt set that can't be used: refuse (the job doesn't start) or skip (they are listed in the output's
    # REJECTED.jsonl)
    prompts_bad: Literal["refuse", "skip"] = "refuse"
    # what is a target in the prompts of rows that give none: numerals (three cats), or numerals+articles (a cat, too)
    targets_from: Literal["numerals", "numerals+articles"] = "numerals+articles"
    # rows whose targets may have been read wrongly: keep (as they were read), plain (generate them without counts) or
    # refuse (they can't be used)
    targets_doubtful: Literal["keep", "plain", "refuse"] = "keep"
    max_count: int = 20  # the largest count that a target may have
    # keep each clip's latents beside its video, lossless; rows that are done already stay as they are
    latents: bool = False
    retry_failed: bool = False  # try clips again that were recorded as failed
    # allow a filesystem without atomic create-if-absent; then only one driver may write to the output
    single_writer: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        for name, place in (("prompts", self.prompts), ("output", self.output)):
            if not place.strip():
                raise ConfigError(f"{name} is {place!r}; give a path or a URL")
        check_choices("", self)
        if not 0 <= self.seed < SEEDS:
            raise ConfigError(f"seed is {self.seed}; give a whole number from 0 to 2**63 - 1")
        for name, variant in self.variants.items():
            if name in PARTS or "+" in name or not isinstance(variant, MethodConfig):
                raise ConfigError(
                    f"variants.{name} must be a mapping of `method`, under a name without + that is none of"
                    f" {', '.join(PARTS)}"
                )
        if not (self.strategies or self.variants) or len(set(self.strategies)) < len(self.strategies):
            raise ConfigError(f"strategies is {self.strategies}; give each at most once, e.g. [baseline, numina]")
        assert self.all_strategies, "one is given; a name that isn't one raises"
        if not 1 <= self.samples <= MOST or (self.limit is not None and self.limit < 1):
            raise ConfigError(
                f"samples is {self.samples} and limit is {self.limit};"
                f" both must be at least 1, samples {MOST:,} at most"
            )
        if self.max_count < 1:
            raise ConfigError(f"max_count is {self.max_count}; it must be at least 1, the smallest count of a target")
        part = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard)
        if not part or int(part[1]) >= int(part[2]):
            raise ConfigError(f"shard is {self.shard!r}; give INDEX/COUNT with INDEX from 0 to COUNT - 1, e.g. 0/8")

    @property
    def part(self) -> tuple[int, int]:
        """The shard's index, and how many there are."""
        index, count = self.shard.split("/")
        return int(index), int(count)

    @cached_property
    def all_strategies(self) -> list[Strategy]:
        """Those of `strategies`, then the variants that none of them names."""
        generators = [*GENERATORS, *self.variants]
        named = [parse_strategy(name, generators, self.search, self.verify) for name in self.strategies]
        bases = {generator_of(strategy.base) for strategy in named}
        return named + [Strategy(name=name, base=name) for name in self.variants if name not in bases]

    @cached_property
    def methods(self) -> dict[str, MethodConfig | None]:
        """What generates, by the name that rows have for it; None generates without NUMINA."""
        known = {"baseline": None, "numina": self.method} | self.variants
        return {strategy.base: known[generator_of(strategy.base)] for strategy in self.all_strategies}

    @property
    def verifies(self) -> bool:
        """Whether clips are judged while the job runs."""
        return any(strategy.select == ACCEPTED for strategy in self.all_strategies)

    def trials(self, dtype: str) -> list[Trial]:
        """What is asked for of every sample from the start, without clips that are another one under a second name."""
        asked, known = trials(self.all_strategies), dict[str, Trial]()
        for trial in asked:
            config = [self.row_config(trial.base, dtype, trial.strength), ENHANCEMENT in trial.base, trial.attempt]
            first = known.setdefault(canonical_json(config), trial)
            if trial.verified and not first.verified:
                known[canonical_json(config)] = trial
        return list(known.values())

    def row_config(self, base: str, dtype: str, strength: float = 1.0) -> dict[str, Any]:
        """What decides a row's pixels, next to its prompt, targets, seed and model: this enters its key."""
        chosen = self.methods[base]
        method = stronger(chosen, strength).named() if chosen else None
        kind = "numina" if method else "baseline"  # a variant with numina's settings is numina
        return {"strategy": kind, "generation": self.generation.named(), "method": method, "dtype": dtype}

    def identity(self, dtype: str) -> dict[str, Any]:
        """The settings that an output belongs to; strategies and variants may be added to it later."""
        return {"generation": self.generation.named(), "method": self.method.named(), "dtype": dtype}


def load_job(config: str | Path | None = None, overrides: Sequence[str] = (), extra: str | None = None) -> JobConfig:
    """The job of a YAML file (a path, or the name of one in `configs/`) with `key=value` overrides; of a job that gives
    no `variants`, those of the file `extra`.

    Raises ConfigError for a file that isn't there, an unknown key, or a value out of range.
    """
    try:
        given: Any = OmegaConf.merge(load_yaml(config, JobConfig) if config else {}, _given(overrides, JobConfig))
        if missing := OmegaConf.missing_keys(given):
            raise ConfigError(f"config {str(config)!r} needs {', '.join(map(_needed, sorted(missing)))}")
        if extra and "variants" not in given:
            given = OmegaConf.merge(given, {"variants": load_yaml(extra, JobConfig).variants})
        preset = OmegaConf.select(given, "method.preset", default=DEFAULT_PRESET)
        method = {"method": load_yaml(_preset_file(preset), MethodConfig)}
        variants = given.pop("variants", None) or OmegaConf.create({})
        merged: Any = OmegaConf.merge(OmegaConf.structured(JobConfig), method, given)
        methods = _variants(variants, merged.method, given.get("method"))
        whole: Any = OmegaConf.merge(merged, {"variants": methods})
        check_numbers(OmegaConf.to_container(whole))
        job = OmegaConf.to_object(whole)
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise _unknown_key(str(error.full_key)) from error
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}{str(error).splitlines()[0]}") from error
    assert isinstance(job, JobConfig)
    return job


def names_setting(config: str | Path | None, overrides: Sequence[str], key: str) -> bool:
    """Whether a job's file or its command line gives a setting, such as `prompts` or `method.preset`."""
    given = OmegaConf.merge(load_yaml(config, JobConfig) if config else {}, _given(overrides, JobConfig))
    return OmegaConf.select(given, key) is not None


def _needed(key: str) -> str:
    """A key without a value, and what its value means."""
    meaning = next((own.meaning for own in settings_of(JobConfig) if own.key == key), "give a value")
    return f"{key}=… ({meaning})"


def settings_given(overrides: Sequence[str], config: type) -> dict[str, Any]:
    """The mapping that `key=value` texts stand for, each value read by the type of its key in `config`.

    Raises ConfigError for a text that isn't one, or a value that its setting doesn't take.
    """
    return cast(dict[str, Any], OmegaConf.to_container(_given(overrides, config), resolve=True))


def _given(overrides: Sequence[str], config: type) -> DictConfig:
    return cast(DictConfig, OmegaConf.merge({}, *(_override(text, config) for text in overrides)))


def _override(text: str, config: type) -> dict[str, Any]:
    """One `key=value`, as nested mappings."""
    found = re.match(r"([^=\s.]+(?:\.[^=\s.]+)*)=", text)
    if not found:
        raise ConfigError(f"override {text!r} isn't key=value; give for example limit=8 or model.path=/models/wan")
    key, given = found[1], text[found.end() :]
    if key == "method" and _is_file(given):
        key = "method.preset"  # as `numina calibrate` writes one
    if "[" in key:
        whole = key.partition("[")[0]
        raise ConfigError(
            f"override {text!r} names one element of a list; give the whole list, for example {whole}=[a,b]"
        )
    try:
        value = read_text(key, given, kind_at(config, key))
    except YAMLError as error:
        raise ConfigError(
            f"override {text!r} has a value that isn't YAML ({_problem(error)}); close its brackets and quotes, and"
            " quote it for the shell, for example 'strategies=[baseline,numina]'"
        ) from error
    for name in reversed(key.split(".")):
        value = {name: value}
    return cast(dict[str, Any], value)


def _problem(error: Exception) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _variants(variants: Any, method: Any, given: Any) -> dict[str, Any]:
    """The method of every variant: the job's own with the variant's changes; lists among those span a grid.

    A variant that names a `preset` starts from that preset and what the job says about `method`.
    """
    if not isinstance(variants, DictConfig):
        raise ConfigError(f"variants is {variants}; give a mapping, e.g. {{strong: {{guide: {{add: 8}}}}}}")
    methods = {}
    settings: Any = OmegaConf.to_container(variants)
    for name, changes in settings.items():
        if not isinstance(changes, dict):
            raise ConfigError(
                f"variants.{name} is {changes!r}; give a mapping like `method`, e.g. {{guide: {{add: 6}}}}"
            )
        base = method
        if preset := changes.get("preset"):
            own = OmegaConf.masked_copy(given, [key for key in given if key != "preset"]) if given else {}
            base = OmegaConf.merge(
                OmegaConf.structured(MethodConfig), load_yaml(_preset_file(preset), MethodConfig), own
            )
        for label, point in _grid(changes):
            full = f"{name}:{label}" if label else name
            if full in methods:
                raise ConfigError(f"variants has {full!r} twice; rows are told apart by this name: rename {name}")
            try:
                methods[full] = OmegaConf.merge(base, point)
            except (ConfigAttributeError, ConfigKeyError) as error:
                raise _unknown_key("method." + str(error.full_key).removeprefix("method.")) from error
    return methods


def _grid(changes: dict[str, Any]) -> Iterator[tuple[str, DictConfig]]:
    """Every combination of the lists in nested settings, with the values that name it."""
    axes = {key: value for key, value in _leaves(changes) if isinstance(value, list)}
    if empty := [key for key, values in axes.items() if not values]:
        raise ConfigError(f"method.{empty[0]} of a variant is an empty list; give it at least one value")
    for values in product(*axes.values()):
        point = OmegaConf.create(changes)
        for key, value in zip(axes, values, strict=True):
            OmegaConf.update(point, key, value)
        yield ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in zip(axes, values, strict=True)), point


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _preset_file(preset: str) -> Path:
    return Path(preset) if _is_file(preset) else config_folder() / "method" / f"{preset}.yaml"


def _is_file(preset: str) -> bool:
    """Whether a method is a YAML file of one's own, and not the name of a shipped one."""
    return preset.endswith((".yaml", ".yml"))


def config_folder() -> Path:
    """`configs/`: beside the packages in a checkout, inside `cluster` in an installed wheel."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_hash(row_config: dict[str, Any]) -> str:
    """A short name of a row's configuration, for grouping rows."""
    return hashlib.blake2b(canonical_json(row_config).encode(), digest_size=8).hexdigest()


def load_yaml(name: str | Path, config: type) -> DictConfig:
    """The mapping in a YAML file, or in one of `configs/` by its name; values read by the types of `config`.

    Raises ConfigError.
    """
    path = Path(name) if os.path.isfile(name) else config_folder() / f"{name}.yaml"
    if not os.path.isfile(path):
        beside = path.parent if os.path.isdir(path.parent) else config_folder()
        known = ", ".join(sorted(file.stem for file in beside.glob("*.yaml")))
        raise ConfigError(f"config {str(name)!r} is neither a file nor one of those shipped: {known}")
    try:
        loaded = OmegaConf.load(path)  # refuses keys that are there twice, and aliases without end
        node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (YAMLError, UnicodeDecodeError) as error:
        line = f" in line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise ConfigError(
            f"{path} isn't YAML{line} ({_problem(error)}); correct it, or start from a shipped one"
        ) from error
    except OSError as error:
        raise ConfigError(f"config {str(name)!r} can't be read ({error}); give a file that you may read") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} holds no mapping; give keys and values, as the files in {config_folder()} do")
    try:
        return OmegaConf.create({} if node is None else read_node("", node, config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _unknown_key(key: str) -> ConfigError:
    known = [setting.key for setting in settings_of(JobConfig)]
    if key in known:  # written as on a command line
        inner, *outer = reversed(key.split("."))
        nested = f"{inner}: …"
        for name in outer:
            nested = f"{name}: {{{nested}}}"
        return ConfigError(f"{key!r} is no key of a file, in which sections nest; write {nested}")
    leaves = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    leaf = key.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(key, [*known, *leaves], n=1, cutoff=0.5) or [leaf] * (leaf in leaves)
    hint = f"did you mean {leaves.get(close[0], close[0])!r}?" if close else f"known keys: {', '.join(known)}"
    return ConfigError(f"unknown configuration key {key!r}; {hint}")
