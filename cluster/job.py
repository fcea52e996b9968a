"""A job: one YAML file plus dotlist overrides, checked and frozen before anything starts.

`load_job` composes, in this order: defaults of the dataclasses, the method preset named by `method.preset`, the job's
YAML, the overrides. An unknown key is an error that suggests the right one.
"""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cluster.rows import canonical_json
from numina.config import MethodConfig
from numina.errors import ConfigError
from pipelines.base import GenerationConfig
from pipelines.parallel import ParallelConfig

ALGORITHM_VERSION = 1  # raised when the same configuration would give other pixels; part of every row's key
STRATEGIES = ("baseline", "numina")
DEFAULT_PRESET = "closed"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which checkpoint, and how it is held."""

    path: str = "testbed"  # a diffusers folder, or `testbed` for the embedded counting model
    dtype: str = "auto"  # auto (bfloat16 on a GPU, float32 on a CPU) | float32 | bfloat16 | float16
    device: str = "auto"  # auto (a GPU where there is one) | cuda | cpu

    def __post_init__(self) -> None:
        _one_of("model.dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _one_of("model.device", self.device, ("auto", "cuda", "cpu"))


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The Ray cluster that a job runs on, and how patient it is."""

    address: str = "local"  # local (a Ray of its own, ended with the job) | auto | HOST:PORT
    cpus_per_rank: int = 1  # CPU cores reserved for one rank
    clips_in_flight: int = 2  # per gang: one denoises while another's layout is computed
    attempts: int = 3  # tries of one clip before it is recorded as failed
    start_timeout: float = 600.0  # seconds until a gang must stand, model loaded

    def __post_init__(self) -> None:
        for name in ("cpus_per_rank", "clips_in_flight", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"cluster.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Everything that `numina run` needs to know."""

    prompts: str = "testbed:demo"  # Parquet file, folder or glob, on any fsspec filesystem; testbed:demo is shipped
    output: str = "out/dataset"  # folder or URL of the dataset
    strategies: list[str] = field(default_factory=lambda: ["numina"])  # a row each: baseline (plain), numina
    samples: int = 1  # videos per prompt and strategy
    seed: int = 0  # of rows that have none, together with their id or prompt
    limit: int | None = None  # first rows only, for a first look
    max_count: int = 20  # the largest count that a target may ask for
    retry_failed: bool = False  # try clips again that were recorded as failed
    single_writer: bool = False  # allow filesystems without an atomic create-if-absent
    model: ModelConfig = field(default_factory=ModelConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            _one_of("strategies", strategy, STRATEGIES)
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            raise ConfigError(f"strategies is {self.strategies}; give each of {', '.join(STRATEGIES)} at most once")
        if self.samples < 1 or (self.limit is not None and self.limit < 1):
            raise ConfigError(f"samples is {self.samples} and limit is {self.limit}; both must be at least 1")

    def row_config(self, strategy: str, dtype: str) -> dict[str, Any]:
        """What decides a row's pixels, next to its prompt, targets, seed and model: this enters its key."""
        method = asdict(self.method) if strategy == "numina" else None
        if method:
            del method["preset"]  # a label
        return {"strategy": strategy, "generation": asdict(self.generation), "method": method, "dtype": dtype}


def load_job(config: str | Path | None = None, overrides: Sequence[str] = ()) -> JobConfig:
    """The job of a YAML file (a path, or the name of one in `configs/`) with `key=value` overrides.

    Raises ConfigError for a file that isn't there, an unknown key, or a value out of range.
    """
    try:
        given = OmegaConf.merge(_load_yaml(config) if config else {}, OmegaConf.from_dotlist(list(overrides)))
        if missing := OmegaConf.missing_keys(given):
            asked = ", ".join(f"{key}=…" for key in sorted(missing))
            raise ConfigError(f"config {str(config)!r} leaves {asked} to you; give a value on the command line")
        preset = OmegaConf.select(given, "method.preset", default=DEFAULT_PRESET)
        method = {"method": _load_yaml(config_folder() / "method" / f"{preset}.yaml")}
        merged = OmegaConf.merge(OmegaConf.structured(JobConfig), method, given)
        job = OmegaConf.to_object(merged)
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise _unknown_key(str(error.full_key)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(job, JobConfig)
    return job


def config_folder() -> Path:
    """`configs/`: beside the packages in a checkout, inside this package in an installed wheel."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def config_hash(row_config: dict[str, Any]) -> str:
    """A short name of a row's configuration, for grouping rows."""
    return hashlib.blake2b(canonical_json(row_config).encode(), digest_size=8).hexdigest()


def _load_yaml(name: str | Path) -> DictConfig:
    path = Path(name) if Path(name).is_file() else config_folder() / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"config {str(name)!r} is neither a file nor one of those shipped: {known}")
    loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} holds no mapping; a job is YAML like the ones in {config_folder()}")
    return loaded


def _unknown_key(key: str) -> ConfigError:
    known = list(_keys(JobConfig))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    leaf = key.rsplit(".", 1)[-1]
    close = close or [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return ConfigError(f"unknown configuration key {key!r}; {hint}")


def _keys(config: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a nested dataclass."""
    hints = get_type_hints(config)
    for item in fields(config):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose from {', '.join(choices)}")
