"""What was measured on a kind of GPU: the tables of `configs/measured/`, and what lies between their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import log
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cluster.job.config import config_folder, load_yaml
from numina.errors import ConfigError

DEFAULT_GPU = "h100"


class Positive:
    """A dataclass whose numbers are all above 0."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ConfigError(f"{name} is {value:g}; give a number above 0")


@dataclass(frozen=True, kw_only=True)
class ForwardRow(Positive):
    """One forward pass; depth and heads name the model. With cfg 2: of both branches side by side."""

    depth: int
    heads: int
    tokens: int  # of a clip, without its text
    batch: int = 1  # clips in this one forward
    engine: str
    cfg: int = 1
    ulysses: int
    ring: int
    compile: bool
    dtype: str = "bfloat16"  # of the blocks' layers: bfloat16 or float8
    milliseconds: float
    gib: float | None = None  # weights and activations at their peak


@dataclass(frozen=True, kw_only=True)
class DecodeRow(Positive):
    """Latents to pixels of one clip."""

    decoder_width: int  # channels of its last layers, which name the VAE
    height: int  # pixels
    width: int  # pixels
    frames: int
    dtype: str
    ranks: int
    seconds: float
    gib: float  # at its peak, on each rank

    @property
    def size(self) -> int:
        """Pixels of all frames."""
        return self.height * self.width * self.frames


@dataclass(frozen=True, kw_only=True)
class EncodeRow(Positive):
    """One prompt through the text encoder; width, depth and tokens name it."""

    width: int
    depth: int
    tokens: int
    milliseconds: float
    gib: float  # weights and activations at their peak


@dataclass(frozen=True, kw_only=True)
class JudgeRow(Positive):
    """A judge of a kind at work on clips."""

    kind: str
    frames_per_second: float


@dataclass(frozen=True, kw_only=True)
class ForwardBlock:
    """`measured` says where: machine, versions, date."""

    measured: str = ""
    rows: list[ForwardRow] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DecodeBlock:
    """See ForwardBlock."""

    measured: str = ""
    rows: list[DecodeRow] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class EncodeBlock:
    """See ForwardBlock."""

    measured: str = ""
    rows: list[EncodeRow] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class JudgeBlock:
    """See ForwardBlock."""

    measured: str = ""
    rows: list[JudgeRow] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Gpu(Positive):
    """A kind of GPU: one file."""

    name: str
    memory_gib: float
    forward: ForwardBlock = field(default_factory=ForwardBlock)
    decode: DecodeBlock = field(default_factory=DecodeBlock)
    encode: EncodeBlock = field(default_factory=EncodeBlock)
    judge: JudgeBlock = field(default_factory=JudgeBlock)


def load_gpu(name: str) -> Gpu:
    """A table by its name in `configs/measured/`, or by its path. Raises ConfigError, naming the tables there are."""
    folder = config_folder() / "measured"
    path = Path(name) if Path(name).is_file() else folder / f"{name.lower()}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigError(
            f"--gpu {name!r} is neither a file nor one of those shipped: {known}; write one like them and give its path"
        )
    try:
        gpu = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Gpu), load_yaml(path, Gpu)))
    except (OmegaConfBaseException, ConfigError) as error:
        what = str(error).splitlines()[0]
        what = what if what.startswith(str(path)) else f"{path}: {what}"
        raise ConfigError(f"{what}; {DEFAULT_GPU}.yaml in {folder} shows the form") from error
    assert isinstance(gpu, Gpu)
    return gpu


@cache
def default_gpu() -> Gpu:
    """The table whose peaks stand in for those that another one lacks."""
    return load_gpu(DEFAULT_GPU)


Curve = Mapping[int, float]  # Ulysses degree → milliseconds of a forward


def forward_curve(rows: Sequence[ForwardRow], engine: str, compile: bool, notes: list[str]) -> Curve:
    """One model's forwards of one clip and one branch by degree, on the asked engine and compiled as asked.

    If that wasn't measured, on another engine, or not compiled; `notes` gets what was taken instead.
    """
    rows = [row for row in rows if row.batch == row.cfg == row.ring == 1]
    if compile and not any(row.compile for row in rows):
        notes.append("eager blocks")
        compile = False
    rows = [row for row in rows if row.compile == compile]
    engines = sorted({row.engine for row in rows if row.ulysses > 1}, reverse=True)
    if engine != "single" and engines and engine not in engines:
        engine = engines[0]
        notes.append(f"engine {engine}")
    return {row.ulysses: row.milliseconds for row in rows if row.engine in ("single", engine)}


def between(curve: Curve, degree: int) -> tuple[float, str] | None:
    """Milliseconds a / degree + b through the two nearest of several measured degrees, and which these are.

    b is what ranks don't divide. None for fewer than two degrees above 1: one rank alone pays no engine.
    """
    near = sorted((known for known in curve if known > 1), key=lambda known: abs(log(known / degree)))[:2]
    if len(near) < 2:
        return None
    low, high = sorted(near)
    divided = (curve[low] - curve[high]) / (1 / low - 1 / high)
    return divided / degree + curve[low] - divided / low, f"Ulysses {low} and {high}"
