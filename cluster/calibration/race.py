"""The race: which candidates make how many prompts next, who drops out and why. Pure functions of recorded outcomes.

    start ─► next_rung ─► (clips are made and judged) ─► after_rung ─► next_rung ─► … ─► None

A candidate drops out in two ways, and the result says which:

    worse       its CountAcc less the leader's, prompt by prompt, has an interval below 0. Intervals are valid at any
                number of looks (`intervals`), and α is shared out over a candidate's rivals: the best candidate is
                called worse with probability ERROR at most.
    set aside   the budget isn't enough to go on with all. It is spent by sequential halving (Karnin, Koren and Somekh,
                ICML 2013): in as many stages as halvings are needed, an equal part in each, the better half goes on.
                A large budget has dropped the worse ones before that.

The plain clips are a candidate, too. They are never set aside: whether correction helps at all is asked to the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, isnan, log2

from cluster.calibration.intervals import mean_interval
from numina.metrics import Interval

PLAIN = "baseline"
ERROR = 0.05  # probability that the best candidate is ever called worse, or plain clips wrongly called worse at the end
FIRST_LOOK = 10  # prompts, below which no interval can exclude anything
WORTH = 0.02  # CountAcc below which a gain over plain clips isn't worth its cost

Values = Mapping[str, Sequence[float]]
"""By candidate the CountAcc of its clips, in the order of the prompts; nan where there is none."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Candidates that are run on the first `prompts` prompts."""

    candidates: tuple[str, ...]
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Out:
    """How a candidate dropped out."""

    why: str  # worse | set aside
    prompts: int  # that it had made
    rival: str  # the leader then


@dataclass(frozen=True, kw_only=True)
class Race:
    """Where a race stands."""

    candidates: tuple[str, ...]  # in the order that decides between equals
    left: tuple[str, ...]
    prompts: int = 0  # that all which are left have made
    target: int = 0  # prompts at the end of this stage
    out: Mapping[str, Out] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """Those left that correct."""
        return tuple(name for name in self.left if name != PLAIN)

    @property
    def made(self) -> dict[str, int]:
        """Prompts that each candidate was run on."""
        return {name: self.out[name].prompts if name in self.out else self.prompts for name in self.candidates}

    @property
    def over(self) -> bool:
        """Whether nothing is left to find out."""
        return not self.methods or len(self.left) == 1


def start(candidates: Sequence[str]) -> Race:
    """All candidates at the start, plain clips among them."""
    assert PLAIN in candidates
    assert len(set(candidates)) == len(candidates) > 1
    return Race(candidates=tuple(candidates), left=tuple(candidates))


def next_rung(
    race: Race,
    budget: float,
    prompts: int,
    costs: Mapping[str, float] | None = None,
    made: Mapping[str, int] | None = None,
) -> tuple[Race, Rung | None]:
    """What to run next on `prompts` prompts there are; None once the race is over or the budget spent.

    `costs` of a clip by candidate are in the budget's unit; None: one each. `made`: clips of each candidate that are
    there already, if they are more than the race's own, as after a race with another budget: they cost nothing more.
    """
    if race.over or race.prompts >= prompts:
        return race, None
    cost = dict.fromkeys(race.candidates, 1.0) if costs is None else costs
    there = {name: max(number, (made or {}).get(name, 0)) for name, number in race.made.items()}
    paid = sum(cost[name] * number for name, number in there.items())
    budget = max(budget, paid)

    def price(number: int) -> float:
        return paid + sum(cost[name] * max(0, number - there[name]) for name in race.left)

    if race.prompts >= race.target:
        stages = max(1, ceil(log2(max(2, len(race.methods)))))
        own = sum(cost[name] * number for name, number in race.made.items())
        more = floor((budget - own) / stages / sum(cost[name] for name in race.left) + 1e-9)
        race = replace(race, target=min(prompts, race.prompts + max(1, more)))
    look = max(FIRST_LOOK, 2 * race.prompts)
    number = race.target if race.target <= 1.5 * look else look
    while number > race.prompts and price(number) > budget + 1e-9:
        number -= 1
    if number == race.prompts:
        return race, None
    return race, Rung(candidates=race.left, prompts=number)


def after_rung(race: Race, rung: Rung, values: Values) -> Race:
    """Where the race stands once a rung's clips are judged."""
    number, out = rung.prompts, dict(race.out)
    means = {name: mean_of(values[name][:number]) for name in race.left}
    leader = best_of(means)
    for name in race.left:
        if name != leader and difference(values, name, leader, number, ERROR / (len(race.candidates) - 1)).high < 0:
            out[name] = Out(why="worse", prompts=number, rival=leader)
    methods = [name for name in race.methods if name not in out]
    if number >= race.target and len(methods) > 2:
        order = sorted(methods, key=lambda name: -means[name])  # stable: equals in the candidates' order
        for name in order[ceil(len(methods) / 2) :]:
            out[name] = Out(why="set aside", prompts=number, rival=leader)
    left = tuple(name for name in race.left if name not in out)
    return replace(race, left=left, prompts=number, out=out)


def choice(race: Race, values: Values) -> str:
    """The best method: of those left or, if plain clips have beaten all, of those that were the last to drop out."""
    there = race.methods
    if not there:
        last = max(own.prompts for name, own in race.out.items() if name != PLAIN)
        there = tuple(n for n in race.candidates if n != PLAIN and race.out[n].prompts == last)
    return best_of({name: mean_of(values[name][: race.made[name]]) for name in there})


def gain(race: Race, values: Values, name: str) -> Interval:
    """What a method's CountAcc is more than the plain clips', with an interval for the best of all candidates."""
    return difference(values, name, PLAIN, _shared(race, name), ERROR / (len(race.candidates) - 1))


def verdict(race: Race, values: Values, name: str) -> str:
    """What a method's gain over plain clips means: better, no better or, where prompts are few, not shown."""
    found = gain(race, values, name)
    if found.low > 0:
        return "better"
    return "no better" if found.mean < WORTH and _shared(race, name) >= FIRST_LOOK else "not shown"


def _shared(race: Race, name: str) -> int:
    """Prompts that a method and plain clips were both run on."""
    return min(race.made[name], race.made[PLAIN])


def difference(values: Values, name: str, other: str, prompts: int, alpha: float) -> Interval:
    """CountAcc of one candidate less another's, on the first prompts of which both have a clip."""
    pairs = zip(values[name][:prompts], values[other][:prompts], strict=True)
    differences = [one - two for one, two in pairs if not isnan(one) and not isnan(two)]
    if not differences:
        return Interval(mean=0.0, low=-1.0, high=1.0)
    return mean_interval(differences, alpha, -1.0, 1.0)


def mean_of(values: Sequence[float]) -> float:
    """Over the clips that there are; 0 if there are none."""
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else 0.0


def best_of(means: Mapping[str, float]) -> str:
    """The first of the best."""
    return max(means, key=lambda name: means[name])


def most_rungs(candidates: int, budget: int) -> int:
    """How many rungs a race of so many candidates, plain clips among them, has at most."""
    names = [PLAIN, *(str(number) for number in range(candidates - 1))]
    race, rungs = start(names), 0
    alike = {name: [0.0] * budget for name in names}
    while True:
        race, rung = next_rung(race, budget, budget)
        if rung is None:
            return rungs
        race, rungs = after_rung(race, rung, alike), rungs + 1
