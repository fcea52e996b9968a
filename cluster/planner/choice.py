"""Which way to run a job: every supported split of the GPUs, each with the least sharding that fits, best first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, lcm, log
from typing import TYPE_CHECKING, Any, Literal, get_args

from cluster.job.checked import CheckedJob, check_job
from cluster.job.checks import check_combination
from cluster.job.config import JobConfig
from cluster.planner.demand import GB, Bill, Demand, DiskModel, Range
from cluster.planner.measured import DEFAULT_GPU, Gpu, load_gpu
from cluster.planner.memory import Memory, MemoryModel, read_sizes
from cluster.planner.setup import SETTINGS, Setup, as_overrides, settings_of, splits
from cluster.planner.timing import Cost, TimeModel
from numina.errors import ConfigError
from pipelines.models.registry import known_model
from pipelines.parallel.config import MemoryConfig, Place
from pipelines.parallel.support import SHARDINGS, resolve_engine

if TYPE_CHECKING:
    from cluster.job.prepared import PreparedJob

Objective = Literal["throughput", "latency"]

MORE = 1.01  # times the clips an hour that a larger batch must make
WAYS_OUT = 3  # of a wish that doesn't fit: so many are named


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to run the job, what it takes and how long."""

    setup: Setup
    engine: str
    memory: Memory
    cost: Cost | None  # None: no forward of this model was measured on this GPU
    clips_per_hour: float | None  # of all gangs, by `Cost.seconds`


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The job as it is configured."""

    tokens: int
    videos: int | None  # None: no prompt set was named
    weights_gib: float  # of the whole transformer in the job's dtype
    candidate: Candidate

    @property
    def hours(self) -> float | None:
        """Until all videos are made, at most."""
        rate = self.candidate.clips_per_hour
        return self.videos / rate if rate and self.videos is not None else None


def estimate(prepared: "PreparedJob", gpu: str = DEFAULT_GPU) -> Estimate:
    """A job with its prompt set as configured; no time on CPUs, where nothing was measured."""
    return Planner(prepared, load_gpu(gpu), Demand(videos=prepared.asked)).estimate()


def planned_gib(checked: CheckedJob) -> float | None:
    """The most that every GPU of the job as configured must hold; None on CPUs."""
    if checked.device != "cuda":
        return None
    return Planner(checked, load_gpu(DEFAULT_GPU)).estimate().candidate.memory.peak


def check_known(job: JobConfig) -> CheckedJob:
    """A job that is to be planned as it is configured, on its model as far as that is known: of the hub, nothing is
    downloaded. Raises an InputError."""
    return check_job(job, known_model(job.model.path, job.model.revision))


def check_for_gpus(job: JobConfig) -> CheckedJob:
    """The same of a job that is to be planned for a cluster: its own degrees and device don't count."""
    if job.model.device == "cpu":
        raise ConfigError("model.device is cpu, and --gpus plans for GPUs; add model.device=auto")
    anywhere = replace(
        job,
        model=replace(job.model, device="auto"),
        cluster=replace(job.cluster, address="auto"),  # not this machine, which may have no GPU
        parallel=replace(job.parallel, cfg=1, ulysses=1, ring=1, gangs=1, gangs_max=None, batch=1, compile=False),
        memory=MemoryConfig(),
    )
    return replace(check_known(anywhere), job=job)


def wishes_of(job: JobConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The planner's settings that a command line names: these are wishes, what a YAML file says is a default."""
    given = {override.partition("=")[0] for override in overrides}
    if job.parallel.gangs == "auto":
        given.discard(SETTINGS["gangs"])
    return {key: value for key, value in settings_of(job).items() if SETTINGS[key] in given}


class Planner:
    """Memory, time and choice for one job on one kind of GPU."""

    def __init__(self, prepared: CheckedJob, gpu: Gpu, demand: Demand = Demand()):  # noqa: B008 - frozen
        self.prepared, self.job, self.model, self.gpu = prepared, prepared.job, prepared.model, gpu
        self.demand = demand
        sizes = read_sizes(prepared.model)
        self.memory = MemoryModel(prepared, sizes, gpu)
        self.time = TimeModel(prepared, sizes, gpu, demand)
        self.disk = DiskModel(prepared, sizes)

    @property
    def configured(self) -> Setup:
        """The job's own."""
        return Setup(**settings_of(self.job))

    def estimate(self) -> Estimate:
        """The job as it is configured."""
        return Estimate(
            tokens=self.memory.tokens,
            videos=self.demand.videos,
            weights_gib=self.memory.weights,
            candidate=self.candidate(self.configured),
        )

    def candidate(self, setup: Setup) -> Candidate:
        """What a setup takes, whether it fits or not."""
        cost = self.time.of(setup) if self.prepared.device == "cuda" else None
        return Candidate(
            setup=setup,
            engine=resolve_engine(self.job.parallel.engine, self.prepared.device, setup.sequence_ranks),
            memory=self.memory.of(setup),
            cost=cost,
            clips_per_hour=self.time.clips_per_hour(setup, cost) if cost else None,
        )

    def bill(self, candidate: Candidate, gpus: int, videos: int | None) -> Bill:
        """What so many videos take on so many GPUs, idle ones included; of None, what one of very many takes.

        A gang makes a clip at a time, so that a few clips on many gangs take as long as one.
        """
        made = Range(least=self.time.clips_made[0], most=self.time.clips_made[1])
        disk = made * ((videos or 1) * (self.disk.video + self.disk.latents) / GB)
        cost, rate = candidate.cost, candidate.clips_per_hour
        if cost is None or rate is None:
            return Bill(hours=None, gpu_hours=None, price=None, disk_gb=disk)
        most = (videos or 1) / rate
        if videos is not None:
            rounds = ceil(videos / (candidate.setup.gangs * candidate.setup.batch))
            most = max(most, rounds * cost.seconds / 3600)
        hours = Range(least=most * cost.seconds_if_right / cost.seconds, most=most)
        price = None if self.demand.price is None else hours * (gpus * self.demand.price)
        return Bill(hours=hours, gpu_hours=hours * gpus, price=price, disk_gb=disk)

    def fits(self, candidate: Candidate) -> bool:
        """Whether its memory is there."""
        return candidate.memory.peak <= self.gpu.memory_gib

    def supported(self, setup: Setup) -> bool:
        """Whether it is built and tested (`pipelines.parallel.support`), under all caches of the job."""
        try:
            self._check(setup)
        except ConfigError:
            return False
        return True

    def _check(self, setup: Setup) -> None:
        degrees = {key: getattr(setup, key) for key in ("cfg", "ulysses", "ring", "gangs", "batch", "compile")}
        memory = MemoryConfig(shard=setup.shard, text_encoder=setup.text_encoder)
        job = replace(self.job, parallel=replace(self.job.parallel, gangs_max=None, **degrees), memory=memory)
        check_combination(job, self.model, self.prepared.device)

    def candidates(
        self, gpus: int, *, nodes: int = 1, objective: Objective = "throughput", wishes: Mapping[str, Any] | None = None
    ) -> list[Candidate]:
        """Ways to run the job on so many GPUs, best first; `wishes`, by the keys of `SETTINGS`, are held fixed.

        Raises ConfigError where that can't be, with the nearest that can.
        """
        if gpus < 1 or nodes < 1 or gpus % nodes:
            raise ConfigError(f"--gpus {gpus} on --nodes {nodes}: every node must have the same number, at least 1")
        wishes = wishes or {}
        found = self._fitting(gpus, nodes, objective, wishes)
        if not found:
            raise ConfigError(self._refusal(gpus, nodes, objective, wishes))
        return found

    def refusal(self, setup: Setup) -> str | None:
        """Why a setup's memory isn't there, and the nearest that fits the same GPUs; None if it is there."""
        if self.fits(self.candidate(setup)):
            return None
        return self._refusal(setup.ranks * setup.gangs, 1, "throughput", setup.settings, what="the job as configured")

    def _fitting(self, gpus: int, nodes: int, objective: Objective, wishes: Mapping[str, Any]) -> list[Candidate]:
        """What fits, each split once, best first. A gang leaves its node only for latency, or where it must."""
        found: dict[tuple[int, ...], Candidate] = {}
        for candidate in filter(self.fits, self._supported(gpus, nodes, wishes)):  # what takes least care comes first
            setup = candidate.setup
            best = found.setdefault((setup.cfg, setup.ulysses, setup.ring), candidate)
            if objective == "throughput" and _pays(candidate, best):
                found[setup.cfg, setup.ulysses, setup.ring] = candidate
        rings: dict[tuple[int, int], int] = {}  # the least that a split needs: Ulysses is known, and the ring isn't
        for setup in (candidate.setup for candidate in found.values()):
            split = setup.cfg, setup.sequence_ranks
            rings[split] = min(setup.ring, rings.get(split, setup.ring))
        chosen = [c for c in found.values() if c.setup.ring == rings[c.setup.cfg, c.setup.sequence_ranks]]
        inside = [candidate for candidate in chosen if candidate.setup.nodes == 1]
        if inside and objective == "throughput":
            chosen = inside
        return sorted(chosen, key=lambda candidate: _order(candidate, objective))

    def _supported(self, gpus: int, nodes: int, wishes: Mapping[str, Any]) -> Iterator[Candidate]:
        """All that obeys the wishes, whatever its memory; of one split, first whole weights with the text encoder."""
        compiled = wishes.get("compile", self.job.parallel.compile)
        for split, shard, place in product(
            splits(gpus, self.model.heads, self.memory.tokens), SHARDINGS, get_args(Place)
        ):
            setup = replace(split, shard=shard, text_encoder=place)
            setup = self._placed(setup, gpus, nodes, wishes.get("gangs"))
            for compile in sorted({compiled, False}, reverse=True):  # not compiled where that isn't supported
                batches = [wishes["batch"]] if "batch" in wishes else self.time.batches(compile)
                setups = [replace(setup, compile=compile, batch=batch) for batch in batches]
                obeying = [setup for setup in setups if setup.gangs and not setup.unlike(wishes)]
                if found := [setup for setup in obeying if self.supported(setup)]:
                    yield from map(self.candidate, found)
                    break

    def _placed(self, setup: Setup, gpus: int, nodes: int, gangs: int | None) -> Setup:
        """With as many gangs as there is room for, or as asked for; 0 where there isn't room.

        As the runtime places them: a gang on one node if it fits there, else a branch, else a group of Ulysses ranks.
        """
        here = gpus // nodes
        taken = ceil(self._beside(setup))
        unit = next((unit for unit in (setup.ranks, setup.sequence_ranks, setup.ulysses) if unit <= here), None)
        if unit is None:
            return replace(setup, gangs=0)
        units = (nodes - 1) * (here // unit) + max(0, here - taken) // unit
        room = min(units // (setup.ranks // unit), self.job.parallel.gangs_max or units)
        asked = room if gangs is None else gangs if gangs <= room else 0
        return replace(setup, gangs=asked, nodes=ceil(setup.ranks / unit / (here // unit)))

    def _beside(self, setup: Setup) -> float:
        """GPUs that encoders and judges take; shares of one GPU lie together."""
        cluster, verify = self.job.cluster, self.job.verify
        encoders = cluster.encoders * cluster.encoder_gpus if setup.text_encoder == "apart" else 0.0
        return encoders + (verify.judges * verify.gpus if self.job.verifies else 0.0)

    # --- refusals ---

    def _refusal(
        self, gpus: int, nodes: int, objective: Objective, wishes: Mapping[str, Any], what: str | None = None
    ) -> str:
        wished = list(self._supported(gpus, nodes, wishes))
        fitting = self._fitting(gpus, nodes, objective, {})
        fitting.sort(key=lambda candidate: _distance(candidate.setup, wishes))  # stable: else best first
        if not wished:
            nearest = _described(fitting[:1], wishes) or "none, for want of memory"
            return f"{self._objection(wishes)}; nearest on {gpus} GPUs: {nearest}"
        least = min((candidate.memory for candidate in wished), key=lambda memory: memory.peak)
        problem = (
            f"{what or as_overrides(wishes) or self.model.name} needs {least.peak:.1f} GiB on every GPU while"
            f" {least.phase}, {least.peak - self.gpu.memory_gib:.1f} GiB more than the {self.gpu.memory_gib:g} of"
            f" {self.gpu.name}"
        )
        ways: dict[frozenset[str], Candidate] = {}
        for candidate in fitting:
            ways.setdefault(frozenset(candidate.setup.unlike(wishes)), candidate)
        found = _described(list(ways.values())[:WAYS_OUT], wishes) or self._other_clip(gpus, nodes, objective, wishes)
        return f"{problem}; {f'what fits: {found}' if found else 'nothing that is built makes it fit'}"

    def _objection(self, wishes: Mapping[str, Any]) -> str:
        """Why nothing obeys the wishes: they aren't supported, or take more GPUs than there are."""
        setup = Setup(**{"compile": self.job.parallel.compile, **wishes})
        try:
            self._check(setup)
        except ConfigError as error:
            return str(error).partition("; nearest that works")[0]
        return f"{as_overrides(wishes)} takes {setup.ranks * setup.gangs} GPUs or more"

    def _other_clip(self, gpus: int, nodes: int, objective: Objective, wishes: Mapping[str, Any]) -> str | None:
        """What of `generation` would have to change: the step cache, that weights may be sharded, or the size."""
        for changes in self._easier_clips():
            job = replace(self.job, generation=replace(self.job.generation, **changes))
            found = Planner(replace(self.prepared, job=job), self.gpu, self.demand)._fitting(gpus, nodes, objective, {})
            if found:
                clip = " ".join(f"generation.{name}={value}" for name, value in changes.items())
                return f"{clip} with {_described(found[:1], wishes)}"
        return None

    def _easier_clips(self) -> Iterator[dict[str, Any]]:
        generation = self.job.generation
        if generation.cache != "none":
            yield {"cache": "none"}
        sides = {"height": generation.height, "width": generation.width}
        strides = [lcm(16, stride) for stride in self.model.token_strides[1:]]
        for tenths in range(9, 0, -1):
            yield {
                name: max(stride, round(side * tenths / 10 / stride) * stride)
                for (name, side), stride in zip(sides.items(), strides, strict=True)
            }


def _pays(candidate: Candidate, other: Candidate) -> bool:
    """Whether more clips in one forward, and nothing else, make more clips an hour than an error of measurement."""
    alike = replace(candidate.setup, batch=other.setup.batch) == other.setup
    rates = candidate.clips_per_hour, other.clips_per_hour
    return alike and rates[0] is not None and rates[1] is not None and rates[0] > MORE * rates[1]


def _order(candidate: Candidate, objective: Objective) -> tuple[float, ...]:
    """Sorts the best first. What costs something that was never measured comes after all that doesn't."""
    setup, cost = candidate.setup, candidate.cost
    if objective == "throughput":
        value = -candidate.clips_per_hour if candidate.clips_per_hour else -setup.gangs
    else:
        value = cost.seconds if cost else -setup.ranks
    return SHARDINGS.index(setup.shard), setup.ring > 1, round(value, 3), setup.ranks, -setup.cfg, setup.ring


def _distance(setup: Setup, wishes: Mapping[str, Any]) -> tuple[float, float]:
    """How far a setup is from what was wished: in how many settings, and by what factor in its degrees."""
    changed = setup.unlike(wishes)
    factors = (abs(log(value / wishes[key])) for key, value in changed.items() if type(value) is int)
    return len(changed), sum(factors)


def _described(candidates: Sequence[Candidate], wishes: Mapping[str, Any]) -> str:
    """What each changes of the wishes, and needs beyond a clip per GPU, as overrides."""
    shown = []
    for candidate in candidates:
        setup = candidate.setup
        usual = {**Setup(gangs=setup.gangs, compile=setup.compile).settings, **wishes}
        changes = as_overrides(setup.unlike(usual)) or "one GPU per clip"
        shown.append(f"{changes} ({candidate.memory.peak:.1f} GiB)")
    return " or ".join(shown)
