"""Strategies: what generates a clip, how many are tried, and which of them a dataset keeps (arXiv 2604.08546 §4).

A name is made of parts: `numina+seed_search`. What *generates* (baseline, numina, a variant; any of them with
prompt_enhancement) is what a row says in its column `strategy`; what *selects* among the attempts (seed_search,
verified) is decided by judges' verdicts, so that strategies share the clips that they have in common.

    attempt 0              the sample's own seed
    attempt 1, 2, …        other seeds that follow from it or, where a retry is `stronger`, the same with more guidance
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any, Literal

from cluster.keys import SEEDS, canonical_json
from numina.choices import check_choices
from numina.config import MethodConfig
from numina.errors import ConfigError

GENERATORS = ("baseline", "numina")
ENHANCEMENT = "prompt_enhancement"
SEED_SEARCH, VERIFIED = "seed_search", "verified"
PARTS = (*GENERATORS, ENHANCEMENT, SEED_SEARCH, VERIFIED)
ONLY, BEST, ACCEPTED = "only", "best", "accepted"
Retry = Literal["next_seed", "stronger"]
MOST_ATTEMPTS = 1000  # clips of one sample
STRONGEST = 1_000_000  # factor on the guidance
ACCEPT = 0.9
"""CountAcc from which a clip is accepted: up to four nouns, each has its count in most frames; a judge's slip in a few
frames is forgiven. 1 asks for every noun in every frame."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The selector `seed_search`: make several clips of each sample, keep the best one."""

    seeds: int = 5  # [clips] per sample, of which the judge's best one is kept

    def __post_init__(self) -> None:
        if not 2 <= self.seeds <= MOST_ATTEMPTS:
            raise ConfigError(f"search.seeds is {self.seeds}; give 2 to {MOST_ATTEMPTS}, or leave seed_search out")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """The selector `verified`: judge each clip, make another one until one is accepted or no attempt is left."""

    judge: str = "counter"  # the name of a judge in configs/judge/, or a YAML file of the same form
    accept: float = ACCEPT  # [CountAcc, above 0 to 1] from which a clip is accepted
    attempts: int = 4  # [clips] per sample, at most
    # the next attempt: next_seed (another seed) or stronger (the same seed with stronger guidance)
    retry: Retry = "next_seed"
    strengthen: float = 1.5  # [factor] on the guidance from one attempt to the next, if retry is stronger
    cpus: int = 1  # [CPU cores] reserved for one judge
    gpus: float = 0.0  # [share of a GPU, 0 to 1] reserved for one judge; 0: it runs on CPUs
    judges: int = 1  # [processes] that judge clips while the gangs work

    def __post_init__(self) -> None:
        check_choices("verify", self)
        if not 0 < self.accept <= 1:
            raise ConfigError(f"verify.accept is {self.accept}; give a CountAcc above 0, 1 at most")
        if not self.strengthen > 1:
            raise ConfigError(f"verify.strengthen is {self.strengthen}; a stronger guidance takes a factor above 1")
        for name in ("attempts", "cpus", "judges"):
            if not 1 <= getattr(self, name) <= MOST_ATTEMPTS:
                raise ConfigError(
                    f"verify.{name} is {getattr(self, name)}; it must be at least 1, and {MOST_ATTEMPTS} at most"
                )
        if self.retry == "stronger" and (self.attempts - 1) * log(self.strengthen) > log(STRONGEST):
            raise ConfigError(
                f"verify.strengthen is {self.strengthen:g} and verify.attempts is {self.attempts}: the last attempt's"
                f" guidance would be more than {STRONGEST:,} times as strong; use fewer attempts or a smaller factor"
            )
        if not 0 <= self.gpus <= 1:
            raise ConfigError(f"verify.gpus is {self.gpus}; give a share of a GPU, 0 to 1")

    @property
    def strengths(self) -> tuple[float, ...]:
        """The factor on the guidance in every attempt."""
        factor = self.strengthen if self.retry == "stronger" else 1.0
        return tuple(factor**attempt for attempt in range(self.attempts))


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way from a prompt to a clip of a dataset."""

    name: str  # as the job says it
    base: str  # what generates: a row's column `strategy`
    strengths: tuple[float, ...] = (1.0,)  # of the guidance, by attempt: as many attempts as there may be
    select: str = ONLY  # only (of one) | best (all are made) | accepted (the next one where a judge says no)

    @property
    def enhanced(self) -> bool:
        """Whether prompts are rewritten first."""
        return ENHANCEMENT in self.base.split("+")


@dataclass(frozen=True)
class Trial:
    """One clip that a strategy asks for of every sample."""

    base: str
    attempt: int
    strength: float
    verified: bool = False  # judged when it is there; others follow where it isn't accepted


def parse_strategy(name: str, generators: Collection[str], search: SearchConfig, verify: VerifyConfig) -> Strategy:
    """The strategy of a name. Raises ConfigError for a part that isn't known, or parts that don't go together."""
    parts = name.split("+")
    if unknown := [part for part in parts if part not in (*generators, ENHANCEMENT, SEED_SEARCH, VERIFIED)]:
        raise ConfigError(
            f"strategies holds {name!r}, and {unknown[0]!r} isn't known; join parts of"
            f" {', '.join([*generators, ENHANCEMENT, SEED_SEARCH, VERIFIED])} with +"
        )
    generating = [part for part in parts if part in generators]
    selecting = [part for part in parts if part in (SEED_SEARCH, VERIFIED)]
    if len(set(parts)) < len(parts) or len(generating) > 1 or len(selecting) > 1:
        raise ConfigError(
            f"strategies holds {name!r}; a strategy is at most one generator ({', '.join(generators)}) and at most"
            f" one selector ({SEED_SEARCH}, {VERIFIED})"
        )
    default = "numina" if selecting == [VERIFIED] and ENHANCEMENT not in parts else "baseline"
    generator = generating[0] if generating else default
    base = generator if ENHANCEMENT not in parts else "+".join([generator] * (generator != "baseline") + [ENHANCEMENT])
    if selecting == [SEED_SEARCH]:
        return Strategy(name=name, base=base, strengths=(1.0,) * search.seeds, select=BEST)
    if selecting == [VERIFIED]:
        if generator == "baseline" and verify.retry == "stronger":
            raise ConfigError(f"strategies holds {name!r}, but baseline has no guidance; give verify.retry=next_seed")
        return Strategy(name=name, base=base, strengths=verify.strengths, select=ACCEPTED)
    return Strategy(name=name, base=base)


def trials(strategies: Sequence[Strategy]) -> list[Trial]:
    """What all strategies ask for of a sample from the start, each clip once."""
    asked = dict[tuple[str, int, float], bool]()
    for strategy in strategies:
        verified = strategy.select == ACCEPTED
        for attempt, strength in enumerate(strategy.strengths[: 1 if verified else None]):
            clip = strategy.base, attempt, strength
            asked[clip] = asked.get(clip, False) or verified
    return [Trial(*clip, verified=verified) for clip, verified in asked.items()]


def generator_of(base: str) -> str:
    """What generates, without what is done to prompts before."""
    parts = [part for part in base.split("+") if part != ENHANCEMENT]
    return parts[0] if parts else "baseline"


def stronger(method: MethodConfig, factor: float) -> MethodConfig:
    """The method with every bias of its guidance times a factor."""
    if factor == 1:
        return method
    guide = method.guide
    scaled = {name: getattr(guide, name) * factor for name in ("remove", "add", "keep", "elsewhere", "other")}
    return replace(method, guide=replace(guide, **scaled))


def attempt_seed(seed: int, attempt: int, strength: float) -> int:
    """The seed of a sample's attempt, in [0, 2**63). Stronger ones keep the sample's."""
    if attempt == 0 or strength != 1:
        return seed
    content = canonical_json(["attempt", seed, attempt]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") % SEEDS


def attempt_digest(chain: bytes, attempt: int, strength: float) -> bytes:
    """The task digest of an attempt: the chain's own for the first, see `TaskDigests`."""
    if attempt == 0:
        return chain
    return hashlib.blake2b(chain + canonical_json([attempt, strength]).encode(), digest_size=16).digest()


def strategy_record(strategy: Strategy) -> dict[str, Any]:
    """A strategy as a run's record keeps it, for readers of the output."""
    return {
        "name": strategy.name,
        "base": strategy.base,
        "strengths": list(strategy.strengths),
        "select": strategy.select,
    }


def strategy_of(record: Mapping[str, Any]) -> Strategy:
    """The other way round."""
    return Strategy(
        name=record["name"], base=record["base"], strengths=tuple(record["strengths"]), select=record["select"]
    )
