"""Which combinations of engine, degrees, compiler, cache and sharding are built and tested, and the nearest one.

Each rule names what it refuses, why, and the smallest change that obeys it; a refused wish is changed rule by rule
until none objects, and that is the nearest one that works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from numina.config import Cache
from numina.errors import ConfigError

Engine = Literal["auto", "single", "diffusers", "xfuser"]
Sharding = Literal["none", "zero3", "zero3_offload"]
ENGINES = get_args(Engine)
SHARDINGS = get_args(Sharding)


@dataclass(frozen=True, kw_only=True)
class Lacks:
    """Why a model family can't be run some way; None: it can."""

    split: str | None = None  # a clip's tokens over ranks
    kernels: str | None = None  # attention by another kernel than PyTorch's own
    magcache: str | None = None  # the step cache that needs to know the family's magnitudes


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One way to run a model on a gang. What stands first is what a remedy changes; the rest is given."""

    engine: str = "auto"
    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    attention: str = "auto"
    compile: bool = False
    shard: str = "none"
    cache: str = "none"  # of identification or of generation: each is asked about
    device: str = "cpu"  # cuda | cpu
    heads: int = 1
    tokens: int = 1  # of a clip
    guidance: bool = True  # classifier-free, that is, two branches
    lacks: Lacks = Lacks()  # what the model's family can't do
    loras: bool = False  # whether any is fused into the weights
    dtype: str = "auto"

    @property
    def sequence_ranks(self) -> int:
        return self.ulysses * self.ring

    @property
    def ranks(self) -> int:
        return self.cfg * self.sequence_ranks


@dataclass(frozen=True)
class Rule:
    """Something that isn't built, or can't be."""

    name: str
    refuses: Callable[[Wish], bool]
    why: Callable[[Wish], str]
    remedy: Callable[[Wish], Wish]


def resolve_engine(engine: str, device: str, sequence_ranks: int) -> str:
    """What `auto` stands for: one rank needs no engine, xfuser needs a GPU, and diffusers runs anywhere."""
    if engine != "auto":
        return engine
    return "single" if sequence_ranks == 1 else "xfuser" if device == "cuda" else "diffusers"


def _divisors(of: int, at_most: int) -> list[int]:
    return [n for n in range(1, min(of, at_most) + 1) if of % n == 0]


def _fewer_rows(wish: Wish) -> Wish:
    """The longest ring and, with it, the most Ulysses ranks, no more than wished for, that divide tokens and heads."""
    ring = next(ring for ring in range(wish.ring, 0, -1) if wish.tokens % ring == 0)
    fits = [n for n in _divisors(wish.heads, wish.ulysses) if wish.tokens % (n * ring) == 0]
    return replace(wish, ring=ring, ulysses=fits[-1])


def _pads(wish: Wish) -> bool:
    return wish.tokens % wish.sequence_ranks != 0


def _off_the_ring(wish: Wish) -> Wish:
    if wish.device == "cuda":
        return replace(wish, engine="xfuser")
    return replace(wish, ring=1, ulysses=_divisors(wish.heads, wish.ulysses * wish.ring)[-1])


RULES = (
    Rule(
        "the family's tokens can't be split",
        lambda w: w.lacks.split is not None and w.sequence_ranks > 1,
        lambda w: str(w.lacks.split),
        lambda w: replace(w, ulysses=1, ring=1),
    ),
    Rule(
        "the family has PyTorch's kernel",
        lambda w: w.lacks.kernels is not None and w.attention != "auto",
        lambda w: f"parallel.attention is {w.attention!r}, and {w.lacks.kernels}",
        lambda w: replace(w, attention="auto"),
    ),
    Rule(
        "xfuser needs a GPU",
        lambda w: w.engine == "xfuser" and w.device != "cuda",
        lambda w: "xfuser's kernels are Triton's and CUDA's, and it can't even be imported on a machine without a GPU",
        lambda w: replace(w, engine="diffusers"),
    ),
    Rule(
        "single is one sequence",
        lambda w: w.engine == "single" and w.sequence_ranks > 1,
        lambda w: f"engine single doesn't split a clip's tokens, and {w.sequence_ranks} ranks were asked to share them",
        lambda w: replace(w, engine="xfuser" if w.device == "cuda" else "diffusers"),
    ),
    Rule(
        "two branches at most",
        lambda w: w.cfg not in (1, 2),
        lambda w: f"parallel.cfg is {w.cfg}; classifier-free guidance has two branches",
        lambda w: replace(w, cfg=2 if w.cfg > 2 else 1),
    ),
    Rule(
        "cfg ranks need two branches",
        lambda w: w.cfg == 2 and not w.guidance,
        lambda w: "parallel.cfg=2 needs two branches, but generation.guidance_scale of 1 or less leaves one",
        lambda w: replace(w, cfg=1),
    ),
    Rule(
        "diffusers has no ring",
        lambda w: w.engine == "diffusers" and w.ring > 1,
        lambda w: "diffusers' ring attention isn't tested on GPUs, and it raises on CPUs",
        _off_the_ring,
    ),
    Rule(
        "ulysses divides heads",
        lambda w: w.heads % w.ulysses != 0,
        lambda w: f"parallel.ulysses={w.ulysses} doesn't divide the model's {w.heads} heads",
        lambda w: replace(w, ulysses=_divisors(w.heads, w.ulysses)[-1]),
    ),
    Rule(
        "a ring's ranks hold alike",
        lambda w: w.ring > 1 and _pads(w),
        lambda w: f"{w.tokens} tokens don't divide by {w.sequence_ranks}, and ring attention can't mask padding",
        _fewer_rows,
    ),
    Rule(
        "diffusers doesn't pad",
        lambda w: w.engine == "diffusers" and _pads(w),
        lambda w: (
            f"{w.tokens} tokens don't divide by {w.sequence_ranks} ranks, and diffusers' attention would see the"
            " padding; xfuser's doesn't"
        ),
        lambda w: replace(w, engine="xfuser") if w.device == "cuda" else _fewer_rows(w),
    ),
    Rule(
        "magcache knows the family",
        lambda w: w.lacks.magcache is not None and w.cache == "magcache",
        lambda w: str(w.lacks.magcache),
        lambda w: replace(w, cache="taylorseer"),
    ),
    Rule(
        "cfg_cache is for one rank's two branches",
        lambda w: w.cache == "cfg_cache" and w.cfg == 2,
        lambda w: "cfg_cache skips unconditional passes, and with parallel.cfg=2 half of the ranks run nothing else",
        lambda w: replace(w, cfg=1),
    ),
    Rule(
        "compiled blocks have no cache",
        lambda w: w.compile and w.cache not in ("none", "cfg_cache"),
        lambda w: f"the hooks of {w.cache} break compiled blocks' graphs; not tested together",
        lambda w: replace(w, compile=False),
    ),
    Rule(
        "sharded weights aren't compiled",
        lambda w: w.compile and w.shard != "none",
        lambda w: "DeepSpeed gathers parameters in hooks between the layers, which the compiler can't trace",
        lambda w: replace(w, compile=False),
    ),
    Rule(
        "sharded weights have no cache",
        lambda w: w.shard != "none" and w.cache not in ("none", "cfg_cache"),
        lambda w: f"{w.cache} calls only some of the layers, and DeepSpeed prefetches them all; not tested together",
        lambda w: replace(w, cache="none"),
    ),
    Rule(
        "float8 needs a GPU",
        lambda w: w.dtype == "float8" and w.device != "cuda",
        lambda w: "model.dtype=float8 needs the tensor cores of an H100 or a newer GPU",
        lambda w: replace(w, dtype="auto"),
    ),
    Rule(
        "float8 is for whole layers",
        lambda w: w.dtype == "float8" and w.shard != "none",
        lambda w: "model.dtype=float8 isn't tested with sharded weights",
        lambda w: replace(w, dtype="auto"),
    ),
    Rule(
        "sharded weights take no LoRA",
        lambda w: w.shard != "none" and w.loras,
        lambda w: (
            f"model.loras are fused into whole weights, and memory.shard={w.shard} leaves a rank a share of them; a"
            " checkpoint that was saved with its LoRA fused can be sharded"
        ),
        lambda w: replace(w, shard="none"),
    ),
    Rule(
        "sharding needs ranks",
        lambda w: w.shard == "zero3" and w.ranks == 1,
        lambda w: "memory.shard=zero3 spreads the weights over a gang's ranks, and this gang has one",
        lambda w: replace(w, shard="none"),
    ),
)


def objections(wish: Wish) -> Iterator[Rule]:
    """The rules that refuse a wish."""
    return (rule for rule in RULES if rule.refuses(wish))


def nearest(wish: Wish) -> Wish:
    """The wish itself if it is supported; else with the fewest changes that the rules' remedies make."""
    for _ in range(100):
        objection = next(objections(wish), None)
        if objection is None:
            return wish
        wish = objection.remedy(wish)
    raise AssertionError(f"the rules' remedies run in a circle at {wish}")


def check_support(wish: Wish) -> Wish:
    """The wish with its engine named. Raises ConfigError with why it is refused, and the nearest one that works."""
    if wish.engine not in ENGINES:
        raise ConfigError(f"parallel.engine is {wish.engine!r}; choose one of {', '.join(ENGINES)}")
    wish = replace(wish, engine=resolve_engine(wish.engine, wish.device, wish.sequence_ranks))
    if refused := next(objections(wish), None):
        raise ConfigError(f"{refused.why(wish)}; nearest that works: {_changes(wish, nearest(wish))}")
    return wish


def _changes(wish: Wish, other: Wish) -> str:
    """What differs, as overrides."""
    names = {"shard": "memory.shard", "cache": "cache", "dtype": "model.dtype"}
    found = [
        f"{names.get(item.name, f'parallel.{item.name}')}={_yaml(getattr(other, item.name))}"
        for item in fields(Wish)
        if getattr(wish, item.name) != getattr(other, item.name)
    ]
    return " ".join(found)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


CACHES = get_args(Cache)


# diffusers 0.42 keeps one state for the two passes of these: the unconditional pass, run by itself as Wan's is, would
# be served what the conditional one has just computed, and guidance would be lost.
ONE_STATE = ("pab", "faster")
BY_CONTENT = ("first_block",)  # decides by the mean over what it sees: its own rank's rows, and the whole batch
ONE_RANK = ("first_block", "magcache")  # diffusers' magcache takes the first block's input before ranks have split it


def check_cache(setting: str, name: str, *, ranks: int = 1, batch: int = 1) -> None:
    """Raises ConfigError where `setting` names no cache, or one that can't run on so many ranks or clips at once."""
    if name in ONE_STATE:
        raise ConfigError(
            f"{setting} is {name!r}, which in diffusers needs both guidance passes in one batch: the unconditional pass"
            f" would get the conditional one's attention; choose one of {', '.join(CACHES)}"
        )
    if name not in CACHES:
        raise ConfigError(f"{setting} is {name!r}; choose one of {', '.join(CACHES)}")
    if name in ONE_RANK and ranks > 1:
        why = "ranks that decide by their own rows deadlock" if name in BY_CONTENT else "it can't add split rows"
        raise ConfigError(
            f"{setting}={name} doesn't run on {ranks} ranks: {why}; use one of {_others(ONE_RANK)}, or"
            " parallel.ulysses=1"
        )
    if name in BY_CONTENT and batch > 1:
        raise ConfigError(
            f"{setting}={name} decides by the mean over a batch, so that {batch} clips of one would change each other;"
            f" use one of {_others(BY_CONTENT)}, or parallel.batch=1"
        )


def _others(refused: Sequence[str]) -> str:
    return ", ".join(name for name in CACHES if name not in refused)
